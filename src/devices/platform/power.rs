//! ACPI sleep and reset registers (ACPI 6.5 §4.8.3.6, §4.8.3.7): three one-byte ports.

use crate::devices::bus::BusDevice;
use crate::x86::layout::{RESET_PORT, RESET_VALUE, S5_SLEEP_TYPE, SLEEP_CONTROL_PORT, SLEEP_STATUS_PORT};

/// Sleep control register: enter the sleep state named by bits 2 to 4.
const SLEEP_ENABLE: u8 = 1 << 5;
/// Where the sleep type is in that register.
const SLEEP_TYPE_SHIFT: u8 = 2;
const SLEEP_TYPE_MASK: u8 = 7;

/// First port of the block.
pub const FIRST_PORT: u16 = SLEEP_CONTROL_PORT;
/// Ports in the block.
pub const PORTS: u64 = 3;

/// What the guest asked of the power registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerRequest {
    /// S5: soft off.
    Off,
    /// The reset register was written.
    Reset,
}

/// The register block. It tells its owner and remembers nothing.
pub struct PowerControl {
    on_request: Box<dyn Fn(PowerRequest) + Send + Sync>,
}

impl PowerControl {
    /// Calls `on_request` on the vCPU thread that wrote the register.
    #[must_use]
    pub fn new(on_request: impl Fn(PowerRequest) + Send + Sync + 'static) -> Self {
        Self { on_request: Box::new(on_request) }
    }
}

impl BusDevice for PowerControl {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        // Sleep status: no wake event is pending. The others read as zero.
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        const SLEEP_CONTROL: u64 = 0;
        const RESET: u64 = (RESET_PORT - FIRST_PORT) as u64;
        const _: () = assert!(SLEEP_STATUS_PORT == FIRST_PORT + 1 && RESET == PORTS - 1);
        match (offset, data) {
            (SLEEP_CONTROL, &[value]) if is_soft_off(value) => (self.on_request)(PowerRequest::Off),
            (RESET, &[RESET_VALUE]) => (self.on_request)(PowerRequest::Reset),
            _ => {}
        }
    }
}

fn is_soft_off(sleep_control: u8) -> bool {
    let sleep_type = (sleep_control >> SLEEP_TYPE_SHIFT) & SLEEP_TYPE_MASK;
    sleep_control & SLEEP_ENABLE != 0 && sleep_type == S5_SLEEP_TYPE
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[test]
    fn only_s5_and_the_reset_value_are_requests() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        let power = PowerControl::new(move |request| log.lock().unwrap().push(request));
        for (offset, value) in [(0, 0x14), (0, 0x20), (1, 0x34), (2, 0), (2, 2), (3, 1)] {
            power.write(offset, &[value]);
        }
        power.write(0, &[0x34, 0]);
        assert_eq!(*seen.lock().unwrap(), []);
        power.write(0, &[0x34]);
        power.write(2, &[1]);
        assert_eq!(*seen.lock().unwrap(), [PowerRequest::Off, PowerRequest::Reset]);
    }
}
