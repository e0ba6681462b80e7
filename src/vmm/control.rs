//! What all threads of one machine share: whether it should stop, how it ended, and whom to tell.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use crate::status::model::{BootStage, EndReason, MachineEvent};

/// The machine's shared switches.
#[derive(Debug, Default)]
pub(super) struct Control {
    stopping: AtomicBool,
    /// Whether vCPUs should rest outside the guest; what they look at before they enter it.
    pausing: AtomicBool,
    rest: Rest,
    ended: OnceLock<EndReason>,
    stages: AtomicU8,
    events: OnceLock<Sender<MachineEvent>>,
}

/// Where vCPUs wait while the machine is paused.
#[derive(Debug, Default)]
struct Rest {
    /// vCPUs that can enter the guest: started, and not resting.
    awake: Mutex<usize>,
    changed: Condvar,
}

impl Rest {
    fn lock(&self) -> MutexGuard<'_, usize> {
        self.awake.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
        // Under the lock, so that no vCPU falls asleep between its look and the call.
        let _held = self.rest.lock();
        self.rest.changed.notify_all();
    }

    /// Asks every vCPU to rest outside the guest, or to go on.
    pub(super) fn set_pausing(&self, pausing: bool) {
        let _held = self.rest.lock();
        self.pausing.store(pausing, Ordering::Release);
        self.rest.changed.notify_all();
    }

    /// Whether vCPUs should rest.
    pub(super) fn is_pausing(&self) -> bool {
        self.pausing.load(Ordering::Acquire)
    }

    /// Waits until no vCPU can enter the guest, at most so long; whether none can. They are kicked before this is called.
    pub(super) fn wait_for_rest(&self, patience: Duration) -> bool {
        let awake = |awake: &mut usize| *awake > 0;
        let waited = self.rest.changed.wait_timeout_while(self.rest.lock(), patience, awake);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// A vCPU's thread begins.
    pub(super) fn wake_up(&self) {
        *self.rest.lock() += 1;
    }

    /// A vCPU's thread ends.
    pub(super) fn fall_asleep(&self) {
        let mut awake = self.rest.lock();
        *awake = awake.saturating_sub(1);
        self.rest.changed.notify_all();
    }

    /// A vCPU rests until the machine goes on or is stopped.
    pub(super) fn rest(&self) {
        self.fall_asleep();
        let resting = |_: &mut usize| self.is_pausing() && !self.is_stopping();
        let awake = self.rest.changed.wait_while(self.rest.lock(), resting);
        *awake.unwrap_or_else(PoisonError::into_inner) += 1;
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
    use std::sync::Arc;

    use super::*;

    #[test]
    fn resting_vcpus_wait_for_the_word_and_a_stop_wakes_them_too() {
        let control = Arc::new(Control::default());
        let (entered, enters) = std::sync::mpsc::channel();
        let vcpu = {
            let control = Arc::clone(&control);
            control.wake_up();
            std::thread::spawn(move || {
                while !control.is_stopping() {
                    if control.is_pausing() {
                        control.rest();
                        entered.send(()).unwrap();
                    }
                    std::thread::yield_now();
                }
                control.fall_asleep();
            })
        };
        for _ in 0..100 {
            control.set_pausing(true);
            assert!(control.wait_for_rest(Duration::from_secs(30)));
            assert!(enters.try_recv().is_err(), "it rests");
            control.set_pausing(false);
            enters.recv().unwrap();
        }
        control.set_pausing(true);
        assert!(control.wait_for_rest(Duration::from_secs(30)));
        control.stop();
        vcpu.join().unwrap();
        assert!(control.wait_for_rest(Duration::from_secs(30)));
    }

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
