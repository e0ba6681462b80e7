//! Guest RAM, on a 2 MiB boundary: one page of misalignment costs the guest every large mapping in the second-level page
//! table.
//!
//! Anonymous memory advised to be huge pages, unless another process has to see it (a vhost-user device): then a memfd,
//! of hugetlb pages where the node has them free, for the kernel gives a memfd no transparent huge pages by default.

mod shared;

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{Address, FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

use self::shared::Shared;

use crate::x86::layout::{HIGH_RAM_START, LOW_RAM_MAX_END};

/// Alignment of RAM in this process and in the guest: one large page.
pub const HUGE_PAGE: usize = 2 << 20;

const PROT: libc::c_int = libc::PROT_READ | libc::PROT_WRITE;
const FLAGS: libc::c_int = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
const SHARED_FLAGS: libc::c_int = libc::MAP_SHARED | libc::MAP_NORESERVE;

/// What guest RAM is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backing {
    /// `anonymous`, `memfd` or `hugetlb memfd`.
    pub name: &'static str,
    /// What that costs, when it is not the best there is.
    pub cost: Option<String>,
}

/// One run of guest RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RamRegion {
    /// Where the guest sees it.
    pub gpa: u64,
    /// Where it is in this process.
    pub host: u64,
    /// Bytes.
    pub len: u64,
}

/// All guest RAM. Unmapped when dropped, unless somebody still holds the memory.
#[derive(Debug)]
pub struct GuestRam {
    start: *mut libc::c_void,
    len: usize,
    memory: GuestMemoryMmap,
    mappings: Vec<Arc<MmapRegion>>,
    backing: Backing,
}

// SAFETY: `start` is only an address to unmap; access goes through `memory`, which is Sync.
unsafe impl Send for GuestRam {}
// SAFETY: as above.
unsafe impl Sync for GuestRam {}

impl GuestRam {
    /// Reserves `bytes` (a multiple of 2 MiB) of our own memory and lays it out around the PCI hole. No page is touched yet.
    ///
    /// # Errors
    /// When the host cannot reserve that much.
    pub fn new(bytes: u64) -> io::Result<Self> {
        Self::reserve(bytes, None, Backing { name: "anonymous", cost: None })
    }

    /// The same as a memfd, which another process can map. hugetlb pages are taken at once, for one that turned out to be
    /// missing later would be the end of us.
    ///
    /// # Errors
    /// When the host has no memfd, or not that much memory.
    pub fn shared(bytes: u64) -> io::Result<Self> {
        let Shared { file, backing } = Shared::new(bytes)?;
        Self::reserve(bytes, Some(&Arc::new(file)), backing)
    }

    fn reserve(bytes: u64, file: Option<&Arc<File>>, backing: Backing) -> io::Result<Self> {
        let len = usize::try_from(bytes).map_err(io::Error::other)?;
        let start = map_aligned(len)?;
        if let Some(file) = file {
            map_over(start, len, file)?;
        }
        for advice in [libc::MADV_HUGEPAGE, libc::MADV_DONTDUMP] {
            // SAFETY: the range was mapped just now. A kernel without THP refuses the first; the VM runs all the same.
            if unsafe { libc::madvise(start, len, advice) } != 0 {
                let error = io::Error::last_os_error();
                tracing::debug!(advice, %error, "guest RAM could not be advised");
            }
        }
        let mut ram = Self { start, len, memory: GuestMemoryMmap::new(), mappings: Vec::new(), backing };
        let mut regions = Vec::new();
        for region in layout(start as u64, bytes) {
            let offset = region.host - start as u64;
            let (mapping, region) =
                wrap(region, file.map(|file| FileOffset::from_arc(Arc::clone(file), offset)))?;
            ram.mappings.push(mapping);
            regions.push(region);
        }
        ram.memory = GuestMemoryMmap::from_arc_regions(regions).map_err(io::Error::other)?;
        Ok(ram)
    }

    /// The memory as devices and loaders see it.
    #[must_use]
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// Bytes in all.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len as u64
    }

    /// What it is made of.
    #[must_use]
    pub fn backing(&self) -> &Backing {
        &self.backing
    }

    /// Whether there is no RAM at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The addresses RAM has in this process.
    #[must_use]
    pub fn host_range(&self) -> std::ops::Range<u64> {
        self.start as u64..self.start as u64 + self.len as u64
    }

    /// The runs of RAM, to be given to KVM.
    #[must_use]
    pub fn regions(&self) -> Vec<RamRegion> {
        layout(self.start as u64, self.len as u64)
    }
}

impl Drop for GuestRam {
    fn drop(&mut self) {
        self.memory = GuestMemoryMmap::new();
        let mine = self.mappings.drain(..).map(Arc::into_inner).all(|mapping| mapping.is_some());
        if mine {
            // SAFETY: the range was mapped by `new`, and no region refers to it any more.
            unsafe { libc::munmap(self.start, self.len) };
        }
    }
}

/// RAM below the PCI hole, and what does not fit there above 4 GiB.
fn layout(host: u64, bytes: u64) -> Vec<RamRegion> {
    let low = bytes.min(LOW_RAM_MAX_END);
    let mut regions = vec![RamRegion { gpa: 0, host, len: low }];
    if bytes > low {
        regions.push(RamRegion { gpa: HIGH_RAM_START, host: host + low, len: bytes - low });
    }
    regions
}

