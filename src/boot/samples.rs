//! Kernel images small enough to build by hand: a payload in an ELF file or in a bzImage.
//!
//! Shared with `tests/boot_payload.rs`, which runs them.

/// Where every sample belongs in guest memory.
pub(crate) const LOAD_ADDRESS: u64 = 0x100_0000;
/// Bytes of memory a sample asks for beyond its own (bss, or room to unpack).
pub(crate) const EXTRA_BYTES: u64 = 0x3000;
const EHDR_BYTES: u64 = 64;
const PHDR_BYTES: u64 = 56;

/// An ELF executable that consists of `code`, with a PVH entry note if `pvh`, entered at its first byte.
pub(crate) fn elf(code: &[u8], pvh: bool) -> Vec<u8> {
    let mut notes = note(b"GNU\0", 3, &[0xaa; 20]);
    if pvh {
        notes.extend(note(b"Xen\0", 18, &LOAD_ADDRESS.to_le_bytes()));
    }
    let notes_offset = EHDR_BYTES + 2 * PHDR_BYTES;
    let code_offset = notes_offset + notes.len() as u64;

    let mut file = Vec::new();
    file.extend([0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    file.extend(2u16.to_le_bytes()); // e_type: executable
    file.extend(62u16.to_le_bytes()); // e_machine: x86-64
    file.extend(1u32.to_le_bytes()); // e_version
    file.extend(LOAD_ADDRESS.to_le_bytes()); // e_entry
    file.extend(EHDR_BYTES.to_le_bytes()); // e_phoff
    file.extend([0; 8 + 4]); // e_shoff, e_flags
    for half in [EHDR_BYTES as u16, PHDR_BYTES as u16, 2, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    let code_bytes = code.len() as u64;
    file.extend(segment(1, code_offset, LOAD_ADDRESS, code_bytes, code_bytes + EXTRA_BYTES));
    file.extend(segment(4, notes_offset, 0, notes.len() as u64, notes.len() as u64));
    file.extend(notes);
    file.extend(code);
    file
}

/// A program header.
fn segment(kind: u32, offset: u64, address: u64, in_file: u64, in_memory: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(kind.to_le_bytes());
    bytes.extend(5u32.to_le_bytes());
    for word in [offset, address, address, in_file, in_memory, 4] {
        bytes.extend(word.to_le_bytes());
    }
    bytes
}

fn note(name: &[u8; 4], kind: u32, descriptor: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in [4, descriptor.len() as u32, kind] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(name);
    bytes.extend(descriptor);
    bytes
}

/// A relocatable bzImage, protocol 2.15, whose 64-bit entry point is the first byte of `code`.
pub(crate) fn bzimage(code: &[u8]) -> Vec<u8> {
    let mut payload = vec![0xcc; 0x200];
    payload.extend(code);
    payload.resize(payload.len().next_multiple_of(16), 0x90);

    let mut file = vec![0; 2 * 512];
    let mut put = |offset: usize, bytes: &[u8]| file[offset..offset + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]); // setup_sects
    put(0x1f4, &(payload.len() as u32 / 16).to_le_bytes()); // syssize
    put(0x1fe, &[0x55, 0xaa]); // boot_flag
    put(0x200, &[0xeb, 0x6a]); // jump over the header, which ends at 0x202 + 0x6a
    put(0x202, b"HdrS");
    put(0x206, &0x20fu16.to_le_bytes()); // version
    put(0x211, &[1]); // loadflags: LOADED_HIGH
    put(0x214, &0x10_0000u32.to_le_bytes()); // code32_start
    put(0x22c, &0x7fff_ffffu32.to_le_bytes()); // initrd_addr_max
    put(0x230, &0x20_0000u32.to_le_bytes()); // kernel_alignment
    put(0x234, &[1]); // relocatable_kernel
    put(0x236, &0x3fu16.to_le_bytes()); // xloadflags: XLF_KERNEL_64 and others
    put(0x238, &2047u32.to_le_bytes()); // cmdline_size
    put(0x250, &0xdead_beefu64.to_le_bytes()); // setup_data
    put(0x258, &LOAD_ADDRESS.to_le_bytes()); // pref_address
    put(0x260, &(payload.len() as u32 + EXTRA_BYTES as u32).to_le_bytes()); // init_size
    file.extend(payload);
    file
}
