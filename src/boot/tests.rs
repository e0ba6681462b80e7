use super::*;

#[test]
fn a_guest_without_memory_for_the_boot_tables_is_told_so() {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
    let request = BootRequest { kernel: Path::new("/"), initrd: None, cmdline: "", cpus: 1, serial: false };
    let error = load(&memory, &request).unwrap_err();
    assert!(error.to_string().contains("at least 2 MiB"), "{error}");
}