fn wrap(region: RamRegion, file: Option<FileOffset>) -> io::Result<(Arc<MmapRegion>, Arc<GuestRegionMmap>)> {
    let flags = if file.is_some() { SHARED_FLAGS } else { FLAGS };
    let builder = MmapRegionBuilder::new(region.len as usize).with_mmap_prot(PROT).with_mmap_flags(flags);
    // SAFETY: the region lies in the mapping `GuestRam` owns and keeps while any `MmapRegion` of it lives.
    let builder = unsafe { builder.with_raw_mmap_pointer(region.host as *mut u8) };
    let mapping = match file {
        Some(file) => builder.with_file_offset(file),
        None => builder,
    }
    .build();
    let mapping = Arc::new(mapping.map_err(io::Error::other)?);
    let gpa = GuestAddress(region.gpa);
    let guest = GuestRegionMmap::with_arc(Arc::clone(&mapping), gpa).ok_or_else(|| {
        io::Error::other(format!("RAM at {:#x} ends beyond the address space", gpa.raw_value()))
    })?;
    Ok((mapping, Arc::new(guest)))
}

/// Maps `len` bytes at a multiple of [`HUGE_PAGE`]: one page more is mapped, and what sticks out is given back.
fn map_aligned(len: usize) -> io::Result<*mut libc::c_void> {
    let padded = len.checked_add(HUGE_PAGE).ok_or(io::ErrorKind::OutOfMemory)?;
    // SAFETY: a new anonymous mapping at an address of the kernel's choice.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), padded, PROT, FLAGS, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let head = (start as usize).next_multiple_of(HUGE_PAGE) - start as usize;
    let aligned = start.wrapping_byte_add(head);
    if head > 0 {
        // SAFETY: the first `head` bytes of the mapping made above.
        unsafe { libc::munmap(start, head) };
    }
    // SAFETY: the bytes after the aligned part of that mapping, at least one of them.
    unsafe { libc::munmap(aligned.wrapping_byte_add(len), HUGE_PAGE - head) };
    Ok(aligned)
}

/// Puts `file` in the place of an anonymous mapping that nobody has used yet.
fn map_over(start: *mut libc::c_void, len: usize, file: &File) -> io::Result<()> {
    let flags = SHARED_FLAGS | libc::MAP_FIXED;
    // SAFETY: the range is the caller's own mapping, and nothing refers to it.
    let mapped = unsafe { libc::mmap(start, len, PROT, flags, file.as_raw_fd(), 0) };
    if mapped == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryRegion};

    const GIB: u64 = 1 << 30;

    #[test]
    fn ram_respects_the_pci_hole() {
        for (bytes, expected) in [
            (128 << 20, vec![(0, 128 << 20)]),
            (3 * GIB, vec![(0, 3 * GIB)]),
            (5 * GIB, vec![(0, 3 * GIB), (4 * GIB, 2 * GIB)]),
        ] {
            let ram = GuestRam::new(bytes).unwrap();
            let seen: Vec<_> = ram.regions().iter().map(|region| (region.gpa, region.len)).collect();
            assert_eq!(seen, expected);
            for region in ram.regions() {
                assert_eq!((region.host - region.gpa) % HUGE_PAGE as u64, 0, "large pages line up");
            }
            assert!(!ram.memory().address_in_range(GuestAddress(3 * GIB)));
            let last = GuestAddress(expected.last().unwrap().0 + expected.last().unwrap().1 - 4);
            ram.memory().write_obj(7_u32, last).unwrap();
            assert_eq!(ram.memory().read_obj::<u32>(last).unwrap(), 7);
        }
    }

    #[test]
    fn shared_ram_is_a_file_that_others_can_map_and_nobody_can_cut() {
        let ram = GuestRam::shared(4 * HUGE_PAGE as u64).unwrap();
        assert!(ram.backing().name.ends_with("memfd"));
        let region = ram.memory().iter().next().unwrap();
        let file = region.file_offset().unwrap();
        assert_eq!((file.start(), ram.host_range().start % HUGE_PAGE as u64), (0, 0));
        ram.memory().write_obj(0x1234_u16, GuestAddress(0x20_0000)).unwrap();
        let other = MmapRegion::<()>::from_file(file.clone(), 4 * HUGE_PAGE).unwrap();
        // SAFETY: two bytes inside the mapping made above.
        assert_eq!(unsafe { other.as_ptr().wrapping_byte_add(0x20_0000).cast::<u16>().read() }, 0x1234);
        assert!(file.file().set_len(0).is_err(), "a shorter file would be a SIGBUS");
    }

    #[test]
    fn shared_ram_beyond_4_gib_goes_on_in_the_file() {
        let ram = GuestRam::shared(4 * GIB).unwrap();
        let offsets: Vec<u64> =
            ram.memory().iter().map(|region| region.file_offset().unwrap().start()).collect();
        assert_eq!(offsets, [0, 3 * GIB]);
    }

    #[test]
    fn memory_somebody_still_holds_stays_mapped() {
        let ram = GuestRam::new(HUGE_PAGE as u64).unwrap();
        let held = ram.memory().clone();
        drop(ram);
        held.write_obj(1_u8, GuestAddress(0)).unwrap();
    }

    #[test]
    fn too_much_is_an_error() {
        assert!(GuestRam::new(1 << 50).is_err());
        assert!(GuestRam::new(u64::MAX).is_err());
    }
}
