use super::*;
use crate::x86::layout::{
    GENERATION_ID_GSI, GENERATION_ID_START, LOW_MEMORY_END, POWER_BUTTON_GSI, PVPANIC_PORT,
    WATCHDOG_CONTROL_PORT, WATCHDOG_MAX_MS, WATCHDOG_REMAINING_PORT, WATCHDOG_TIMEOUT_PORT,
};

fn machine(cpus: u8, serial: bool) -> Machine {
    Machine { cpus, serial, watchdog: true }
}

fn find(tables: &[Table], name: &str) -> Table {
    tables.iter().find(|table| table.name == name).unwrap().clone()
}

fn number(bytes: &[u8], offset: usize, width: usize) -> u64 {
    bytes[offset..offset + width].iter().rev().fold(0, |number, byte| (number << 8) | u64::from(*byte))
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// With `NESTLING_DUMP_ACPI=DIR`, writes the tables there as DIR/dsdt.dat and so on, for `iasl -d`.
#[test]
fn every_table_has_its_length_its_checksum_and_a_place_of_its_own() {
    for (cpus, serial) in [(1, false), (32, true), (MAX_CPUS, true)] {
        let tables = tables(&machine(cpus, serial)).unwrap();
        let mut ends: Vec<(u64, u64)> =
            tables.iter().map(|t| (t.start, t.start + t.bytes.len() as u64)).collect();
        ends.sort_unstable();
        assert!(ends.windows(2).all(|pair| pair[0].1 <= pair[1].0));
        assert!(ends[0].0 == ACPI_START && ends[ends.len() - 1].1 <= ACPI_END);
        for table in &tables {
            let sum = table.bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
            assert_eq!(sum, 0, "{}", table.name);
            let length_offset = if table.name == "rsdp" { 20 } else { 4 };
            assert_eq!(number(&table.bytes, length_offset, 4), table.bytes.len() as u64, "{}", table.name);
            assert_eq!(table.start % 16, 0);
            if let Ok(directory) = std::env::var("NESTLING_DUMP_ACPI") {
                std::fs::write(format!("{directory}/{}.dat", table.name), &table.bytes).unwrap();
            }
        }
    }
}

#[test]
fn the_root_pointer_leads_to_every_table() {
    let tables = tables(&machine(2, false)).unwrap();
    let (rsdp, xsdt) = (find(&tables, "rsdp"), find(&tables, "xsdt"));
    assert_eq!(&rsdp.bytes[..8], b"RSD PTR ");
    assert_eq!(number(&rsdp.bytes, 24, 8), xsdt.start);
    let listed: Vec<u64> = (36..xsdt.bytes.len()).step_by(8).map(|at| number(&xsdt.bytes, at, 8)).collect();
    assert_eq!(listed, ["facp", "apic", "mcfg", "wdat"].map(|name| find(&tables, name).start));
    assert_eq!(number(&find(&tables, "facp").bytes, 140, 8), find(&tables, "dsdt").start);
}

#[test]
fn the_fadt_says_what_need_not_be_probed_and_how_to_reset() {
    let fadt = find(&tables(&machine(1, true)).unwrap(), "facp").bytes;
    assert_eq!((fadt[8], fadt[131]), (6, 5));
    let boot_flags = number(&fadt, 109, 2);
    assert_eq!(boot_flags & 0b10_1111, 0b10_0100); // no RTC, no VGA; no 8042, no legacy devices; MSI works
    let flags = number(&fadt, 112, 4);
    assert_eq!((flags >> 20 & 1, flags >> 10 & 1), (1, 1)); // hardware-reduced, reset register
    assert_eq!(fadt[116..124], [1, 8, 0, 1, 0x02, 0x06, 0, 0]);
    assert_eq!(fadt[128], RESET_VALUE);
    assert_eq!(number(&fadt, 244 + 4, 8), u64::from(SLEEP_CONTROL_PORT));
    assert_eq!(number(&fadt, 256 + 4, 8), u64::from(SLEEP_STATUS_PORT));
}

#[test]
fn the_madt_lists_every_cpu_once_and_the_ioapic() {
    let madt = find(&tables(&machine(4, false)).unwrap(), "apic").bytes;
    assert_eq!(number(&madt, 36, 4), LAPIC_START);
    for id in 0..4u8 {
        let at = 44 + usize::from(id) * 8;
        assert_eq!(madt[at..at + 8], [0, 8, id, id, 1, 0, 0, 0]);
    }
    assert_eq!(madt[76..], [1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]);
}

#[test]
fn the_mcfg_covers_bus_0() {
    let mcfg = find(&tables(&machine(1, false)).unwrap(), "mcfg").bytes;
    assert_eq!(number(&mcfg, 44, 8), PCI_ECAM_START);
    assert_eq!(mcfg[52..], [0; 8]);
}

#[test]
fn the_dsdt_has_a_uart_only_when_the_machine_has() {
    let with = find(&tables(&machine(1, true)).unwrap(), "dsdt").bytes;
    let without = find(&tables(&machine(1, false)).unwrap(), "dsdt").bytes;
    assert!(contains(&with, b"COM1") && !contains(&without, b"COM1"));
    for dsdt in [&with, &without] {
        assert!(contains(dsdt, b"PCI0") && contains(dsdt, b"MBRD"));
        assert!(contains(dsdt, b"\x08\\_S5_\x12\x08\x04\x0a\x05\x0a\x05\x00\x00"));
        assert!(contains(dsdt, &[0x86, 9, 0, 1, 0, 0, 0, 0xe0, 0, 0, 0x10, 0])); // ECAM, fixed, 1 MiB
    }
}

#[test]
fn a_number_of_cpus_that_apic_ids_cannot_tell_apart_is_refused() {
    for cpus in [0, 255] {
        let error = tables(&machine(cpus, false)).unwrap_err();
        assert!(error.to_string().contains("use 1 to 254"), "{error}");
    }
}

#[test]
fn events_have_an_interrupt_each_and_notify_their_device() {
    let dsdt = find(&tables(&machine(1, false)).unwrap(), "dsdt").bytes;
    for (gsi, device) in [(POWER_BUTTON_GSI, b"PWRB"), (GENERATION_ID_GSI, b"VGEN")] {
        // Extended interrupt descriptor: consumer, edge, high, exclusive; one number.
        assert!(contains(&dsdt, &[0x89, 6, 0, 0b0011, 1, gsi as u8, 0, 0, 0]));
        // If (LEqual (Arg0, gsi)) { Notify (\_SB.device, 0x80) }
        let compared =
            [&[0x93, 0x68, 0x0a, gsi as u8, 0x86][..], b"\\\x2e_SB_", device, &[0x0a, 0x80]].concat();
        assert!(contains(&dsdt, &compared), "{gsi}");
    }
    assert!(contains(&dsdt, b"\x08_HID\x0dACPI0013\0") && contains(&dsdt, b"\x14\x2c_EVT\x09"));
}

#[test]
fn the_generation_id_is_aligned_and_where_the_guest_has_no_ram_of_its_own() {
    let dsdt = find(&tables(&machine(1, false)).unwrap(), "dsdt").bytes;
    let address =
        [&[0x08][..], b"ADDR", &[0x12, 8, 2, 0x0c], &(GENERATION_ID_START as u32).to_le_bytes(), &[0]];
    assert!(contains(&dsdt, &address.concat()));
    assert!(contains(&dsdt, b"\x08_CID\x0dVM_Gen_Counter\0"));
    assert_eq!(GENERATION_ID_START % 8, 0);
    const { assert!(GENERATION_ID_START >= LOW_MEMORY_END && GENERATION_ID_START + 16 <= ACPI_START) };
    assert_ne!(GENERATION_ID_START % 2048, 0, "a kernel looks for an adapter ROM there");
}

#[test]
fn the_panic_port_is_one_byte() {
    let dsdt = find(&tables(&machine(1, false)).unwrap(), "dsdt").bytes;
    assert!(contains(&dsdt, b"\x08_HID\x0dQEMU0001\0"));
    let [low, high] = PVPANIC_PORT.to_le_bytes();
    assert!(contains(&dsdt, &[0x47, 1, low, high, low, high, 1, 1]));
}

#[test]
fn the_wdat_works_every_register_and_is_there_only_with_a_watchdog() {
    let with = tables(&machine(1, false)).unwrap();
    let without = tables(&Machine { watchdog: false, ..machine(1, false) }).unwrap();
    assert!(without.iter().all(|table| table.name != "wdat"));
    assert_eq!(find(&with, "xsdt").bytes.len() - find(&without, "xsdt").bytes.len(), 8);
    let wdat = find(&with, "wdat").bytes;
    assert_eq!(number(&wdat, 36, 4), 32);
    assert_eq!(wdat[40..48], [0xff, 0, 0xff, 0xff, 0xff, 0, 0, 0], "no PCI function");
    assert_eq!((number(&wdat, 48, 4), number(&wdat, 56, 4)), (1, 1), "milliseconds, from 1");
    assert_eq!(number(&wdat, 52, 4), u64::from(WATCHDOG_MAX_MS));
    assert_eq!((wdat[60], number(&wdat, 64, 4)), (1, 8));
    let actions: Vec<(u8, u8, u64, u64)> = wdat[68..]
        .chunks_exact(24)
        .map(|entry| {
            assert_eq!(entry[4..8], [1, 32, 0, 3], "a 32-bit I/O port");
            assert_eq!(number(entry, 20, 4), 0xffff_ffff);
            (entry[0], entry[1], number(entry, 8, 8), number(entry, 16, 4))
        })
        .collect();
    let (control, timeout, remaining) =
        (WATCHDOG_CONTROL_PORT.into(), WATCHDOG_TIMEOUT_PORT.into(), WATCHDOG_REMAINING_PORT.into());
    let expected = [
        (1, 2, remaining, 0),
        (4, 1, remaining, 0),
        (5, 1, timeout, 0),
        (6, 3, timeout, 0),
        (8, 0, control, 1),
        (9, 2, control, 1),
        (10, 0, control, 0),
        (11, 2, control, 0),
    ];
    assert_eq!(actions, expected);
}
