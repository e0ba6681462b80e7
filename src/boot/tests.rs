//! Whole loads of small kernels, and every way to get one wrong.

use std::io::Write;

use linux_loader::loader::bootparam::boot_params;
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use proptest::prelude::*;
use tempfile::NamedTempFile;

use super::*;
use crate::x86::layout::{GIB, HIGH_RAM_START, LOW_RAM_MAX_END, MIB, PCI_ECAM_START};

mod bad_files;

/// `hlt`, for kernels that are loaded but never run.
const CODE: &[u8] = &[0xf4; 64];
const CMDLINE: &str = "console=hvc0 -- hello";

/// The memory sizes at which the layout changes: small, typical, all of low RAM, one step above, well above.
const MEMORY_BYTES: [u64; 5] = [32 * MIB, 128 * MIB, 3 * GIB, 3 * GIB + 2 * MIB, 5 * GIB];

fn memory(bytes: u64) -> GuestMemoryMmap {
    let low = bytes.min(LOW_RAM_MAX_END);
    let mut ranges = vec![(GuestAddress(0), low as usize)];
    if bytes > low {
        ranges.push((GuestAddress(HIGH_RAM_START), (bytes - low) as usize));
    }
    GuestMemoryMmap::from_ranges(&ranges).unwrap()
}

fn file(bytes: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn request(kernel: &Path) -> BootRequest<'_> {
    BootRequest { kernel, initrd: None, cmdline: CMDLINE, cpus: 2, serial: false, watchdog: true }
}

/// Loads `kernel` into a guest of 32 MiB.
fn load_bytes(kernel: &[u8]) -> Result<EntryPoint, BootError> {
    let kernel = file(kernel);
    load(&memory(32 * MIB), &request(kernel.path()))
}

fn read_bytes(memory: &GuestMemoryMmap, start: u64, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    memory.read_slice(&mut bytes, GuestAddress(start)).unwrap();
    bytes
}

/// The memory map as the guest finds it: start, size, type.
type Map = Vec<(u64, u64, u32)>;

