//! What `/v1/status` prints, as one value. The JSON's shape is described in docs/status.md.

use serde::{Deserialize, Serialize};

use super::clock::Moment;
use super::model::{BootStage, EndReason, HostBackend, MachineFacts};
pub use super::plan::PlanSummary;

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
