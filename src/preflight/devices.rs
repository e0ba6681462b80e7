//! Devices a guest's network and sockets may use. None of them is needed to run a VM.

use super::finding::{CheckId, Finding, Findings, Layer};
use super::host::{Device, Host};
use super::text::errno_name;

/// A device, and what is not to be had without it.
struct Wanted {
    id: CheckId,
    path: &'static str,
    without: &'static str,
    fix: &'static str,
}

const WANTED: [Wanted; 3] = [
    Wanted {
        id: CheckId::NetTun,
        path: "/dev/net/tun",
        without: "no guest network (--net tap), unless an opened tap is inherited",
        fix: "`securityContext: {privileged: true}`, or a device plugin for tun; on the node: modprobe tun",
    },
    Wanted {
        id: CheckId::VhostNet,
        path: "/dev/vhost-net",
        without: "a guest's frames pass through Nestling's own threads, not the kernel's",
        fix: "`privileged: true`, or a device plugin for vhost-net; on the node: modprobe vhost_net",
    },
    Wanted {
        id: CheckId::VhostVsock,
        path: "/dev/vhost-vsock",
        without: "no --vsock vhost=true; vsock by Unix sockets needs no device",
        fix: "`privileged: true`, or a device plugin for vhost-vsock; on the node: modprobe vhost_vsock",
    },
];

/// Tells which of them are there.
pub(super) fn check(host: &dyn Host, findings: &mut Findings) {
    for wanted in WANTED {
        findings.add(wanted.judge(&host.device(wanted.path)));
    }
}

impl Wanted {
    fn judge(&self, device: &Device) -> Finding {
        let errno = match device {
            Device::Opened { .. } => {
                return Finding::ok(self.id, Layer::Network, format!("{} opens", self.path));
            }
            Device::Absent { errno } | Device::Refused { errno, .. } => *errno,
        };
        let why = if errno == 0 { "not a character device".to_owned() } else { errno_name(errno) };
        Finding::info(self.id, Layer::Network, format!("{}: {why}", self.path))
            .means(self.without)
            .fix(self.fix)
    }
}
