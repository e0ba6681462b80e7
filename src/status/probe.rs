//! The three questions Kubernetes asks, answered from a status.

use super::model::BootStage;
use super::snapshot::{State, Status};

/// Which question is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probe {
    /// Has the guest's kernel come up?
    Startup,
    /// Is the VM alive, or at least on its way?
    Live,
    /// Does the guest's init run?
    Ready,
}

impl Probe {
    /// The answer.
    ///
    /// - `startup`: stage `kernel` was reached, and the machine is not on its way down.
    /// - `live`: the machine is being checked, built, booted, run or taken down; it has not ended.
    /// - `ready`: state `running`, and stage `init` was reached.
    #[must_use]
    pub fn holds(self, status: &Status) -> bool {
        match self {
            Self::Startup => is_up(status.state) && status.has_reached(BootStage::Kernel),
            Self::Live => !status.state.is_final(),
            Self::Ready => status.state == State::Running && status.has_reached(BootStage::Init),
        }
    }
}

fn is_up(state: State) -> bool {
    matches!(state, State::Booting | State::Running | State::Paused)
}
