//! What the guest's agent means for the VM's life.

use nestling_protocol::Outcome;
use tokio::sync::mpsc::Receiver;

use super::life::Life;
use crate::guest::{AgentEvent, Guest};
use crate::status::clock::Moment;
use crate::status::model::{BootStage, EndReason};

/// Of what the agent tells, as much may wait to be heard; then it waits.
pub(super) const EVENTS: usize = 64;
/// Lines of the log that one VM's agent can cause. It is the guest's, and can tell the same thing a million times.
const LINES: u32 = 100;

/// The agent, as far as it has been heard.
pub(super) struct Agent {
    pub(super) guest: Guest,
    pub(super) events: Receiver<(AgentEvent, Moment)>,
    /// How the workload ended, once it has.
    outcome: Option<Outcome>,
    has_joined: bool,
    lines: u32,
}

impl Agent {
    /// One that has not been heard yet.
    pub(super) fn new(guest: Guest, events: Receiver<(AgentEvent, Moment)>) -> Self {
        Self { guest, events, outcome: None, has_joined: false, lines: 0 }
    }

    /// Takes note of what it told.
    pub(super) fn hear(&mut self, event: &AgentEvent, at: Moment, life: &mut Life) {
        match event {
            AgentEvent::Joined { ended, .. } => {
                self.outcome = self.outcome.or(*ended);
                if !std::mem::replace(&mut self.has_joined, true) {
                    life.reach(BootStage::Agent, at);
                }
            }
            AgentEvent::Ended(outcome) => self.outcome = Some(*outcome),
            AgentEvent::Left
            | AgentEvent::Started { .. }
            | AgentEvent::Stopping(_)
            | AgentEvent::Problem(_) => {}
        }
        self.lines = self.lines.saturating_add(1);
        match self.lines {
            ..LINES => log(event),
            LINES => {
                tracing::warn!(target: "nestling", "the guest's agent says much, and is not quoted any more");
            }
            _ => {}
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
        for _ in 0..EVENTS {
            let Ok((event, at)) = self.events.try_recv() else { break };
            self.hear(&event, at, life);
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

fn log(event: &AgentEvent) {
    match event {
        AgentEvent::Joined { agent, .. } => {
            tracing::info!(target: "nestling", "the guest's agent {agent} is there");
        }
        AgentEvent::Left => tracing::info!(target: "nestling", "the guest's agent has left"),
        AgentEvent::Started { pid } => {
            tracing::info!(target: "nestling", "the workload runs as process {pid} of the guest");
        }
        AgentEvent::Ended(outcome) => tracing::info!(target: "nestling", "the workload {outcome}"),
        AgentEvent::Stopping(step) => tracing::info!(target: "nestling", "the guest stops: {step:?}"),
        AgentEvent::Problem(sentence) => tracing::warn!(target: "guest", "{sentence}"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use nestling_protocol::Configuration;
    use tokio::sync::mpsc;

    use super::*;
    use crate::backend::vsock::Inside;
    use crate::status::clock::Clock;
    use crate::status::publisher::Publisher;
    use crate::status::snapshot::PlanSummary;

    fn life() -> (Arc<Publisher>, Life) {
        let publisher = Arc::new(Publisher::new(Clock::begin(), PlanSummary::default(), None));
        (Arc::clone(&publisher), Life::begin(publisher))
    }

    fn agent() -> (mpsc::Sender<(AgentEvent, Moment)>, Agent) {
        let (tell, events) = mpsc::channel(EVENTS);
        let inside = Inside::new().expect("a descriptor");
        let guest = Guest::listen(&inside, Configuration::default(), Clock::begin(), tell.clone());
        (tell, Agent::new(guest, events))
    }

    #[test]
    fn the_workload_s_end_explains_a_power_off_and_nothing_else() {
        let now = Clock::begin().now();
        for (ended, stopped_by, reason, expected) in [
            (None, None, EndReason::PowerOff, EndReason::PowerOff),
            (None, Some("SIGTERM"), EndReason::PowerOff, EndReason::Stopped { by: "SIGTERM".into() }),
            (
                Some(Outcome::Status(3)),
                Some("SIGTERM"),
                EndReason::PowerOff,
                EndReason::WorkloadExited { status: 3 },
            ),
            (Some(Outcome::Signal(9)), None, EndReason::PowerOff, EndReason::WorkloadKilled { signal: 9 }),
            (Some(Outcome::Status(3)), None, EndReason::Reset, EndReason::Reset),
        ] {
            let (tell, mut agent) = agent();
            if let Some(outcome) = ended {
                tell.try_send((AgentEvent::Ended(outcome), now.clone())).expect("room");
            }
            let (_, mut life) = life();
            assert_eq!(agent.explain(reason, stopped_by.map(str::to_owned), &mut life), expected);
        }
    }

    #[test]
    fn a_guest_whose_agent_comes_and_goes_reaches_the_stage_once() {
        let (_tell, mut agent) = agent();
        let (publisher, mut life) = life();
        let now = Clock::begin().now();
        for _ in 0..1000 {
            agent.hear(&AgentEvent::Joined { agent: "0.1.0".into(), ended: None }, now.clone(), &mut life);
            agent.hear(&AgentEvent::Left, now.clone(), &mut life);
        }
        assert_eq!(publisher.status().stages.len(), 1);
    }
}
