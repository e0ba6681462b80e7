//! The DSDT: the ACPI namespace.
//!
//! CPUs are not declared in it (ACPI0007): a kernel finds them in the MADT, and with a processor object Linux would bind
//! its ACPI idle driver, which here can do no more than the HLT it does anyway.

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package,
    ResourceTemplate, Scope, ZERO,
};
use acpi_tables::sdt::Sdt;

use super::{Machine, OEM_ID, OEM_REVISION, OEM_TABLE_ID, aml_bytes};
use crate::x86::layout::{
    PCI_ECAM_SIZE, PCI_ECAM_START, PCI_MMIO_END, PCI_MMIO_START, S5_SLEEP_TYPE, SERIAL_GSI, SERIAL_PORT,
    SLEEP_CONTROL_PORT,
};

const HEADER_BYTES: u32 = 36;
/// Integers are 64 bits wide from revision 2 on.
const REVISION: u8 = 2;
/// Sleep control, sleep status and reset register, in a row.
const POWER_PORTS: u8 = 3;
const UART_PORTS: u8 = 8;

/// The complete table. A new device (a GED with the power button, a VM generation id) is one more line here.
pub(super) fn dsdt(machine: &Machine) -> Sdt {
    let mut dsdt = Sdt::new(*b"DSDT", HEADER_BYTES, REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    dsdt.append_slice(&soft_off());
    let mut devices = vec![motherboard(), pci_root()];
    if machine.serial {
        devices.push(uart());
    }
    dsdt.append_slice(&Scope::raw("\\_SB_".into(), devices.concat()));
    dsdt
}

/// `\_S5`: what the guest writes to the sleep control register to switch itself off (ACPI 6.5 §7.4.2).
fn soft_off() -> Vec<u8> {
    let package = Package::new(vec![&S5_SLEEP_TYPE, &S5_SLEEP_TYPE, &ZERO, &ZERO]);
    aml_bytes(&Name::new("\\_S5_".into(), &package))
}

/// Motherboard resources. Linux uses ECAM without a type 1 configuration mechanism beside it only if it is reserved
/// here (arch/x86/pci/mmconfig-shared.c, `is_acpi_reserved`); the e820 entry alone does not do.
fn motherboard() -> Vec<u8> {
    let ecam = Memory32Fixed::new(true, PCI_ECAM_START as u32, PCI_ECAM_SIZE as u32);
    let power = IO::new(SLEEP_CONTROL_PORT, SLEEP_CONTROL_PORT, 1, POWER_PORTS);
    aml_bytes(&Device::new(
        "MBRD".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0C02")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ecam, &power])),
        ],
    ))
}

/// The PCI Express root complex: bus 0 alone and one window for BARs (PCI Firmware Specification 3.3 §4.1, §4.3).
///
/// No `_PRT`: no function here has an interrupt pin. No `_OSC`: there is no port whose hot-plug, AER or power
/// management could be handed over.
fn pci_root() -> Vec<u8> {
    let buses = AddressSpace::new_bus_number(0u16, 0u16);
    let (first, last) = (PCI_MMIO_START as u32, (PCI_MMIO_END - 1) as u32);
    let window = AddressSpace::new_memory(AddressSpaceCacheable::NotCacheable, true, first, last, None);
    aml_bytes(&Device::new(
        "PCI0".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0A08")),
            &Name::new("_CID".into(), &EISAName::new("PNP0A03")),
            &Name::new("_SEG".into(), &ZERO),
            &Name::new("_BBN".into(), &ZERO),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&buses, &window])),
        ],
    ))
}

/// COM1. Without PIC emulation a kernel learns the UART's interrupt only from here.
fn uart() -> Vec<u8> {
    let ports = IO::new(SERIAL_PORT, SERIAL_PORT, 1, UART_PORTS);
    let interrupt = Interrupt::new(true, true, false, false, SERIAL_GSI);
    aml_bytes(&Device::new(
        "COM1".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ports, &interrupt])),
        ],
    ))
}
