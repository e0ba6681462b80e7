//! Finds out what kind of kernel a file is, and loads it.

use std::path::Path;

use linux_loader::loader::bootparam::setup_header;
use vm_memory::GuestMemoryMmap;

use super::BootError;
use super::image::ImageFile;
use super::ram::Ram;
use super::{bzimage, elf, looks_like};
use crate::x86::layout::{CMDLINE_MAX_BYTES, HIGH_MEMORY_START, LOW_RAM_MAX_END, MIB};

/// How a kernel is entered, with what its own protocol says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum KernelKind {
    /// An ELF image with a PVH entry note.
    Pvh,
    /// An ELF image without one: entered by the 64-bit boot protocol at its ELF entry address.
    Elf64,
    /// A bzImage: entered by the 64-bit boot protocol, with the setup header from the file.
    BzImage(setup_header),
}

/// A kernel in guest memory.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Kernel {
    /// How it is entered.
    pub kind: KernelKind,
    /// Guest physical address of the first instruction.
    pub entry: u64,
    /// First guest physical address after everything it occupies before it reads its memory map: bss, or the space a
    /// bzImage unpacks into.
    pub end: u64,
}

impl Kernel {
    /// First guest physical address an initrd must not reach.
    #[must_use]
    pub fn initrd_limit(&self) -> u64 {
        match &self.kind {
            KernelKind::BzImage(header) => u64::from(header.initrd_addr_max) + 1,
            KernelKind::Pvh | KernelKind::Elf64 => LOW_RAM_MAX_END,
        }
    }

    /// Longest command line in bytes, without the zero byte at its end.
    #[must_use]
    pub fn cmdline_limit(&self) -> usize {
        match &self.kind {
            KernelKind::BzImage(header) => usize::try_from(header.cmdline_size).unwrap_or(CMDLINE_MAX_BYTES),
            KernelKind::Pvh | KernelKind::Elf64 => CMDLINE_MAX_BYTES,
        }
    }

    /// The setup header to start boot_params from.
    #[must_use]
    pub fn setup_header(&self) -> setup_header {
        match self.kind {
            KernelKind::BzImage(header) => header,
            KernelKind::Pvh | KernelKind::Elf64 => setup_header::default(),
        }
    }
}

/// Loads the kernel at `path` into `memory`.
///
/// # Errors
/// When the file is not a kernel for this machine, is damaged, or does not fit into RAM.
pub fn load(memory: &GuestMemoryMmap, ram: &Ram, path: &Path) -> Result<Kernel, BootError> {
    let mut file = ImageFile::open("kernel", path)?;
    let head = file.head::<{ looks_like::HEAD_BYTES }>()?;
    if bzimage::is_bzimage(&head) {
        bzimage::load(memory, ram, &mut file)
    } else if elf::is_elf(&head) {
        elf::load(memory, ram, &mut file)
    } else {
        let (looks_like, mend) = looks_like::describe(&head);
        Err(BootError::NotAKernel { path: path.to_owned(), looks_like, mend })
    }
}

/// Checks that `bytes` at `start` are RAM a kernel may occupy, and returns the first address after them.
///
/// # Errors
/// When they reach below 1 MiB or past the end of low RAM.
pub(super) fn check_place(
    ram: &Ram,
    path: &Path,
    part: &str,
    start: u64,
    bytes: u64,
) -> Result<u64, BootError> {
    let (path, part) = (path.to_owned(), part.to_owned());
    if start < HIGH_MEMORY_START {
        return Err(BootError::BelowOneMib { path, part, start });
    }
    let end = start.saturating_add(bytes);
    if end > LOW_RAM_MAX_END {
        return Err(BootError::NeverRam { path, part, start, end, limit: LOW_RAM_MAX_END });
    }
    if end > ram.low_end {
        let needs_mib = end.div_ceil(2 * MIB) * 2;
        return Err(BootError::OutsideRam { path, part, start, end, ram_end: ram.low_end, needs_mib });
    }
    Ok(end)
}
