//! The plan as the status shows it: every device that was asked for, with what the user needs to find it in the guest.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::spec::plan::{
    ConsoleKind, DiskPlan, DiskSource, MachinePlan, NetPlan, PartitionPlan, PortPlan, SharePlan, ShareServer,
    TapPlan, VsockHost, VsockPlan, linux_disk_name,
};

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
    /// The network interfaces in order.
    #[serde(default)]
    pub nets: Vec<NetSummary>,
    /// The named ports in order.
    #[serde(default)]
    pub ports: Vec<PortSummary>,
    /// The shared directories in order.
    #[serde(default)]
    pub shares: Vec<ShareSummary>,
    /// The vsock device, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock: Option<VsockSummary>,
    /// Whether there is a balloon.
    #[serde(default)]
    pub balloon: bool,
    /// Whether there is a watchdog.
    #[serde(default)]
    pub watchdog: bool,
}

/// One disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSummary {
    /// The name Linux gives it: `vda` for the first.
    #[serde(default)]
    pub name: String,
    /// Its serial number: `/dev/disk/by-id/virtio-SERIAL`.
    #[serde(default)]
    pub serial: String,
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

/// One network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetSummary {
    /// The address the guest finds it by.
    pub mac: String,
    /// The tap's name, if one was given; the device's `backend` tells that of any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tap: Option<String>,
    /// The tap's inherited descriptor, if it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fd: Option<i32>,
    /// Queue pairs that were asked for.
    pub queues: u16,
}

/// One named port: `/dev/virtio-ports/NAME`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortSummary {
    /// The name the guest finds it by.
    pub name: String,
    /// The host's socket.
    pub path: PathBuf,
}

/// One share: `mount -t virtiofs TAG DIR`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareSummary {
    /// What the guest mounts it by.
    pub tag: String,
    /// The host's directory, if Nestling serves it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dir: Option<PathBuf>,
    /// The socket of the virtiofsd that serves it, if the user runs that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
    /// The guest may only read it, as far as Nestling knows.
    pub readonly: bool,
}

/// The vsock device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockSummary {
    /// The guest's address.
    pub cid: u32,
    /// The host's socket; absent when the other end is the node's AF_VSOCK.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
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
            disks: plan.disks.iter().enumerate().map(disk).collect(),
            nets: plan.nets.iter().map(net).collect(),
            ports: plan.ports.iter().map(port).collect(),
            shares: plan.shares.iter().map(share).collect(),
            vsock: plan.vsock.as_ref().map(vsock),
            balloon: plan.balloon.is_some(),
            watchdog: plan.watchdog,
        }
    }
}

fn disk((index, plan): (usize, &DiskPlan)) -> DiskSummary {
    let (name, serial) = (linux_disk_name(index), plan.serial_of(index));
    match &plan.source {
        DiskSource::Image { path, .. } => {
            let (path, partitions, readonly) = (Some(path.clone()), Vec::new(), plan.readonly);
            DiskSummary { name, serial, path, partitions, readonly }
        }
        DiskSource::Partitions { partitions, .. } => {
            let partitions: Vec<_> = partitions.iter().map(partition).collect();
            let readonly = partitions.iter().all(|partition| partition.readonly);
            DiskSummary { name, serial, path: None, partitions, readonly }
        }
    }
}

fn partition(plan: &PartitionPlan) -> PartitionSummary {
    PartitionSummary { label: plan.label.clone(), path: plan.path.clone(), readonly: plan.readonly }
}

fn net(plan: &NetPlan) -> NetSummary {
    let mac: Vec<_> = plan.mac.iter().map(|byte| format!("{byte:02x}")).collect();
    let (tap, fd) = match &plan.tap {
        TapPlan::New => (None, None),
        TapPlan::Named(name) => (Some(name.clone()), None),
        TapPlan::Descriptor(fd) => (None, Some(*fd)),
    };
    NetSummary { mac: mac.join(":"), tap, fd, queues: plan.queues }
}

fn port(plan: &PortPlan) -> PortSummary {
    PortSummary { name: plan.name.clone(), path: plan.path.clone() }
}

fn share(plan: &SharePlan) -> ShareSummary {
    let tag = plan.tag.clone();
    match &plan.server {
        ShareServer::Directory { path, readonly, .. } => {
            ShareSummary { tag, dir: Some(path.clone()), socket: None, readonly: *readonly }
        }
        ShareServer::Socket(path) => {
            ShareSummary { tag, dir: None, socket: Some(path.clone()), readonly: false }
        }
    }
}

fn vsock(plan: &VsockPlan) -> VsockSummary {
    let path = match &plan.host {
        VsockHost::Sockets { path, .. } => Some(path.clone()),
        VsockHost::Kernel => None,
    };
    VsockSummary { cid: plan.cid, path }
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
        let json = [plain, composite].map(|plan| serde_json::to_value(disk((0, &plan))).unwrap());
        assert_eq!(
            json[0],
            serde_json::json!(
                { "name": "vda", "serial": "nestling-0", "path": "/data/a.img", "readonly": true }
            )
        );
        let expected = serde_json::json!({
            "name": "vda",
            "serial": "nestling-0",
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
