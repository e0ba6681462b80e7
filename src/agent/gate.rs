//! The gate between preflight and the machine.

use crate::preflight::{LiveHost, Preflight, Report, gate};
use crate::spec::plan::AllowBackend;
use crate::status::model::{EndReason, HostBackend};

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

fn judge(report: &Report, allow: AllowBackend) -> Result<(), EndReason> {
    gate(report, allow == AllowBackend::Any)
        .map_err(|refusal| EndReason::PreflightFailed { detail: refusal.to_string() })
}
