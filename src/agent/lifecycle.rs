//! The states of one VM's life and what leads from one to the next.
//!
//! ```text
//!                                                              paused
//!                                                        Resumed │ ▲ Paused
//!            Admitted             Created            KernelUp    ▼ │
//! preflight ──────────▶ creating ─────────▶ booting ─────────▶ running
//!     │                    │                   │                  │
//!     │ Refused            │ Refused           │ EndBegan         │ EndBegan
//!     │                    │ (or EndBegan ──▶) ▼                  ▼
//!     │                    │                 stopping ◀───────────┘
//!     │                    │                   │
//!     │                    │        Down{orderly: false}    Down{orderly: true}
//!     ▼                    ▼                   ▼                  ▼
//!     └───────────────▶ failed ◀───────────────┴──────────▶ stopped
//! ```
//!
//! - A guest whose kernel never shows itself (no PCI device is configured) stays `booting`, and may end from there.
//! - Whoever begins the end (the guest, a signal, a request, an error) leads to `stopping`: vCPUs leave, disks flush.
//! - A signal while the machine is being built ends the run without waiting for what is read from storage.
//! - A paused machine ends as a running one does.

use crate::status::snapshot::State;

/// What happens to a VM, as far as its state is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LifeEvent {
    /// Preflight found nothing in the way.
    Admitted,
    /// The machine is built.
    Created,
    /// The guest's kernel showed itself, or something that only runs on top of it.
    KernelUp,
    /// vCPUs and devices rest.
    Paused,
    /// They go on.
    Resumed,
    /// The guest ended, or was asked to end.
    EndBegan,
    /// Preflight failed, or the machine could not be built.
    Refused,
    /// Every thread of the machine is gone.
    Down {
        /// Somebody wished this end.
        orderly: bool,
    },
}

/// The state after `event`, or `None` when the event changes nothing in this state.
#[must_use]
pub fn next(state: State, event: LifeEvent) -> Option<State> {
    use LifeEvent::{Admitted, Created, Down, EndBegan, KernelUp, Paused, Refused, Resumed};
    match (state, event) {
        (State::Preflight, Admitted) => Some(State::Creating),
        (State::Creating, Created) => Some(State::Booting),
        (State::Booting, KernelUp) => Some(State::Running),
        (State::Running, Paused) => Some(State::Paused),
        (State::Paused, Resumed) => Some(State::Running),
        (State::Creating | State::Booting | State::Running | State::Paused, EndBegan) => {
            Some(State::Stopping)
        }
        (State::Preflight | State::Creating, Refused) => Some(State::Failed),
        (State::Stopping, Down { orderly: true }) => Some(State::Stopped),
        (State::Stopping, Down { orderly: false }) => Some(State::Failed),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_event() -> impl Strategy<Value = LifeEvent> {
        prop_oneof![
            Just(LifeEvent::Admitted),
            Just(LifeEvent::Created),
            Just(LifeEvent::KernelUp),
            Just(LifeEvent::Paused),
            Just(LifeEvent::Resumed),
            Just(LifeEvent::EndBegan),
            Just(LifeEvent::Refused),
            any::<bool>().prop_map(|orderly| LifeEvent::Down { orderly }),
        ]
    }

    fn any_state() -> impl Strategy<Value = State> {
        proptest::sample::select(State::ALL.to_vec())
    }

    fn rank(state: State) -> usize {
        State::ALL.iter().position(|other| *other == state).expect("listed")
    }

    proptest! {
        #[test]
        fn a_life_only_goes_forward_but_for_a_resume(state in any_state(), event in any_event()) {
            if let Some(after) = next(state, event) {
                let resumed = (state, after) == (State::Paused, State::Running);
                prop_assert!(rank(after) > rank(state) || resumed);
            }
        }

        #[test]
        fn nothing_leaves_a_final_state(event in any_event()) {
            prop_assert_eq!(next(State::Stopped, event), None);
            prop_assert_eq!(next(State::Failed, event), None);
        }

        #[test]
        fn from_every_unfinished_state_an_end_can_be_reached(state in any_state(), orderly in any::<bool>()) {
            let mut state = state;
            for event in [LifeEvent::Refused, LifeEvent::EndBegan, LifeEvent::Down { orderly }] {
                state = next(state, event).unwrap_or(state);
            }
            prop_assert!(state.is_final());
        }

        #[test]
        fn any_sequence_passes_each_state_at_most_once_but_for_pauses(events in proptest::collection::vec(any_event(), 0..40)) {
            let mut state = State::Preflight;
            let mut seen = vec![state];
            for event in events {
                if let Some(after) = next(state, event) {
                    let of_a_pause = matches!(after, State::Running | State::Paused);
                    prop_assert!(of_a_pause || !seen.contains(&after));
                    seen.push(after);
                    state = after;
                }
            }
        }

        #[test]
        fn only_a_built_machine_runs_and_only_a_stopping_one_is_down(state in any_state(), event in any_event()) {
            match next(state, event) {
                Some(State::Running) => prop_assert!(matches!(state, State::Booting | State::Paused)),
                Some(State::Paused) => prop_assert_eq!(state, State::Running),
                Some(State::Stopped) => prop_assert_eq!(state, State::Stopping),
                _ => {}
            }
        }
    }
}
