//! What a client may ask of a machine that is there, beside its end.

use tokio::sync::oneshot;

use super::snapshot::State;

/// Something to be done to the machine. Each is over when it is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// vCPUs and devices rest.
    Pause,
    /// They go on.
    Resume,
    /// The guest should do with so much of its RAM.
    SetMemory {
        /// Bytes the guest keeps.
        target_bytes: u64,
    },
    /// The cable of a network interface is plugged in or out.
    SetLink {
        /// Which interface: its place in the spec, from 0, or its tap's name.
        interface: String,
        /// Plugged in.
        up: bool,
    },
    /// A disk is made larger, or has become so.
    ResizeDisk {
        /// Which one: its serial number, its name in the guest (`vda`), or its place in the spec, from 0.
        disk: String,
        /// The size it should have; without one, the size its image has by now.
        size_bytes: Option<u64>,
    },
}

impl Operation {
    /// Why this cannot be done in `state`, if it cannot.
    #[must_use]
    pub fn denied_in(&self, state: State) -> Option<&'static str> {
        match (self, state) {
            (Self::Pause, State::Running | State::Paused)
            | (Self::Resume, State::Running | State::Paused)
            | (
                Self::SetMemory { .. } | Self::SetLink { .. } | Self::ResizeDisk { .. },
                State::Booting | State::Running | State::Paused,
            ) => None,
            (
                Self::SetMemory { .. } | Self::SetLink { .. } | Self::ResizeDisk { .. },
                State::Preflight | State::Creating,
            ) => Some("the machine is not there yet"),
            (Self::Pause | Self::Resume, State::Preflight | State::Creating | State::Booting) => {
                Some("the guest's kernel has not come up yet")
            }
            (_, State::Stopping) => Some("the machine is being stopped"),
            (_, State::Stopped | State::Failed) => Some("the machine has ended"),
        }
    }
}

/// Why an operation was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The machine is not in a state for it.
    #[error("{0}")]
    NotNow(String),
    /// The machine has nothing that it is about, or what it has cannot do that: no other value would help.
    #[error("{0}")]
    Cannot(String),
    /// The value is none for it.
    #[error("{0}")]
    Bad(String),
    /// It was tried and failed.
    #[error("{0}")]
    Failed(String),
}

/// An operation that somebody waits for.
#[derive(Debug)]
pub struct Asked {
    /// What is to be done.
    pub operation: Operation,
    /// Who waits; gone when they gave up.
    pub answer: oneshot::Sender<Result<(), Refusal>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cable_is_plugged_while_there_is_a_machine() {
        for state in State::ALL {
            let expected = matches!(state, State::Booting | State::Running | State::Paused);
            let denied = Operation::SetLink { interface: "0".to_owned(), up: false }.denied_in(state);
            assert_eq!(denied.is_none(), expected, "{state:?}");
        }
    }

    #[test]
    fn only_a_guest_that_came_up_and_has_not_ended_is_paused_or_resumed() {
        for state in State::ALL {
            let expected = matches!(state, State::Running | State::Paused);
            for operation in [Operation::Pause, Operation::Resume] {
                assert_eq!(operation.denied_in(state).is_none(), expected, "{operation:?} in {state:?}");
            }
        }
    }

    #[test]
    fn memory_is_set_and_disks_are_resized_while_there_is_a_machine() {
        for state in State::ALL {
            let expected = matches!(state, State::Booting | State::Running | State::Paused);
            let resize = Operation::ResizeDisk { disk: "vda".to_owned(), size_bytes: None };
            for operation in [Operation::SetMemory { target_bytes: 0 }, resize] {
                assert_eq!(operation.denied_in(state).is_none(), expected, "{operation:?} in {state:?}");
            }
        }
    }
}
