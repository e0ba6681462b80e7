//! The agent's side of the machine: what it needs of one, and where it meets `crate::vmm`.

use std::sync::mpsc::{self, Sender};
use std::thread;

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::chain::chain;
use super::gate::{explain, failing_layer};
use crate::backend::vsock::Inside;
use crate::spec::plan::RunPlan;
use crate::status::clock::{Clock, Moment};
use crate::status::model::{EndReason, MachineEvent, MachineFacts};
use crate::status::operation::{Operation, Refusal};
use crate::vmm::{ConsoleIo, Machine, MachineError};

/// A machine as the agent sees it. Tests have one without KVM.
pub(super) trait Vm: Send + 'static {
    /// Starts the vCPUs; what happens then is told on `events`.
    fn start(&mut self, events: Sender<MachineEvent>) -> Result<(), EndReason>;
    /// What it looks like now.
    fn facts(&self) -> MachineFacts;
    /// The guest's last console lines.
    fn console_tail(&self) -> Vec<String>;
    /// Does what a client asked for.
    fn carry_out(&mut self, operation: &Operation) -> Result<(), Refusal>;
    /// Stops everything; returns when all threads are gone. The error says which did not end in time.
    fn stop(&mut self) -> Result<(), String>;
}

impl Vm for Machine {
    fn start(&mut self, events: Sender<MachineEvent>) -> Result<(), EndReason> {
        Machine::start(self, events).map_err(|error| EndReason::Internal { detail: chain(&error) })
    }

    fn facts(&self) -> MachineFacts {
        Machine::facts(self)
    }

    fn console_tail(&self) -> Vec<String> {
        Machine::console_tail(self)
    }

    fn carry_out(&mut self, operation: &Operation) -> Result<(), Refusal> {
        Machine::carry_out(self, operation)
    }

    fn stop(&mut self) -> Result<(), String> {
        Machine::stop(self).map_err(|stuck| stuck.to_string())
    }
}

/// Builds the machine. A plan that cannot be had is the user's to mend; a KVM that refuses, and a device that is not there,
/// is the node's or the pod's.
pub(super) fn create(plan: &RunPlan, console: ConsoleIo, inside: &Inside) -> Result<Machine, EndReason> {
    Machine::new(&plan.machine, console, inside).map_err(|error| match (&error, failing_layer(&error)) {
        (MachineError::Kvm { .. }, _) => explain(chain(&error), plan.allow_backend),
        (error, Some(layer)) => {
            EndReason::PreflightFailed { detail: format!("the {layer} layer fails: {}", chain(error)) }
        }
        (error, None) if error.is_bad_input() => EndReason::BadInput { detail: chain(error) },
        (error, None) => EndReason::Internal { detail: chain(error) },
    })
}

/// A machine's event and when it came.
pub(super) type TimedEvent = (MachineEvent, Moment);

/// Carries the machine's events from its threads to the agent, stamped on arrival. The channel needs no bound: a
/// machine sends each event at most once. The thread ends when the machine has dropped its end.
pub(super) fn bridge(clock: Clock) -> std::io::Result<(Sender<MachineEvent>, UnboundedReceiver<TimedEvent>)> {
    let (from_machine, events) = mpsc::channel();
    let (to_agent, timed_events) = unbounded_channel();
    thread::Builder::new().name("machine-events".into()).stack_size(64 << 10).spawn(move || {
        for event in events {
            if to_agent.send((event, clock.now())).is_err() {
                return;
            }
        }
    })?;
    Ok((from_machine, timed_events))
}
