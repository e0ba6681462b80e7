//! The ways to end the machine (ACPI sleep and reset registers as the FADT announces them).

use crate::{gate, io};

const SLEEP_CONTROL: u16 = 0x600;
const SLEEP_S5: u8 = 5 << 2 | 1 << 5;
const RESET: u16 = 0x602;
/// Where a PC leaves 0x1234 before a warm reset.
const RESET_FLAG: u64 = 0x472;

/// Soft off.
pub fn off() -> ! {
    gate::out8(SLEEP_CONTROL, SLEEP_S5);
    gate::halt_forever()
}

/// Reset register.
pub fn reset() -> ! {
    gate::out8(RESET, 1);
    gate::halt_forever()
}

/// Resets the way Linux does after a panic with `reboot=panic_warm`.
pub fn reset_after_panic() -> ! {
    io::poke(RESET_FLAG, 0x1234_u16);
    reset()
}