fn e820(params: &boot_params) -> Map {
    let entries = usize::from(params.e820_entries);
    params.e820_table[..entries].iter().map(|entry| (entry.addr, entry.size, entry.r#type)).collect()
}

fn pvh_map(memory: &GuestMemoryMmap, info: &hvm_start_info) -> Map {
    (0..u64::from(info.memmap_entries))
        .map(|i| memory.read_obj(GuestAddress(info.memmap_paddr + i * 24)).unwrap())
        .map(|entry: hvm_memmap_table_entry| (entry.addr, entry.size, entry.type_))
        .collect()
}

/// Ascending, nothing twice, all RAM but the hole below 1 MiB, ACPI and ECAM not usable.
fn check_map(map: &Map, bytes: u64) {
    assert!(map.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0), "{map:x?}");
    let usable: u64 = map.iter().filter(|range| range.2 == 1).map(|range| range.1).sum();
    assert_eq!(usable, bytes - (MIB - 0x9_fc00));
    let kind_of = |address| {
        map.iter().find(|range| range.0 <= address && address < range.0 + range.1).map(|range| range.2)
    };
    assert_eq!(
        [0, 0x9_fbff, 0x9_fc00, 0xe_0000, 0xf_ffff, MIB, PCI_ECAM_START, LOW_RAM_MAX_END].map(kind_of),
        [Some(1), Some(1), Some(2), Some(3), Some(3), Some(1), Some(2), None]
    );
    assert_eq!(kind_of(HIGH_RAM_START), (bytes > LOW_RAM_MAX_END).then_some(1));
}

#[test]
fn a_pvh_kernel_gets_start_info_initrd_and_map_at_every_memory_size() {
    let (kernel, initrd) = (file(&samples::elf(CODE, true)), file(&[0x5a; 5000]));
    for bytes in MEMORY_BYTES {
        let memory = memory(bytes);
        let request = BootRequest { initrd: Some(initrd.path()), ..request(kernel.path()) };
        let EntryPoint::Pvh { rip, start_info } = load(&memory, &request).unwrap() else {
            panic!("not PVH");
        };
        assert_eq!(rip.0, samples::LOAD_ADDRESS);
        assert_eq!(read_bytes(&memory, rip.0, CODE.len()), CODE);
        let info: hvm_start_info = memory.read_obj(start_info).unwrap();
        assert_eq!((info.magic, info.version, info.flags, info.nr_modules), (0x336e_c578, 1, 0, 1));
        assert_eq!(read_bytes(&memory, info.rsdp_paddr, 8), b"RSD PTR ");
        assert_eq!(
            read_bytes(&memory, info.cmdline_paddr, CMDLINE.len() + 1),
            [CMDLINE.as_bytes(), b"\0"].concat()
        );
        check_map(&pvh_map(&memory, &info), bytes);

        let module: hvm_modlist_entry = memory.read_obj(GuestAddress(info.modlist_paddr)).unwrap();
        assert_eq!((module.paddr, module.size), (bytes.min(LOW_RAM_MAX_END) - 8192, 5000));
        assert_eq!(read_bytes(&memory, module.paddr, 5001), [vec![0x5a; 5000], vec![0]].concat());
    }
}

#[test]
fn a_bzimage_gets_its_own_header_back_in_boot_params_at_every_memory_size() {
    let (kernel, initrd) = (file(&samples::bzimage(CODE)), file(&[0x5a; 5000]));
    for bytes in MEMORY_BYTES {
        let memory = memory(bytes);
        let request = BootRequest { initrd: Some(initrd.path()), ..request(kernel.path()) };
        let EntryPoint::Linux64 { rip, boot_params, page_table } = load(&memory, &request).unwrap() else {
            panic!("not the 64-bit protocol");
        };
        assert_eq!(rip.0, samples::LOAD_ADDRESS + 0x200);
        assert_eq!(read_bytes(&memory, rip.0, CODE.len()), CODE);
        assert_eq!(page_table.0 % 4096, 0);
        let params: boot_params = memory.read_obj(boot_params).unwrap();
        let header = params.hdr;
        assert_eq!(({ header.version }, { header.pref_address }), (0x20f, samples::LOAD_ADDRESS));
        assert_eq!((header.type_of_loader, header.loadflags & 1, { header.setup_data }), (0xff, 1, 0));
        assert_eq!(read_bytes(&memory, params.acpi_rsdp_addr, 8), b"RSD PTR ");
        assert_eq!(read_bytes(&memory, u64::from(header.cmd_line_ptr), CMDLINE.len()), CMDLINE.as_bytes());
        check_map(&e820(&params), bytes);
        // This header allows an initrd up to 2 GiB.
        let top = bytes.min(2 * GIB);
        assert_eq!(({ header.ramdisk_image }, { header.ramdisk_size }), ((top - 8192) as u32, 5000));
        assert_eq!(({ params.ext_ramdisk_image }, { params.ext_ramdisk_size }), (0, 0));
    }
}

#[test]
fn an_elf_kernel_without_a_pvh_note_gets_boot_params_with_a_made_up_header() {
    let kernel = file(&samples::elf(CODE, false));
    let memory = memory(128 * MIB);
    let EntryPoint::Linux64 { rip, boot_params, .. } = load(&memory, &request(kernel.path())).unwrap() else {
        panic!("not the 64-bit protocol");
    };
    assert_eq!(rip.0, samples::LOAD_ADDRESS);
    let header = memory.read_obj::<boot_params>(boot_params).unwrap().hdr;
    assert_eq!({ header.header }, u32::from_le_bytes(*b"HdrS"));
    assert_eq!(({ header.boot_flag }, { header.ramdisk_image }, { header.ramdisk_size }), (0xaa55, 0, 0));
}

#[test]
fn what_is_written_below_1_mib_does_not_overlap() {
    use crate::x86::layout::{
        ACPI_START, BOOT_PARAMS_START, BOOT_STACK_TOP, CMDLINE_START, GDT_START, LOW_MEMORY_END,
        PAGE_TABLES_END, PAGE_TABLES_START, PVH_START_INFO_START,
    };
    let places = [
        (0x400, 0x500),
        (GDT_START, GDT_START + 48),
        (PVH_START_INFO_START, PVH_START_INFO_START + 4096),
        (BOOT_PARAMS_START, BOOT_PARAMS_START + 4096),
        (BOOT_STACK_TOP - 0xff0, BOOT_STACK_TOP),
        (PAGE_TABLES_START, PAGE_TABLES_END),
        (CMDLINE_START, CMDLINE_START + CMDLINE_MAX_BYTES as u64 + 1),
        (LOW_MEMORY_END, ACPI_START),
    ];
    assert!(places.windows(2).all(|pair| pair[0].1 <= pair[1].0), "{places:x?}");
}

#[test]
fn adjacent_regions_are_one_run_of_ram() {
    let half = 16 * MIB as usize;
    let ranges = [
        (GuestAddress(0), half),
        (GuestAddress(16 * MIB), half),
        (GuestAddress(HIGH_RAM_START), half),
        (GuestAddress(HIGH_RAM_START + 16 * MIB), half),
    ];
    let ram = Ram::of(&GuestMemoryMmap::from_ranges(&ranges).unwrap()).unwrap();
    assert_eq!(ram, Ram { low_end: 32 * MIB, high: vec![(HIGH_RAM_START, 32 * MIB)] });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever a damaged kernel does, it is either loaded or refused with a sentence.
    #[test]
    fn flipped_bytes_never_panic(
        elf in any::<bool>(),
        flips in prop::collection::vec((0usize..1200, any::<u8>()), 1..6),
    ) {
        let mut image = if elf { samples::elf(CODE, true) } else { samples::bzimage(CODE) };
        let bytes = image.len();
        for (position, value) in flips {
            image[position % bytes] = value;
        }
        check_outcome(load_bytes(&image));
    }

    /// Headers of a plausible kernel with hostile 64-bit numbers in every field.
    #[test]
    fn hostile_numbers_never_panic(
        elf in any::<bool>(),
        position in 0usize..1200,
        value in prop_oneof![
            Just(u64::MAX), Just(u64::MAX - 4095), Just(1 << 63), Just(u64::from(u32::MAX)), Just(0), any::<u64>()
        ],
    ) {
        let mut image = if elf { samples::elf(CODE, true) } else { samples::bzimage(CODE) };
        let position = position % (image.len() - 8);
        image[position..position + 8].copy_from_slice(&value.to_le_bytes());
        check_outcome(load_bytes(&image));
    }

    #[test]
    fn garbage_is_refused(image in prop::collection::vec(any::<u8>(), 0..2000)) {
        prop_assert!(load_bytes(&image).is_err());
    }
}

fn check_outcome(outcome: Result<EntryPoint, BootError>) {
    if let Err(error) = outcome {
        check_sentence(&error);
    }
}

/// One line that names a file or a number, and ends without a full stop as messages here do.
fn check_sentence(error: &BootError) {
    let text = error.to_string();
    assert!(text.len() > 30 && !text.contains('\n') && !text.ends_with('.'), "{text:?}");
}
