//! Pausing and stopping: either ends in bounded time, whatever a device waits for.

use std::time::{Duration, Instant};

use super::Machine;

/// How long a pause waits for vCPUs and devices.
const PAUSE_PATIENCE: Duration = Duration::from_secs(8);
/// How long a stop waits for vCPUs, and how long for them and the devices. With a pause before it that is less than the 30
/// seconds after which Kubernetes sends SIGKILL.
const VCPU_PATIENCE: Duration = Duration::from_secs(5);
const STOP_PATIENCE: Duration = Duration::from_secs(15);

/// Something did not come to rest in time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} did not finish what was begun within {patience:?}", what.join(", "))]
pub struct Stuck {
    /// Which devices, each in words.
    what: Vec<String>,
    /// How long they were waited for.
    patience: Duration,
}

impl Machine {
    /// Lets every vCPU leave the guest and every device finish what it has begun; returns when all of them rest. Idempotent.
    /// The clock goes on: the guest finds the time that passed.
    ///
    /// # Errors
    /// When one does not come to rest in time, a disk that does not answer, say. Then the machine goes on.
    pub fn pause(&mut self) -> Result<(), Stuck> {
        let deadline = Instant::now() + PAUSE_PATIENCE;
        self.control.set_pausing(true);
        self.kick();
        if !self.control.wait_for_rest(PAUSE_PATIENCE) {
            let what = self.who_holds_a_vcpu();
            // No device rests yet, and one of them cannot even be asked.
            self.control.set_pausing(false);
            return Err(Stuck { what, patience: PAUSE_PATIENCE });
        }
        self.devices.pause(deadline).map_err(|what| {
            self.resume();
            Stuck { what, patience: PAUSE_PATIENCE }
        })
    }

    /// Lets devices and vCPUs go on. Idempotent.
    pub fn resume(&mut self) {
        self.devices.resume();
        self.control.set_pausing(false);
    }

    /// Stops every vCPU and device worker, flushes the disks, and returns when all threads are gone. Idempotent.
    ///
    /// # Errors
    /// When a device does not stop in time. All others have, and are flushed; the threads of this one are left behind, with
    /// the RAM they may use.
    pub fn stop(&mut self) -> Result<(), Stuck> {
        if let Some(stopped) = &self.stopped {
            return stopped.clone();
        }
        let stopped = self.take_down();
        if stopped.is_err() {
            std::mem::forget(self.ram.memory().clone());
        }
        self.stopped = Some(stopped.clone());
        stopped
    }

    fn take_down(&mut self) -> Result<(), Stuck> {
        let deadline = Instant::now() + STOP_PATIENCE;
        self.control.stop();
        self.console.cancel();
        self.kick();
        // A vCPU that waits for a stuck device must not keep the others from being flushed.
        self.control.wait_for_rest(VCPU_PATIENCE);
        let down = self.devices.shut_down(deadline);
        let threads: Vec<_> = self.vcpus.iter_mut().filter_map(|slot| slot.thread.take()).collect();
        down.map_err(|what| Stuck { what, patience: STOP_PATIENCE })?;
        if !self.control.wait_for_rest(deadline.saturating_duration_since(Instant::now())) {
            return Err(Stuck { what: self.who_holds_a_vcpu(), patience: STOP_PATIENCE });
        }
        // Not before the devices are down: a thread that started an io_uring cannot end while the kernel is stuck in it.
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a vCPU thread panicked");
            }
        }
        Ok(())
    }

    /// Makes every vCPU leave the guest.
    fn kick(&self) {
        for slot in &self.vcpus {
            if let Some(thread) = &slot.thread {
                slot.kicker.kick(thread);
            }
        }
    }

    fn who_holds_a_vcpu(&self) -> Vec<String> {
        let held = self.devices.held();
        if held.is_empty() { vec!["a vCPU".to_owned()] } else { held }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Told when it was stopped, if it was.
        let _ = self.stop();
    }
}
