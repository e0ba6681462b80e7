//! ELF: the uncompressed kernel, `vmlinux`, and other kernels built as a static x86-64 executable.

use linux_loader::elf::{EI_CLASS, EI_DATA, Elf64_Ehdr, Elf64_Nhdr, Elf64_Phdr, PT_INTERP, PT_LOAD, PT_NOTE};
use vm_memory::{ByteValued, GuestAddress, GuestMemoryMmap};

use super::BootError;
use super::image::ImageFile;
use super::kernel::{Kernel, KernelKind, check_place};
use super::ram::Ram;

const MAGIC: [u8; 4] = *b"\x7fELF";
const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const TYPE_RELOCATABLE: u16 = 1;
const TYPE_EXECUTABLE: u16 = 2;
const TYPE_SHARED: u16 = 3;
const TYPE_CORE: u16 = 4;
const MACHINE_X86_64: u16 = 62;
/// A vmlinux has about five segments; a number far above that is not a kernel's.
const MAX_SEGMENTS: u16 = 128;
/// A vmlinux has about 500 bytes of notes.
const MAX_NOTE_BYTES: u64 = 64 << 10;
/// `XEN_ELFNOTE_PHYS32_ENTRY`: the 32-bit physical entry point of the x86/HVM direct boot ABI.
const PHYS32_ENTRY: u32 = 18;
const XEN: &[u8] = b"Xen\0";

/// Whether the first bytes of a file are those of an ELF file.
pub(super) fn is_elf(head: &[u8]) -> bool {
    head.starts_with(&MAGIC)
}

/// Loads the segments of an ELF kernel at their physical addresses.
pub(super) fn load(memory: &GuestMemoryMmap, ram: &Ram, file: &mut ImageFile) -> Result<Kernel, BootError> {
    let segments = read_segments(file)?;
    let mut end = 0;
    for (number, segment) in segments.iter().enumerate().filter(|(_, segment)| is_loaded(segment)) {
        end = end.max(check_segment(ram, file, number, segment)?);
    }
    if end == 0 {
        return Err(damaged(file, "it has no segment to load".to_owned()));
    }
    let pvh_entry = find_pvh_entry(file, &segments)?;
    let (kind, entry) = match pvh_entry {
        Some(entry) => (KernelKind::Pvh, entry),
        None => (KernelKind::Elf64, read_header(file)?.e_entry),
    };
    let holds_entry = |s: &Elf64_Phdr| is_loaded(s) && entry >= s.p_paddr && entry - s.p_paddr < s.p_filesz;
    if !segments.iter().any(holds_entry) {
        return Err(damaged(file, format!("its entry point {entry:#x} lies outside of what it loads")));
    }
    for segment in segments.iter().filter(|segment| is_loaded(segment) && segment.p_filesz > 0) {
        file.read_into(segment.p_offset, segment.p_filesz, memory, GuestAddress(segment.p_paddr))?;
    }
    Ok(Kernel { kind, entry, end })
}

fn is_loaded(segment: &Elf64_Phdr) -> bool {
    segment.p_type == PT_LOAD && segment.p_memsz > 0
}

fn read_header(file: &ImageFile) -> Result<Elf64_Ehdr, BootError> {
    let mut header = Elf64_Ehdr::default();
    let needs = size_of::<Elf64_Ehdr>() as u64;
    if file.bytes() < needs {
        return Err(truncated(file, "the ELF header".to_owned(), needs));
    }
    file.read_at(0, header.as_mut_slice())?;
    Ok(header)
}

/// Reads the program headers of a file that can be a kernel.
fn read_segments(file: &ImageFile) -> Result<Vec<Elf64_Phdr>, BootError> {
    let header = read_header(file)?;
    if let Some((looks_like, mend)) = not_a_kernel(&header) {
        return Err(BootError::NotAKernel { path: file.path().to_owned(), looks_like, mend });
    }
    let entry_bytes = size_of::<Elf64_Phdr>();
    if usize::from(header.e_phentsize) != entry_bytes || header.e_phnum == 0 || header.e_phnum > MAX_SEGMENTS
    {
        let (count, bytes) = (header.e_phnum, header.e_phentsize);
        return Err(damaged(file, format!("it announces {count} program headers of {bytes} bytes")));
    }
    let count = usize::from(header.e_phnum);
    let needs = header.e_phoff.saturating_add((count * entry_bytes) as u64);
    if file.bytes() < needs {
        return Err(truncated(file, "the program header table".to_owned(), needs));
    }
    let mut segments = vec![Elf64_Phdr::default(); count];
    for (segment, number) in segments.iter_mut().zip(0u64..) {
        file.read_at(header.e_phoff + number * entry_bytes as u64, segment.as_mut_slice())?;
    }
    if segments.iter().any(|segment| segment.p_type == PT_INTERP) {
        let looks_like = "a program that wants a dynamic loader".to_owned();
        return Err(BootError::NotAKernel { path: file.path().to_owned(), looks_like, mend: USE_VMLINUX });
    }
    Ok(segments)
}

