//! What a device tells its driver without being asked: DEVICE_NEEDS_RESET (virtio 1.2 §2.1.2), and that its
//! configuration has changed (§4.1.4.3.1).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{CONFIG_GENERATION, CONFIG_VECTOR, DEVICE_STATUS, status};
use crate::devices::registers::RegisterPages;

/// Sets DEVICE_NEEDS_RESET from any thread. A worker may raise it while a vCPU holds the transport and waits for that
/// worker, so it has a lock of its own, under which nothing waits.
#[derive(Debug, Clone)]
pub struct Alarm {
    registers: RegisterPages,
    raised: Arc<Mutex<bool>>,
}

impl Alarm {
    /// An alarm on these registers, not raised.
    pub(in crate::devices::virtio) fn new(registers: RegisterPages) -> Self {
        Self { registers, raised: Arc::default() }
    }

    /// The device cannot go on: the driver sees DEVICE_NEEDS_RESET until it resets the device. Returns the vector the
    /// driver wants to be told on.
    #[must_use]
    pub fn raise(&self) -> u16 {
        let mut raised = self.lock();
        *raised = true;
        let shown = self.registers.u8(DEVICE_STATUS);
        self.registers.set_u8(DEVICE_STATUS, shown | status::NEEDS_RESET);
        self.registers.u16(CONFIG_VECTOR)
    }

    /// The configuration structure has changed: the driver reads another generation of it. Returns the vector the driver
    /// wants to be told on.
    #[must_use]
    pub fn next_generation(&self) -> u16 {
        let _held = self.lock();
        let generation = self.registers.u8(CONFIG_GENERATION);
        self.registers.set_u8(CONFIG_GENERATION, generation.wrapping_add(1));
        self.registers.u16(CONFIG_VECTOR)
    }

    /// Whether it was raised since the last reset.
    #[must_use]
    pub fn is_raised(&self) -> bool {
        *self.lock()
    }

    pub(super) fn clear(&self) {
        *self.lock() = false;
    }

    /// Shows the driver's status bits and the alarm, of which neither may overwrite the other.
    pub(super) fn show(&self, status: u8) {
        let raised = self.lock();
        self.registers.set_u8(DEVICE_STATUS, if *raised { status | status::NEEDS_RESET } else { status });
    }

    fn lock(&self) -> MutexGuard<'_, bool> {
        self.raised.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
