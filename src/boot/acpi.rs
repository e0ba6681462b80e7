//! The ACPI tables: what a guest cannot find out by probing, and above all what it need not probe.
//!
//! The machine is hardware-reduced (ACPI 6.5 §4.1): no PM timer, no SCI, no PIT, no PIC; and the FADT says there is no
//! CMOS clock, keyboard controller or VGA. A stock kernel believes it and saves the tens of thousands of exits that
//! looking for them would cost (seen in the log of Debian's 6.1: "Unable to read current time from RTC", "No PS/2
//! controller found", no probing of either). What is left: reset and sleep registers, CPUs, the IOAPIC, the few platform
//! devices, and a PCI root whose functions all use MSI-X, so that there is no interrupt routing table.

use acpi_tables::Aml;
use acpi_tables::fadt::{FADT, FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::BootError;
use crate::x86::layout::{
    ACPI_END, ACPI_START, IOAPIC_START, LAPIC_START, PCI_ECAM_START, RESET_PORT, RESET_VALUE,
    SLEEP_CONTROL_PORT, SLEEP_STATUS_PORT,
};

mod dsdt;
mod wdat;

const OEM_ID: [u8; 6] = *b"NESTLG";
const OEM_TABLE_ID: [u8; 8] = *b"NESTLING";
const OEM_REVISION: u32 = 1;

/// FADT, "IA-PC Boot Architecture Flags" (ACPI 6.5 table 5.11). Left clear: legacy devices, 8042 present, MSI *not*
/// supported.
const NO_VGA: u16 = 1 << 2;
const NO_ASPM_CONTROLS: u16 = 1 << 4;
const NO_CMOS_RTC: u16 = 1 << 5;

/// APIC ids are 8 bits wide here, and the last one means "everybody".
const MAX_CPUS: u8 = 254;
/// Every table starts on a boundary of so many bytes; the RSDP must on one of 16 (ACPI 6.5 §5.2.5.1).
const TABLE_ALIGN: u64 = 64;

/// What the tables depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine {
    /// Number of vCPUs, 1 to 254. Their APIC ids are 0, 1, 2, …
    pub cpus: u8,
    /// Whether there is a COM1 UART.
    pub serial: bool,
    /// Whether there is a watchdog.
    pub watchdog: bool,
}

/// One table and where it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Its signature as file name: "dsdt", "facp", "apic", "mcfg", "wdat", "xsdt", "rsdp".
    pub name: &'static str,
    /// Guest physical address.
    pub start: u64,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// Writes all tables between [`ACPI_START`] and [`ACPI_END`] and returns the address of the RSDP.
///
/// # Errors
/// When there are too many vCPUs, or the guest has no RAM there.
pub fn write(memory: &GuestMemoryMmap, machine: &Machine) -> Result<GuestAddress, BootError> {
    for table in tables(machine)? {
        memory
            .write_slice(&table.bytes, GuestAddress(table.start))
            .map_err(BootError::writing("the ACPI tables"))?;
    }
    Ok(GuestAddress(ACPI_START))
}

/// Builds all tables.
///
/// # Errors
/// When the number of vCPUs is 0 or more than 254.
pub fn tables(machine: &Machine) -> Result<Vec<Table>, BootError> {
    if machine.cpus == 0 || machine.cpus > MAX_CPUS {
        return Err(BootError::BadCpuCount { cpus: machine.cpus, limit: MAX_CPUS });
    }
    let mut tables = Vec::new();
    let mut next = ACPI_START + TABLE_ALIGN;
    let mut place = |name, table: &dyn Aml| {
        let (start, bytes) = (next, aml_bytes(table));
        next = (start + bytes.len() as u64).next_multiple_of(TABLE_ALIGN);
        tables.push(Table { name, start, bytes });
        start
    };
    let dsdt = place("dsdt", &dsdt::dsdt(machine));
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(place("facp", &fadt(dsdt)));
    xsdt.add_entry(place("apic", &madt(machine)));
    xsdt.add_entry(place("mcfg", &mcfg()));
    if machine.watchdog {
        xsdt.add_entry(place("wdat", &wdat::wdat()));
    }
    let xsdt = place("xsdt", &xsdt);
    if next > ACPI_END {
        return Err(BootError::AcpiTooLarge { bytes: next - ACPI_START, limit: ACPI_END - ACPI_START });
    }
    tables.push(Table { name: "rsdp", start: ACPI_START, bytes: aml_bytes(&Rsdp::new(OEM_ID, xsdt)) });
    Ok(tables)
}

fn aml_bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// One byte-wide register in I/O space.
fn io_register(port: u16) -> GAS {
    GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, u64::from(port))
}

/// The fixed description (ACPI 6.5 §5.2.9), revision 6.5.
fn fadt(dsdt: u64) -> FADT {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        // Set means "not a fixed-hardware button": there is none of those; the power button is a device of the DSDT.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::Headless);
    fadt.iapc_boot_arch = (NO_VGA | NO_ASPM_CONTROLS | NO_CMOS_RTC).into();
    fadt.reset_reg = io_register(RESET_PORT);
    fadt.reset_value = RESET_VALUE;
    fadt.sleep_control_reg = io_register(SLEEP_CONTROL_PORT);
    fadt.sleep_status_reg = io_register(SLEEP_STATUS_PORT);
    fadt.finalize()
}

/// CPUs and the IOAPIC (ACPI 6.5 §5.2.12). No PC-AT compatible PICs, and ISA interrupts are identity-mapped.
fn madt(machine: &Machine) -> MADT {
    let lapic = LocalInterruptController::Address(LAPIC_START as u32);
    let mut madt = MADT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION, lapic);
    for id in 0..machine.cpus {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, IOAPIC_START as u32, 0));
    madt
}

/// PCI Express configuration space of bus 0 (PCI Firmware Specification 3.3 §4.1.2).
fn mcfg() -> MCFG {
    let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    mcfg.add_ecam(PCI_ECAM_START, 0, 0, 0);
    mcfg
}

#[cfg(test)]
mod tests;
