//! The gate between preflight and the machine.

use crate::backend::tap::TapError;
use crate::devices::virtio::vhost::VhostError;
use crate::preflight::{Layer, LiveHost, Preflight, Report, gate};
use crate::spec::plan::AllowBackend;
use crate::status::model::{EndReason, HostBackend};
use crate::vmm::MachineError;

/// Lets the machine be built when this node and this pod can run it, and says which KVM is underneath.
pub(super) fn admit(allow: AllowBackend) -> Result<HostBackend, EndReason> {
    let report = Preflight::quick(&LiveHost);
    judge(&report, allow)?;
    Ok(report.backend())
}

/// KVM refused to build the machine: the whole preflight looks for the layer that is missing. Where it finds none, KVM's
/// own words have to do.
pub(super) fn explain(refusal: String, allow: AllowBackend) -> EndReason {
    let found = judge(&Preflight::run(&LiveHost), allow).err();
    found.unwrap_or(EndReason::PreflightFailed { detail: refusal })
}

/// The layer of the node or the pod that fails, if it is that: a device or a capability is missing that the plan rightly
/// counts on.
pub(super) fn failing_layer(error: &MachineError) -> Option<Layer> {
    match error {
        MachineError::Tap(TapError::NoDevice | TapError::Open(_))
        | MachineError::Vhost(VhostError::NoDevice { .. }) => Some(Layer::Network),
        MachineError::Tap(TapError::NotPermitted { .. }) => Some(Layer::Permission),
        _ => None,
    }
}

fn judge(report: &Report, allow: AllowBackend) -> Result<(), EndReason> {
    gate(report, allow == AllowBackend::Any)
        .map_err(|refusal| EndReason::PreflightFailed { detail: refusal.to_string() })
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn what_the_pod_lacks_is_no_fault_of_the_spec() {
        let errno = io::Error::from_raw_os_error;
        let not_permitted = TapError::NotPermitted { name: "nestling".into() };
        let busy = TapError::Busy { name: "tap0".into() };
        let no_vhost = VhostError::NoDevice {
            path: "/dev/vhost-vsock",
            module: "vhost_vsock",
            without: "do without",
            cause: errno(libc::ENOENT),
        };
        for (error, layer) in [
            (MachineError::Tap(TapError::NoDevice), Some(Layer::Network)),
            (MachineError::Tap(TapError::Open(errno(libc::EPERM))), Some(Layer::Network)),
            (MachineError::Tap(not_permitted), Some(Layer::Permission)),
            (MachineError::Vhost(no_vhost), Some(Layer::Network)),
            (MachineError::Tap(busy), None),
            (MachineError::Vhost(VhostError::CidTaken { cid: 7 }), None),
        ] {
            assert_eq!(failing_layer(&error), layer, "{error}");
        }
    }
}
