//! Carries out the transitions of [`super::lifecycle`]: each is published once and logged once.

use std::sync::Arc;

use super::exit::Exit;
use super::lifecycle::{LifeEvent, next};
use crate::status::clock::Moment;
use crate::status::durable::leave_last_words;
use crate::status::model::{BootStage, EndReason};
use crate::status::publisher::Publisher;
use crate::status::snapshot::{End, State};

/// The state, and the publisher that everybody hears it from.
#[derive(Debug)]
pub(super) struct Life {
    publisher: Arc<Publisher>,
    state: State,
}

impl Life {
    pub(super) fn begin(publisher: Arc<Publisher>) -> Self {
        let state = publisher.state();
        Self { publisher, state }
    }

    /// Where the VM is in its life.
    pub(super) fn state(&self) -> State {
        self.state
    }

    /// Takes the step that `event` leads to, if it leads anywhere.
    pub(super) fn step(&mut self, event: LifeEvent) {
        if let Some(state) = next(self.state, event) {
            self.state = state;
            tracing::info!(target: "nestling", "state {}", state.name());
            self.publisher.enter(state);
        }
    }

    /// A boot stage was reached; the kernel's leads to `running`.
    pub(super) fn reach(&mut self, stage: BootStage, at: Moment) {
        tracing::info!(target: "nestling", "boot stage {} after {} ms", stage.name(), at.ms);
        self.publisher.reach(stage, at);
        if stage >= BootStage::Kernel {
            self.step(LifeEvent::KernelUp);
        }
    }

    /// The last step: the reason, the exit code and, after an end nobody wished, the console's last lines go
    /// to the status, the log and the termination log.
    pub(super) fn finish(mut self, reason: EndReason, console_tail: Vec<String>) -> Exit {
        let exit = Exit::from(&reason);
        let orderly = reason.is_orderly();
        let first = if orderly { LifeEvent::EndBegan } else { LifeEvent::Refused };
        for event in [first, LifeEvent::Down { orderly }] {
            self.state = next(self.state, event).unwrap_or(self.state);
        }
        let end = End {
            exit_code: exit.code(),
            exit_name: exit.name().to_owned(),
            message: reason.to_string(),
            last_exit: if orderly { None } else { self.last_exit() },
            console_tail: if orderly { Vec::new() } else { console_tail },
            reason,
        };
        log_end(self.state, &end);
        leave_last_words(self.state, &end);
        self.publisher.finish(self.state, &end);
        exit
    }

    /// The vCPUs' last exits, as far as the machine tells them.
    fn last_exit(&self) -> Option<String> {
        let vcpus = self.publisher.status().machine.vcpus;
        let exits: Vec<_> = vcpus
            .iter()
            .filter_map(|vcpu| vcpu.last_exit.as_ref().map(|exit| format!("vCPU {}: {exit}", vcpu.id)))
            .collect();
        if exits.is_empty() { None } else { Some(exits.join("; ")) }
    }
}

/// One line for an end that was wished; the whole story for any other.
fn log_end(state: State, end: &End) {
    let last_exit = end.last_exit.as_ref().map(|exit| format!("; last exit: {exit}")).unwrap_or_default();
    let sentence = format!(
        "state {}: {}{last_exit}; exit code {} ({})",
        state.name(),
        end.message,
        end.exit_code,
        end.exit_name
    );
    if end.reason.is_orderly() {
        tracing::info!(target: "nestling", "{sentence}");
        return;
    }
    tracing::error!(target: "nestling", "{sentence}");
    if !end.console_tail.is_empty() {
        tracing::error!(target: "nestling", "the guest's last console lines:");
    }
    for line in &end.console_tail {
        tracing::error!(target: "guest", "{line}");
    }
}
