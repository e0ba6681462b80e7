use super::*;

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
        let tables = tables(&Machine { cpus, serial }).unwrap();
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
    let tables = tables(&Machine { cpus: 2, serial: false }).unwrap();
    let (rsdp, xsdt) = (find(&tables, "rsdp"), find(&tables, "xsdt"));
    assert_eq!(&rsdp.bytes[..8], b"RSD PTR ");
    assert_eq!(number(&rsdp.bytes, 24, 8), xsdt.start);
    let listed: Vec<u64> = (36..xsdt.bytes.len()).step_by(8).map(|at| number(&xsdt.bytes, at, 8)).collect();
    assert_eq!(listed, ["facp", "apic", "mcfg"].map(|name| find(&tables, name).start));
    assert_eq!(number(&find(&tables, "facp").bytes, 140, 8), find(&tables, "dsdt").start);
}

#[test]
fn the_fadt_says_what_need_not_be_probed_and_how_to_reset() {
    let fadt = find(&tables(&Machine { cpus: 1, serial: true }).unwrap(), "facp").bytes;
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
    let madt = find(&tables(&Machine { cpus: 4, serial: false }).unwrap(), "apic").bytes;
    assert_eq!(number(&madt, 36, 4), LAPIC_START);
    for id in 0..4u8 {
        let at = 44 + usize::from(id) * 8;
        assert_eq!(madt[at..at + 8], [0, 8, id, id, 1, 0, 0, 0]);
    }
    assert_eq!(madt[76..], [1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]);
}

#[test]
fn the_mcfg_covers_bus_0() {
    let mcfg = find(&tables(&Machine { cpus: 1, serial: false }).unwrap(), "mcfg").bytes;
    assert_eq!(number(&mcfg, 44, 8), PCI_ECAM_START);
    assert_eq!(mcfg[52..], [0; 8]);
}

#[test]
fn the_dsdt_has_a_uart_only_when_the_machine_has() {
    let with = find(&tables(&Machine { cpus: 1, serial: true }).unwrap(), "dsdt").bytes;
    let without = find(&tables(&Machine { cpus: 1, serial: false }).unwrap(), "dsdt").bytes;
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
        let error = tables(&Machine { cpus, serial: false }).unwrap_err();
        assert!(error.to_string().contains("use 1 to 254"), "{error}");
    }
}
