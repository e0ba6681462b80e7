//! What `/v1/status` prints, as one value. The JSON's shape is described in docs/status.md.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::clock::Moment;
use super::model::{BootStage, EndReason, HostBackend, MachineFacts};
use crate::spec::plan::{ConsoleKind, DiskPlan, DiskSource, MachinePlan, PartitionPlan};

/// Where the VM is in its life. The transitions are in `agent::lifecycle`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// The node and the pod are being checked.
    Preflight,
    /// The machine is being built.
    Creating,
    /// vCPUs run; the guest's kernel has not shown itself yet.
    Booting,
    /// The guest's kernel runs.
    Running,
    /// vCPUs and devices rest; the guest goes on when it is resumed.
    Paused,
    /// The machine is being taken down.
    Stopping,
    /// It ended as somebody wished: the guest powered off, or it was stopped from outside.
    Stopped,
    /// It ended in any other way.
    Failed,
}

impl State {
    /// Every state, in the order of a life.
    pub const ALL: [Self; 8] = [
        Self::Preflight,
        Self::Creating,
        Self::Booting,
        Self::Running,
        Self::Paused,
        Self::Stopping,
        Self::Stopped,
        Self::Failed,
    ];

    /// The state's name, as the status writes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Preflight => "preflight",
            Self::Creating => "creating",
            Self::Booting => "booting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
        }
    }

    /// Nothing comes after it.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Stopped | Self::Failed)
    }
}

/// Everything Nestling knows about its VM at one moment.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// Nestling's version.
    pub version: String,
    /// The process that runs the VM.
    pub pid: u32,
    /// Where the VM is in its life.
    pub state: State,
    /// When it came there, by the wall clock.
    pub since: String,
    /// The same in milliseconds since the process began.
    pub since_ms: u64,
    /// When the process began.
    pub started: String,
    /// Age of the process in milliseconds.
    pub uptime_ms: u64,
    /// The boot stages reached so far, in order.
    pub stages: Vec<StageReached>,
    /// How it ended; these keys are absent before the end.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub end: Option<End>,
    /// What went wrong without ending anything.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Which KVM is underneath; absent until preflight has looked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<HostBackend>,
    /// What was asked for.
    pub plan: PlanSummary,
    /// What the machine looks like.
    #[serde(flatten)]
    pub machine: MachineFacts,
}

impl Status {
    /// Whether this boot stage has been reached.
    #[must_use]
    pub fn has_reached(&self, stage: BootStage) -> bool {
        self.stages.iter().any(|reached| reached.stage >= stage)
    }
}

/// A boot stage and when it was reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageReached {
    /// Which.
    pub stage: BootStage,
    /// When.
    #[serde(flatten)]
    pub at: Moment,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// Why.
    pub reason: EndReason,
    /// The exit code of the process: docs/exit-codes.md.
    pub exit_code: u8,
    /// The code's name there.
    pub exit_name: String,
    /// The reason in one sentence.
    pub message: String,
    /// The last exit of a vCPU to user space, if the machine told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_exit: Option<String>,
    /// The guest's last console lines, newest last; empty when it ended as wished.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub console_tail: Vec<String>,
}

/// What was asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanSummary {
    /// vCPUs.
    pub cpus: u8,
    /// Guest RAM.
    pub memory_bytes: u64,
    /// The kernel image.
    pub kernel: PathBuf,
    /// The initial RAM disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initrd: Option<PathBuf>,
    /// `virtio` or `serial`.
    pub console: String,
    /// The disks in order.
    pub disks: Vec<DiskSummary>,
    /// The tags of the shared directories.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shares: Vec<String>,
}

/// One disk that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSummary {
    /// The image file or block device; absent for a composite disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// The partitions of a composite disk, in order; absent for others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub partitions: Vec<PartitionSummary>,
    /// The guest may only read it; of a composite disk, none of its partitions can be written.
    pub readonly: bool,
}

/// One partition of a composite disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionSummary {
    /// Its name in the partition table.
    pub label: String,
    /// The raw image.
    pub path: PathBuf,
    /// The guest may only read it.
    pub readonly: bool,
}

impl From<&DiskPlan> for DiskSummary {
    fn from(plan: &DiskPlan) -> Self {
        match &plan.source {
            DiskSource::Image { path, .. } => {
                Self { path: Some(path.clone()), partitions: Vec::new(), readonly: plan.readonly }
            }
            DiskSource::Partitions { partitions, .. } => {
                let summary = |partition: &PartitionPlan| PartitionSummary {
                    label: partition.label.clone(),
                    path: partition.path.clone(),
                    readonly: partition.readonly,
                };
                let partitions: Vec<_> = partitions.iter().map(summary).collect();
                let readonly = partitions.iter().all(|partition| partition.readonly);
                Self { path: None, partitions, readonly }
            }
        }
    }
}

impl From<&MachinePlan> for PlanSummary {
    fn from(plan: &MachinePlan) -> Self {
        let console = match plan.console {
            ConsoleKind::Virtio => "virtio",
            ConsoleKind::Serial => "serial",
        };
        Self {
            cpus: plan.cpus,
            memory_bytes: plan.memory_bytes,
            kernel: plan.kernel.clone(),
            initrd: plan.initrd.clone(),
            console: console.to_owned(),
            disks: plan.disks.iter().map(DiskSummary::from).collect(),
            shares: plan.shares.iter().map(|share| share.tag.clone()).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_composite_disk_is_told_by_its_partitions() {
        let part = |label: &str, readonly| PartitionPlan {
            label: label.to_owned(),
            path: format!("/img/{label}.img").into(),
            readonly,
        };
        let plain = DiskPlan::image(Path::new("/data/a.img"), true);
        let partitions = vec![part("boot", true), part("data", false)];
        let composite = DiskPlan {
            source: DiskSource::Partitions { partitions, said_raw: false },
            ..DiskPlan::image(Path::new(""), false)
        };
        let json = [plain, composite].map(|plan| serde_json::to_value(DiskSummary::from(&plan)).unwrap());
        assert_eq!(json[0], serde_json::json!({ "path": "/data/a.img", "readonly": true }));
        let expected = serde_json::json!({
            "partitions": [
                { "label": "boot", "path": "/img/boot.img", "readonly": true },
                { "label": "data", "path": "/img/data.img", "readonly": false },
            ],
            "readonly": false,
        });
        assert_eq!(json[1], expected);
        assert_eq!(serde_json::from_value::<DiskSummary>(expected).unwrap().path, None);
    }
}
