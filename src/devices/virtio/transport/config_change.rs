//! The device configuration structure as the driver reads it (virtio 1.2 §2.5, §4.1.4.6), and telling it of a change.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Weak};

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
}

impl ConfigChange {
    pub(super) fn new(
        device: &Arc<dyn VirtioDevice>,
        registers: RegisterPages,
        alarm: Alarm,
        isr: Arc<AtomicU8>,
        msix: Arc<Msix>,
    ) -> Self {
        Self { device: Arc::downgrade(device), registers, alarm, isr, msix }
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
        self.show();
        let vector = self.alarm.next_generation();
        self.isr.fetch_or(ISR_CONFIG, Ordering::Relaxed);
        self.msix.signal(vector);
    }

    /// Shows the structure as it is now, without telling.
    pub(super) fn show(&self) {
        if let Some(device) = self.device.upgrade() {
            self.registers.write(DEVICE_CONFIG, &device.config());
        }
    }
}

impl std::fmt::Debug for ConfigChange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConfigChange").finish_non_exhaustive()
    }
}
