//! The device configuration structure as the driver reads it (virtio 1.2 §2.5, §4.1.4.6), and telling it of a change.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::layout::DEVICE_CONFIG;
use crate::devices::pci::msix::Msix;
use crate::devices::registers::RegisterPages;
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::common::Alarm;
use crate::devices::virtio::queue::ISR_CONFIG;

/// Shows a device's configuration structure anew and tells the driver, from any thread.
#[derive(Clone)]
pub struct ConfigChange {
    /// A device may keep this: the device is its transport's.
    device: Weak<dyn VirtioDevice>,
    registers: RegisterPages,
    alarm: Alarm,
    isr: Arc<AtomicU8>,
    msix: Arc<Msix>,
    /// Held from asking the device to showing what it said: of two who show, the later one has the later word. Nothing
    /// waits under it but for the device's own lock.
    showing: Arc<Mutex<()>>,
}

impl ConfigChange {
    pub(super) fn new(
        device: &Arc<dyn VirtioDevice>,
        registers: RegisterPages,
        alarm: Alarm,
        isr: Arc<AtomicU8>,
        msix: Arc<Msix>,
    ) -> Self {
        Self { device: Arc::downgrade(device), registers, alarm, isr, msix, showing: Arc::default() }
    }

    /// One that nobody hears, for a device without a transport.
    ///
    /// # Panics
    /// When the host has no memory for a page.
    #[cfg(any(test, feature = "test-utils"))]
    #[must_use]
    #[allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
    pub fn unheard(device: &Arc<dyn VirtioDevice>) -> Self {
        let registers = RegisterPages::new(1).unwrap();
        let wiring = Arc::new(crate::devices::wiring::mock::MockWiring::default());
        let msix = Msix::new(RegisterPages::new(1).unwrap(), 1, wiring).unwrap();
        Self::new(device, registers.clone(), Alarm::new(registers), Arc::default(), Arc::new(msix))
    }

    /// The structure has changed: the driver reads a new generation of it, and gets its configuration interrupt.
    pub fn announce(&self) {
        // Before and after: a driver that reads a field of the old structure and one of the new sees either change.
        let _ = self.alarm.next_generation();
        self.show();
        let vector = self.alarm.next_generation();
        self.isr.fetch_or(ISR_CONFIG, Ordering::Relaxed);
        self.msix.signal(vector);
    }

    /// Shows the structure as it is now, without telling.
    pub(super) fn show(&self) {
        if let Some(device) = self.device.upgrade() {
            let _held = self.showing.lock().unwrap_or_else(PoisonError::into_inner);
            self.registers.write(DEVICE_CONFIG, &device.config());
        }
    }
}

impl std::fmt::Debug for ConfigChange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConfigChange").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::time::Duration;

    use super::*;
    use crate::devices::virtio::testing::open_msix;
    use crate::devices::virtio::{Fault, Kind, Lane, Start};

    const GENERATION: usize = 21;

    /// Its configuration is one byte. The first time it is asked, it takes its time to answer.
    struct Slow {
        value: AtomicU8,
        registers: RegisterPages,
        generations: Mutex<Vec<u8>>,
        asked: AtomicBool,
        told: Sender<()>,
        go_on: Mutex<Receiver<()>>,
    }

    impl VirtioDevice for Slow {
        fn kind(&self) -> Kind {
            Kind { id: 63, name: "slow", class: [0xff, 0] }
        }

        fn queue_sizes(&self) -> Vec<u16> {
            Vec::new()
        }

        fn config(&self) -> Vec<u8> {
            let value = self.value.load(Ordering::SeqCst);
            self.generations.lock().unwrap().push(self.registers.u8(GENERATION));
            if !self.asked.swap(true, Ordering::SeqCst) {
                self.told.send(()).unwrap();
                let _ = self.go_on.lock().unwrap().recv();
            }
            vec![value]
        }

        fn start(&self, _start: Start<'_>) -> Result<Vec<Lane>, Fault> {
            Ok(Vec::new())
        }
    }

    #[test]
    fn of_two_who_show_the_structure_the_later_has_the_last_word() {
        let registers = RegisterPages::new(1).unwrap();
        let ((told, asked), (go, go_on)) = (channel(), channel());
        let device = Arc::new(Slow {
            value: AtomicU8::new(1),
            registers: registers.clone(),
            generations: Mutex::default(),
            asked: AtomicBool::new(false),
            told,
            go_on: Mutex::new(go_on),
        });
        let common = crate::devices::virtio::common::CommonConfig::new(registers.clone(), 0, &[], 1);
        let shared = Arc::clone(&device) as Arc<dyn VirtioDevice>;
        let change = ConfigChange::new(
            &shared,
            registers.clone(),
            common.alarm().clone(),
            Arc::default(),
            open_msix(1).1,
        );
        std::thread::scope(|threads| {
            threads.spawn(|| change.show());
            asked.recv().unwrap();
            device.value.store(2, Ordering::SeqCst);
            threads.spawn(|| change.announce());
            std::thread::sleep(Duration::from_millis(100));
            go.send(()).unwrap();
        });
        assert_eq!(registers.u8(DEVICE_CONFIG), 2, "an old answer is not shown over a new one");
        let generations = device.generations.lock().unwrap();
        assert_ne!(generations[0], generations[1], "the generation changes before the structure does");
        assert_ne!(generations[1], registers.u8(GENERATION), "and after it");
    }
}
