//! The DSDT: the ACPI namespace.
//!
//! CPUs are not declared in it (ACPI0007): a kernel finds them in the MADT, and with a processor object Linux would bind
//! its ACPI idle driver, which here can do no more than the HLT it does anyway.

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, AmlStr, Arg, Device, EISAName, Equal, IO, If, Interrupt,
    Memory32Fixed, Method, Name, Notify, Package, Path, ResourceTemplate, Scope, ZERO,
};
use acpi_tables::sdt::Sdt;

use super::{Machine, OEM_ID, OEM_REVISION, OEM_TABLE_ID, aml_bytes};
use crate::x86::layout::{
    GENERATION_ID_GSI, GENERATION_ID_START, PCI_ECAM_SIZE, PCI_ECAM_START, PCI_MMIO_END, PCI_MMIO_START,
    POWER_BUTTON_GSI, PVPANIC_PORT, S5_SLEEP_TYPE, SERIAL_GSI, SERIAL_PORT, SLEEP_CONTROL_PORT,
};

const HEADER_BYTES: u32 = 36;
/// Integers are 64 bits wide from revision 2 on.
const REVISION: u8 = 2;
/// Sleep control, sleep status and reset register, in a row.
const POWER_PORTS: u8 = 3;
const UART_PORTS: u8 = 8;
/// Where the devices are that events are about.
const POWER_BUTTON: &str = "\\_SB_.PWRB";
const GENERATION_ID: &str = "\\_SB_.VGEN";
/// Device notifications: the button was pressed (ACPI 6.5 table 5.179), the generation ID has changed.
const PRESSED: u8 = 0x80;
const CHANGED: u8 = 0x80;

/// The complete table. A new device is one more line here, and so is a new event (see [`events`]).
pub(super) fn dsdt(machine: &Machine) -> Sdt {
    let mut dsdt = Sdt::new(*b"DSDT", HEADER_BYTES, REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    dsdt.append_slice(&soft_off());
    let mut devices = vec![motherboard(), pci_root(), pvpanic(), power_button(), generation_id(), events()];
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

/// The panic port. The id is the one Linux' pvpanic driver has always looked for (drivers/misc/pvpanic/pvpanic-mmio.c,
/// before 5.13 drivers/misc/pvpanic.c).
fn pvpanic() -> Vec<u8> {
    let port = IO::new(PVPANIC_PORT, PVPANIC_PORT, 1, 1);
    aml_bytes(&Device::new(
        "PEVT".into(),
        vec![
            &Name::new("_HID".into(), &("QEMU0001" as AmlStr)),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&port])),
        ],
    ))
}

/// The power button (ACPI 6.5 §4.8.3.1.2, a control method button). Pressing it asks the guest to switch itself off.
fn power_button() -> Vec<u8> {
    let id = EISAName::new("PNP0C0C");
    aml_bytes(&Device::new(
        "PWRB".into(),
        vec![&Name::new("_HID".into(), &id), &Name::new("_UID".into(), &ZERO)],
    ))
}

/// Where the generation ID is (Microsoft, "Virtual Machine Generation ID"): low and high half of its address. Drivers
/// know the device by _CID; the _HID is our own.
fn generation_id() -> Vec<u8> {
    let (low, high) = (GENERATION_ID_START as u32, (GENERATION_ID_START >> 32) as u32);
    let name: AmlStr = "VM_Gen_Counter";
    aml_bytes(&Device::new(
        "VGEN".into(),
        vec![
            &Name::new("_HID".into(), &("NSTL0001" as AmlStr)),
            &Name::new("_CID".into(), &name),
            &Name::new("_DDN".into(), &name),
            &Name::new("ADDR".into(), &Package::new(vec![&low, &high])),
        ],
    ))
}

/// The Generic Event Device (ACPI 6.5 §5.6.9): on hardware-reduced ACPI the way to tell the guest something. Each event
/// has an interrupt of its own, so the guest need not ask what happened: an event costs no exit to user space.
fn events() -> Vec<u8> {
    // Consumer, edge-triggered, active high, exclusive.
    let interrupt = |gsi| Interrupt::new(true, true, false, false, gsi);
    let (pressed, changed) = (interrupt(POWER_BUTTON_GSI), interrupt(GENERATION_ID_GSI));
    let (button, generation) = (Path::new(POWER_BUTTON), Path::new(GENERATION_ID));
    let press = Notify::new(&button, &PRESSED);
    let change = Notify::new(&generation, &CHANGED);
    let is_press = Equal::new(&Arg(0), &POWER_BUTTON_GSI);
    let is_change = Equal::new(&Arg(0), &GENERATION_ID_GSI);
    aml_bytes(&Device::new(
        "GED_".into(),
        vec![
            &Name::new("_HID".into(), &("ACPI0013" as AmlStr)),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&pressed, &changed])),
            &Method::new(
                "_EVT".into(),
                1,
                true,
                vec![&If::new(&is_press, vec![&press]), &If::new(&is_change, vec![&change])],
            ),
        ],
    ))
}
