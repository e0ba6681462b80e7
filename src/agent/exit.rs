//! The exit code of every command, with one meaning each. docs/exit-codes.md is the same table in prose.

use crate::preflight::EXIT_PREFLIGHT_FAILED;
use crate::status::client::ClientError;
use crate::status::model::EndReason;

/// Stands for a workload's status that cannot be passed on.
const NOT_A_CODE: u8 = 125;

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Exit {
    /// `run`: the guest powered off. Any other command: it did what it was asked.
    Success,
    /// `status --probe`: the answer is no.
    ProbeFailed,
    /// SIGINT, or Ctrl-C: stopped in order.
    Interrupted,
    /// SIGTERM, or a stop request on the socket: stopped in order.
    Terminated,
    /// This node or this pod cannot run the VM.
    PreflightFailed,
    /// A spec, flag, kernel, initrd, disk or socket path cannot be used.
    BadInput,
    /// The guest did not come up in time.
    BootTimeout,
    /// The guest kernel panicked.
    GuestPanic,
    /// The guest reset the machine.
    GuestReset,
    /// A vCPU triple-faulted.
    TripleFault,
    /// KVM could not go on running the guest.
    KvmError,
    /// The guest stopped feeding its watchdog.
    Watchdog,
    /// The VM does not fit the pod's memory limit.
    MemoryLimit,
    /// The machine was to end, and something of it did not within the grace period.
    Killed,
    /// Nestling itself failed.
    Internal,
    /// No VM answers on the socket.
    NoInstance,
    /// The VM that answers cannot do it now, or not at all, or failed at it.
    Refused,
    /// `run`: the program that the guest is for ended with this code, 1 to 199.
    Workload(u8),
}

impl Exit {
    /// Every exit that is Nestling's own, in the order of the codes.
    pub const ALL: [Self; 17] = [
        Self::Success,
        Self::ProbeFailed,
        Self::Interrupted,
        Self::Terminated,
        Self::PreflightFailed,
        Self::BadInput,
        Self::BootTimeout,
        Self::GuestPanic,
        Self::GuestReset,
        Self::TripleFault,
        Self::KvmError,
        Self::Watchdog,
        Self::MemoryLimit,
        Self::Killed,
        Self::Internal,
        Self::NoInstance,
        Self::Refused,
    ];

    /// The exit of a workload that ended with this status. 200 and more are Nestling's own, and no status is negative: those
    /// become 125, and the message tells which it was.
    fn of_workload(status: i32) -> Self {
        match u8::try_from(status) {
            Ok(0) => Self::Success,
            Ok(code @ 1..200) => Self::Workload(code),
            _ => Self::Workload(NOT_A_CODE),
        }
    }

    /// The process' exit code.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::ProbeFailed => 1,
            Self::Interrupted => 130,
            Self::Terminated => 143,
            Self::PreflightFailed => EXIT_PREFLIGHT_FAILED,
            Self::BadInput => 201,
            Self::BootTimeout => 202,
            Self::GuestPanic => 203,
            Self::GuestReset => 204,
            Self::TripleFault => 205,
            Self::KvmError => 206,
            Self::Watchdog => 207,
            Self::MemoryLimit => 208,
            Self::Killed => 209,
            Self::Internal => 210,
            Self::NoInstance => 211,
            Self::Refused => 212,
            Self::Workload(code) => code,
        }
    }

    /// The code's name, as the status, the logs and docs/exit-codes.md write it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::ProbeFailed => "probe-failed",
            Self::Interrupted => "interrupted",
            Self::Terminated => "terminated",
            Self::PreflightFailed => "preflight-failed",
            Self::BadInput => "bad-input",
            Self::BootTimeout => "boot-timeout",
            Self::GuestPanic => "guest-panic",
            Self::GuestReset => "guest-reset",
            Self::TripleFault => "triple-fault",
            Self::KvmError => "kvm-error",
            Self::Watchdog => "watchdog",
            Self::MemoryLimit => "memory-limit",
            Self::Killed => "killed",
            Self::Internal => "internal-error",
            Self::NoInstance => "no-instance",
            Self::Refused => "refused",
            Self::Workload(_) => "workload",
        }
    }
}

impl From<&EndReason> for Exit {
    fn from(reason: &EndReason) -> Self {
        match reason {
            EndReason::PowerOff => Self::Success,
            EndReason::WorkloadExited { status } => Self::of_workload(*status),
            EndReason::WorkloadKilled { signal } => Self::of_workload(signal.saturating_add(128)),
            EndReason::Reset => Self::GuestReset,
            EndReason::GuestPanic { .. } => Self::GuestPanic,
            EndReason::TripleFault => Self::TripleFault,
            EndReason::Watchdog { .. } => Self::Watchdog,
            EndReason::KvmError { .. } => Self::KvmError,
            EndReason::Stopped { by } if by == "SIGINT" => Self::Interrupted,
            EndReason::Stopped { .. } => Self::Terminated,
            EndReason::Killed { .. } => Self::Killed,
            EndReason::PreflightFailed { .. } => Self::PreflightFailed,
            EndReason::BadInput { .. } => Self::BadInput,
            EndReason::Internal { .. } => Self::Internal,
        }
    }
}

impl From<&ClientError> for Exit {
    fn from(error: &ClientError) -> Self {
        match error {
            ClientError::NoInstance { .. } | ClientError::NoAnswer { .. } => Self::NoInstance,
            ClientError::BadValue { .. } => Self::BadInput,
            ClientError::Refused { .. } => Self::Refused,
            ClientError::Here(_) => Self::Internal,
        }
    }
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        exit.code().into()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The rows `| 200 | preflight-failed | …` of the document.
    fn documented() -> Vec<(u8, String)> {
        include_str!("../../docs/exit-codes.md")
            .lines()
            .filter_map(|line| {
                let mut cells = line.strip_prefix('|')?.split('|').map(|cell| cell.trim().trim_matches('`'));
                Some((cells.next()?.parse().ok()?, cells.next()?.to_owned()))
            })
            .collect()
    }

    #[test]
    fn the_document_and_the_enum_agree() {
        let ours: Vec<_> = Exit::ALL.iter().map(|exit| (exit.code(), exit.name().to_owned())).collect();
        assert_eq!(documented(), ours);
    }

    #[test]
    fn a_workload_s_end_is_passed_on_as_far_as_it_can_be() {
        let code = |status| Exit::from(&EndReason::WorkloadExited { status }).code();
        assert_eq!([0, 1, 125, 199, 200, 255, -1].map(code), [0, 1, 125, 199, 125, 125, 125]);
        let killed = |signal| Exit::from(&EndReason::WorkloadKilled { signal }).code();
        assert_eq!([9, 11, 64, i32::MAX].map(killed), [137, 139, 192, 125]);
    }

    #[test]
    fn no_two_exits_share_a_code_or_a_name() {
        let codes: BTreeSet<_> = Exit::ALL.iter().map(|exit| exit.code()).collect();
        let names: BTreeSet<_> = Exit::ALL.iter().map(|exit| exit.name()).collect();
        assert_eq!((codes.len(), names.len()), (Exit::ALL.len(), Exit::ALL.len()));
    }
}