const USE_VMLINUX: &str = "use an x86-64 vmlinux or bzImage";

/// What an ELF file is, if it is not an executable for this machine.
fn not_a_kernel(header: &Elf64_Ehdr) -> Option<(String, &'static str)> {
    let is = |what: &str| Some((what.to_owned(), USE_VMLINUX));
    if header.e_ident[EI_CLASS] != CLASS_64 {
        return is("a 32-bit ELF file");
    }
    if header.e_ident[EI_DATA] != LITTLE_ENDIAN {
        return is("a big-endian ELF file");
    }
    match header.e_machine {
        MACHINE_X86_64 => {}
        183 => return is("an arm64 ELF file"),
        243 => return is("a RISC-V ELF file"),
        other => return Some((format!("an ELF file for machine number {other}"), USE_VMLINUX)),
    }
    match header.e_type {
        TYPE_EXECUTABLE | TYPE_SHARED => None,
        TYPE_RELOCATABLE => is("an object file or a kernel module"),
        TYPE_CORE => is("a core dump"),
        other => Some((format!("an ELF file of the unknown type {other}"), USE_VMLINUX)),
    }
}

/// Checks that a segment is complete in the file and has a place in RAM; returns the first address after it.
fn check_segment(ram: &Ram, file: &ImageFile, number: usize, segment: &Elf64_Phdr) -> Result<u64, BootError> {
    let part = format!("segment {number}");
    if segment.p_filesz > segment.p_memsz {
        let (in_file, in_memory) = (segment.p_filesz, segment.p_memsz);
        return Err(damaged(file, format!("{part} has {in_file} bytes in the file, {in_memory} in memory")));
    }
    let needs = segment.p_offset.saturating_add(segment.p_filesz);
    if file.bytes() < needs {
        return Err(truncated(file, part, needs));
    }
    check_place(ram, file.path(), &part, segment.p_paddr, segment.p_memsz)
}

/// The PVH entry point, if any of the note segments has one.
fn find_pvh_entry(file: &ImageFile, segments: &[Elf64_Phdr]) -> Result<Option<u64>, BootError> {
    for segment in segments.iter().filter(|segment| segment.p_type == PT_NOTE) {
        let needs = segment.p_offset.saturating_add(segment.p_filesz);
        if file.bytes() < needs {
            return Err(truncated(file, "the note segment".to_owned(), needs));
        }
        let mut notes = vec![0; usize::try_from(segment.p_filesz.min(MAX_NOTE_BYTES)).unwrap_or(0)];
        file.read_at(segment.p_offset, &mut notes)?;
        let align = if segment.p_align == 8 { 8 } else { 4 };
        if let Some(entry) = pvh_entry(&notes, align) {
            return Ok(Some(u64::from(entry)));
        }
    }
    Ok(None)
}

/// Walks the notes of one segment (gABI, "Note Section"): header, name, descriptor, each padded to `align`.
fn pvh_entry(mut notes: &[u8], align: usize) -> Option<u32> {
    let header_bytes = size_of::<Elf64_Nhdr>();
    loop {
        let mut header = Elf64_Nhdr::default();
        header.as_mut_slice().copy_from_slice(notes.get(..header_bytes)?);
        let name_end = header_bytes.checked_add(header.n_namesz as usize)?;
        let descriptor_start = name_end.checked_next_multiple_of(align)?;
        let descriptor_end = descriptor_start.checked_add(header.n_descsz as usize)?;
        let name = notes.get(header_bytes..name_end)?;
        let descriptor = notes.get(descriptor_start..descriptor_end)?;
        if header.n_type == PHYS32_ENTRY && name == XEN {
            return Some(u32::from_le_bytes(descriptor.get(..4)?.try_into().ok()?));
        }
        notes = notes.get(descriptor_end.checked_next_multiple_of(align)?..)?;
    }
}

fn damaged(file: &ImageFile, problem: String) -> BootError {
    BootError::Damaged { path: file.path().to_owned(), problem }
}

fn truncated(file: &ImageFile, part: String, needs: u64) -> BootError {
    BootError::Truncated { path: file.path().to_owned(), part, needs, has: file.bytes() }
}
