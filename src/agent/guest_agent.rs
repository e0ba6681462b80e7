//! What the guest's agent means for the VM's life.

use nestling_protocol::Outcome;
use tokio::sync::mpsc::Receiver;

use super::life::Life;
use crate::guest::{AgentEvent, Guest};
use crate::status::clock::Moment;
use crate::status::model::{BootStage, EndReason};

/// The agent, as far as it has been heard.
pub(super) struct Agent {
    pub(super) guest: Guest,
    pub(super) events: Receiver<(AgentEvent, Moment)>,
    /// How the workload ended, once it has.
    pub(super) outcome: Option<Outcome>,
}

impl Agent {
    /// Takes note of what it told.
    pub(super) fn hear(&mut self, event: AgentEvent, at: Moment, life: &mut Life) {
        match event {
            AgentEvent::Joined { agent, ended } => {
                tracing::info!(target: "nestling", "the guest's agent {agent} is there");
                self.outcome = self.outcome.or(ended);
                life.reach(BootStage::Agent, at);
            }
            AgentEvent::Left => tracing::info!(target: "nestling", "the guest's agent has left"),
            AgentEvent::Started { pid } => {
                tracing::info!(target: "nestling", "the workload runs as process {pid} of the guest");
            }
            AgentEvent::Ended(outcome) => {
                tracing::info!(target: "nestling", "the workload {outcome}");
                self.outcome = Some(outcome);
            }
            AgentEvent::Stopping(step) => {
                tracing::info!(target: "nestling", "the guest stops: {step:?}");
            }
            AgentEvent::Problem(sentence) => tracing::warn!(target: "guest", "{sentence}"),
        }
    }

    /// A power-off after the workload's end is that end, and else that of who asked for it; any other reason says more.
    pub(super) fn explain(
        &mut self,
        reason: EndReason,
        stopped_by: Option<String>,
        life: &mut Life,
    ) -> EndReason {
        // What was told before the machine ended may not have been heard yet.
        while let Ok((event, at)) = self.events.try_recv() {
            self.hear(event, at, life);
        }
        match (reason, self.outcome) {
            (EndReason::PowerOff, Some(Outcome::Status(status))) => EndReason::WorkloadExited { status },
            (EndReason::PowerOff, Some(Outcome::Signal(signal))) => EndReason::WorkloadKilled { signal },
            (EndReason::PowerOff, None) => {
                stopped_by.map_or(EndReason::PowerOff, |by| EndReason::Stopped { by })
            }
            (reason, _) => reason,
        }
    }
}
