//! The WDAT: how a guest's ACPI watchdog driver works the watchdog (Microsoft, "Hardware Watchdog Timers Design
//! Specification" 1.0). Every action is one access to one register.
//!
//! Linux: drivers/watchdog/wdat_wdt.c, a module of every distribution's kernel and of Debian's cloud kernels; Windows has
//! its own. Until such a driver is loaded nothing touches the registers.

use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::sdt::Sdt;

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID, aml_bytes};
use crate::x86::layout::{
    WATCHDOG_CONTROL_PORT, WATCHDOG_MAX_MS, WATCHDOG_REMAINING_PORT, WATCHDOG_RUN, WATCHDOG_STOP,
    WATCHDOG_TIMEOUT_PORT,
};

const HEADER_BYTES: u32 = 36;
const REVISION: u8 = 1;
/// Bytes of the fields between the header and the first entry.
const WATCHDOG_HEADER_BYTES: u32 = 32;
/// "Not a PCI function" in each of the fields that would say which.
const NO_PCI: u8 = 0xff;
/// The registers count milliseconds.
const PERIOD_MS: u32 = 1;
const MIN_COUNT: u32 = 1;
/// Flags: the watchdog is there. It also stands still while the machine is paused, but ACPI has no sleep state here.
const ENABLED: u8 = 1;
/// Every bit of a register counts.
const ALL: u32 = u32::MAX;

/// "Watchdog instruction": what an entry does with its register.
#[derive(Clone, Copy)]
enum Instruction {
    /// Is the register, masked, this value?
    ReadValue = 0,
    /// What does the register count?
    ReadCountdown = 1,
    /// Write this value.
    WriteValue = 2,
    /// Write the count the driver wants.
    WriteCountdown = 3,
}

/// "Watchdog action": what the driver wants to do.
#[derive(Clone, Copy)]
enum Action {
    Reset = 0x1,
    QueryCurrentCountdown = 0x4,
    QueryCountdown = 0x5,
    SetCountdown = 0x6,
    QueryRunning = 0x8,
    SetRunning = 0x9,
    QueryStopped = 0xa,
    SetStopped = 0xb,
}

struct Entry {
    action: Action,
    instruction: Instruction,
    port: u16,
    value: u32,
}

const ENTRIES: [Entry; 8] = [
    entry(Action::Reset, Instruction::WriteValue, WATCHDOG_REMAINING_PORT, 0),
    entry(Action::QueryCurrentCountdown, Instruction::ReadCountdown, WATCHDOG_REMAINING_PORT, 0),
    entry(Action::QueryCountdown, Instruction::ReadCountdown, WATCHDOG_TIMEOUT_PORT, 0),
    entry(Action::SetCountdown, Instruction::WriteCountdown, WATCHDOG_TIMEOUT_PORT, 0),
    entry(Action::QueryRunning, Instruction::ReadValue, WATCHDOG_CONTROL_PORT, WATCHDOG_RUN),
    entry(Action::SetRunning, Instruction::WriteValue, WATCHDOG_CONTROL_PORT, WATCHDOG_RUN),
    entry(Action::QueryStopped, Instruction::ReadValue, WATCHDOG_CONTROL_PORT, WATCHDOG_STOP),
    entry(Action::SetStopped, Instruction::WriteValue, WATCHDOG_CONTROL_PORT, WATCHDOG_STOP),
];

const fn entry(action: Action, instruction: Instruction, port: u16, value: u32) -> Entry {
    Entry { action, instruction, port, value }
}

/// The complete table.
pub(super) fn wdat() -> Sdt {
    let mut wdat = Sdt::new(*b"WDAT", HEADER_BYTES, REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    wdat.append(WATCHDOG_HEADER_BYTES);
    // Segment (16 bits), bus, device and function, then padding.
    wdat.append_slice(&[NO_PCI, 0, NO_PCI, NO_PCI, NO_PCI, 0, 0, 0]);
    wdat.append(PERIOD_MS);
    wdat.append(WATCHDOG_MAX_MS);
    wdat.append(MIN_COUNT);
    wdat.append_slice(&[ENABLED, 0, 0, 0]);
    wdat.append(ENTRIES.len() as u32);
    for entry in &ENTRIES {
        let register =
            GAS::new(AddressSpace::SystemIo, 32, 0, AccessSize::DwordAccess, u64::from(entry.port));
        wdat.append_slice(&[entry.action as u8, entry.instruction as u8, 0, 0]);
        wdat.append_slice(&aml_bytes(&register));
        wdat.append(entry.value);
        wdat.append(ALL);
    }
    wdat
}
