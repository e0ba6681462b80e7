//! An end's reason in words.

use std::fmt;
use std::time::Duration;

use super::model::EndReason;

impl fmt::Display for EndReason {
    /// One sentence without a full stop.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PowerOff => f.write_str("the guest powered off"),
            Self::WorkloadExited { status: 0 } => {
                f.write_str("the workload exited with status 0, and the guest powered off")
            }
            Self::WorkloadExited { status } => write!(f, "the workload exited with status {status}"),
            Self::WorkloadKilled { signal } => write!(f, "the workload was killed by signal {signal}"),
            Self::Reset => f.write_str("the guest reset the machine"),
            Self::GuestPanic { message: Some(message) } => write!(f, "the guest kernel panicked: {message}"),
            Self::GuestPanic { message: None } => f.write_str("the guest kernel panicked"),
            Self::TripleFault => f.write_str("a vCPU triple-faulted: the guest lost its exception handlers"),
            Self::Watchdog { silent_ms } => {
                let seconds = Duration::from_millis(*silent_ms).as_secs_f64();
                write!(f, "the watchdog expired: the guest had not fed it for {seconds} s")
            }
            Self::KvmError { detail } => write!(f, "KVM could not run the guest: {detail}"),
            Self::Stopped { by } => write!(f, "the machine was stopped by {by}"),
            Self::PreflightFailed { detail } => write!(f, "this node or pod cannot run the VM: {detail}"),
            Self::BadInput { detail } | Self::Killed { detail } => f.write_str(detail),
            Self::Internal { detail } => write!(f, "Nestling failed: {detail}"),
        }
    }
}

impl EndReason {
    /// Whether somebody wished this end: the guest by powering off, or a person or a pod from outside.
    #[must_use]
    pub fn is_orderly(&self) -> bool {
        matches!(
            self,
            Self::PowerOff | Self::WorkloadExited { .. } | Self::WorkloadKilled { .. } | Self::Stopped { .. }
        )
    }
}
