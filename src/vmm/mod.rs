//! The machine: memory, vCPU threads, interrupts, and their assembly. Knows KVM; knows nothing of pods.

use std::sync::mpsc::Sender;

use crate::spec::plan::MachinePlan;
use crate::status::model::{MachineEvent, MachineFacts};

/// Why a machine could not be built or started. The text is one sentence with the path or value and the mend.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {}

/// One virtual machine.
#[derive(Debug)]
pub struct Machine {}

impl Machine {
    /// Builds the machine: RAM, kernel, tables, devices, vCPUs. Nothing runs yet.
    ///
    /// # Errors
    /// Anything in the plan that cannot be had here: see [`MachineError`].
    pub fn new(_plan: &MachinePlan) -> Result<Self, MachineError> {
        Ok(Self {})
    }

    /// Starts every vCPU. Events arrive on `events` from the machine's own threads, each at most once.
    ///
    /// # Errors
    /// When a thread cannot be created.
    pub fn start(&mut self, _events: Sender<MachineEvent>) -> Result<(), MachineError> {
        Ok(())
    }

    /// What the machine looks like now. Cheap enough for a request, not for a loop.
    #[must_use]
    pub fn facts(&self) -> MachineFacts {
        MachineFacts::default()
    }

    /// The last lines of the guest's console, newest last, control characters removed.
    #[must_use]
    pub fn console_tail(&self) -> Vec<String> {
        Vec::new()
    }

    /// Stops every vCPU and device worker, flushes the disks, and returns when all threads are gone. Idempotent.
    pub fn stop(&mut self) {}
}
