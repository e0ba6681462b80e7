//! The initial RAM disk.

use std::path::Path;

use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::BootError;
use super::image::ImageFile;
use super::kernel::Kernel;
use super::ram::Ram;
use crate::x86::layout::{LOW_RAM_MAX_END, MIB};

const PAGE_BYTES: u64 = 4096;

/// Where the initial RAM disk was placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Initrd {
    /// Its first byte, page aligned.
    pub start: GuestAddress,
    /// Its size in bytes.
    pub bytes: u64,
}

/// Loads `path` as high in low RAM as the kernel's boot protocol allows, above everything the kernel unpacks into.
///
/// # Errors
/// When the file cannot be read or does not fit.
pub fn load(memory: &GuestMemoryMmap, ram: &Ram, kernel: &Kernel, path: &Path) -> Result<Initrd, BootError> {
    let mut file = ImageFile::open("initrd", path)?;
    let bytes = file.bytes();
    let start = place(ram, kernel, bytes).ok_or_else(|| too_large(ram, kernel, path, bytes))?;
    file.read_into(0, bytes, memory, start)?;
    Ok(Initrd { start, bytes })
}

/// The highest page-aligned place for `bytes`, if there is one.
fn place(ram: &Ram, kernel: &Kernel, bytes: u64) -> Option<GuestAddress> {
    let start = top(ram, kernel).checked_sub(bytes)? & !(PAGE_BYTES - 1);
    (start >= kernel.end).then_some(GuestAddress(start))
}

/// First byte after the space an initrd may take.
fn top(ram: &Ram, kernel: &Kernel) -> u64 {
    ram.low_end.min(kernel.initrd_limit())
}

fn too_large(ram: &Ram, kernel: &Kernel, path: &Path, bytes: u64) -> BootError {
    let (from, to) = (kernel.end, top(ram, kernel));
    let needs = from.saturating_add(bytes).saturating_add(PAGE_BYTES);
    let mend = if needs <= kernel.initrd_limit().min(LOW_RAM_MAX_END) {
        format!("give the guest at least {} MiB of memory", needs.div_ceil(2 * MIB) * 2)
    } else {
        "no amount of memory makes it fit: use a smaller initrd, or a disk".to_owned()
    };
    BootError::InitrdTooLarge { path: path.to_owned(), bytes, free: to.saturating_sub(from), from, to, mend }
}
