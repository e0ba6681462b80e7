//! What all threads of one machine share: whether it should stop, how it ended, and whom to tell.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::mpsc::Sender;

use crate::status::model::{BootStage, EndReason, MachineEvent};

/// The machine's shared switches.
#[derive(Debug, Default)]
pub(super) struct Control {
    stopping: AtomicBool,
    ended: OnceLock<EndReason>,
    stages: AtomicU8,
    events: OnceLock<Sender<MachineEvent>>,
}

impl Control {
    /// From now on events go to `events`.
    pub(super) fn listen(&self, events: Sender<MachineEvent>) {
        let _ = self.events.set(events);
    }

    /// Whether vCPUs should leave the guest.
    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Asks every vCPU to leave the guest.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    /// The machine ended. The first reason is the one that counts.
    pub(super) fn end(&self, reason: EndReason) {
        if self.ended.set(reason.clone()).is_ok() {
            self.tell(MachineEvent::Ended(reason));
        }
        self.stop();
    }

    /// A boot stage was reached; only the first time counts.
    pub(super) fn reach(&self, stage: BootStage) {
        let bit = 1 << stage as u8;
        if self.stages.fetch_or(bit, Ordering::Relaxed) & bit == 0 {
            self.tell(MachineEvent::Stage(stage));
        }
    }

    fn tell(&self, event: MachineEvent) {
        if let Some(events) = self.events.get() {
            // Nobody listens any more: the machine is being taken down.
            let _ = events.send(event);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_and_the_end_are_told_once() {
        let control = Control::default();
        let (sender, receiver) = std::sync::mpsc::channel();
        control.listen(sender);
        for _ in 0..3 {
            control.reach(BootStage::Kernel);
            control.end(EndReason::PowerOff);
            control.end(EndReason::Reset);
        }
        let told: Vec<_> = receiver.try_iter().collect();
        let kernel = MachineEvent::Stage(BootStage::Kernel);
        assert_eq!(told, [kernel, MachineEvent::Ended(EndReason::PowerOff)]);
        assert!(control.is_stopping());
    }
}
