//! The exit code of every command, with one meaning each. docs/exit-codes.md is the same table in prose.

use crate::preflight::EXIT_PREFLIGHT_FAILED;
use crate::status::client::ClientError;
use crate::status::model::EndReason;

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Exit {
    /// `run`: the guest powered off. Any other command: it did what it was asked.
    Success = 0,
    /// `status --probe`: the answer is no.
    ProbeFailed = 1,
    /// SIGINT, or Ctrl-C: stopped in order.
    Interrupted = 130,
    /// SIGTERM, or a stop request on the socket: stopped in order.
    Terminated = 143,
    /// This node or this pod cannot run the VM.
    PreflightFailed = EXIT_PREFLIGHT_FAILED,
    /// A spec, flag, kernel, initrd, disk or socket path cannot be used.
    BadInput = 201,
    /// The guest did not come up in time.
    BootTimeout = 202,
    /// The guest kernel panicked.
    GuestPanic = 203,
    /// The guest reset the machine.
    GuestReset = 204,
    /// A vCPU triple-faulted.
    TripleFault = 205,
    /// KVM could not go on running the guest.
    KvmError = 206,
    /// The guest stopped feeding its watchdog.
    Watchdog = 207,
    /// The VM does not fit the pod's memory limit.
    MemoryLimit = 208,
    /// The machine was to end, and something of it did not within the grace period.
    Killed = 209,
    /// Nestling itself failed.
    Internal = 210,
    /// No VM answers on the socket.
    NoInstance = 211,
    /// The VM that answers cannot do it now, or not at all, or failed at it.
    Refused = 212,
}

impl Exit {
    /// Every exit, in the order of the codes.
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

    /// The process' exit code.
    #[must_use]
    pub fn code(self) -> u8 {
        self as u8
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
        }
    }
}

impl From<&EndReason> for Exit {
    fn from(reason: &EndReason) -> Self {
        match reason {
            EndReason::PowerOff => Self::Success,
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
    fn no_two_exits_share_a_code_or_a_name() {
        let codes: BTreeSet<_> = Exit::ALL.iter().map(|exit| exit.code()).collect();
        let names: BTreeSet<_> = Exit::ALL.iter().map(|exit| exit.name()).collect();
        assert_eq!((codes.len(), names.len()), (Exit::ALL.len(), Exit::ALL.len()));
    }
}
