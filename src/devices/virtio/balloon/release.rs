//! Giving guest memory back to the host.

use std::io;
use std::ops::Range;

use nix::sys::statfs::{HUGETLBFS_MAGIC, fstatfs};
use vm_memory::{
    Address, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap, MemoryRegionAddress,
};

/// Bytes in a page of the balloon (virtio 1.2 §5.5.6) and of the host.
pub(super) const PAGE: u64 = 4096;

/// What became of ranges the guest gave up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Outcome {
    /// Bytes the host has again.
    pub(super) released: u64,
    /// Bytes that are no whole pages of RAM, or that the kernel would not take.
    pub(super) refused: u64,
}

/// Gives the pages of these guest-physical ranges back to the host: until the guest touches them again, nothing is behind
/// them, and what it finds then is zeros. Parts outside RAM and parts of pages are left alone. The order of the ranges is
/// changed; those that touch or overlap become one, so that the kernel can give up huge pages as a whole.
pub(super) fn release(memory: &GuestMemoryMmap, ranges: &mut [Range<u64>]) -> Outcome {
    let mut outcome = Outcome::default();
    for range in coalesce(ranges) {
        let released = release_range(memory, &range);
        let refused = range.end.saturating_sub(range.start).saturating_sub(released);
        outcome.released = outcome.released.saturating_add(released);
        outcome.refused = outcome.refused.saturating_add(refused);
    }
    outcome
}

/// Whether pages that are given back could be missing when the guest wants them again. hugetlb pages come from a pool that
/// others take from too: a fault that finds it empty is a SIGBUS, ours or the guest's, so they are never given back.
pub(super) fn is_kept(region: &GuestRegionMmap) -> bool {
    let on_hugetlbfs = |file| fstatfs(file).is_ok_and(|fs| fs.filesystem_type() == HUGETLBFS_MAGIC);
    region.file_offset().is_some_and(|part| on_hugetlbfs(part.file()))
}

/// The same bytes in ascending, separate ranges.
fn coalesce(ranges: &mut [Range<u64>]) -> Vec<Range<u64>> {
    ranges.sort_unstable_by_key(|range| range.start);
    let mut whole: Vec<Range<u64>> = Vec::new();
    for range in ranges.iter().filter(|range| range.start < range.end) {
        match whole.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => whole.push(range.clone()),
        }
    }
    whole
}

/// Bytes that were released: the whole pages of the range that are RAM.
fn release_range(memory: &GuestMemoryMmap, range: &Range<u64>) -> u64 {
    let mut released = 0_u64;
    let Some(first) = range.start.checked_next_multiple_of(PAGE) else { return 0 };
    let end = range.end & !PAGE.saturating_sub(1);
    for region in memory.iter().filter(|region| !is_kept(region)) {
        let base = region.start_addr().raw_value();
        let (start, end) = (first.max(base), end.min(base.saturating_add(region.len())));
        let Some(len) = end.checked_sub(start).filter(|len| *len > 0) else { continue };
        let Ok(host) = region.get_host_address(MemoryRegionAddress(start.saturating_sub(base))) else {
            continue;
        };
        // Private memory is dropped. What is shared with another process is cut out of its file.
        let shared = region.flags() & libc::MAP_SHARED != 0;
        let advice = if shared { libc::MADV_REMOVE } else { libc::MADV_DONTNEED };
        // SAFETY: `len` bytes from `host` are guest RAM of this region, whole pages of it. Nothing in this process keeps a
        // reference into guest RAM: everybody copies, and finds zeros where pages were.
        if unsafe { libc::madvise(host.cast(), len as usize, advice) } == 0 {
            released = released.saturating_add(len);
        } else {
            let error = io::Error::last_os_error();
            tracing::debug!(%error, gpa = start, len, "guest memory could not be given back");
        }
    }
    released
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::virtio::VirtioDevice;
    use crate::devices::virtio::balloon::{Balloon, BalloonOptions, F_REPORTING};
    use crate::devices::virtio::testing::{HIGH_RAM, HOLE, RAM_BYTES, guest_ram};
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use proptest::prelude::*;
    use vm_memory::{Bytes, FileOffset, GuestAddress};

    fn release_one(memory: &GuestMemoryMmap, range: Range<u64>) -> Outcome {
        release(memory, std::slice::from_mut(&mut { range }))
    }

    fn filled() -> GuestMemoryMmap {
        let memory = guest_ram();
        for base in [0, HIGH_RAM] {
            memory.write_slice(&vec![7; RAM_BYTES as usize], GuestAddress(base)).unwrap();
        }
        memory
    }

    fn byte(memory: &GuestMemoryMmap, address: u64) -> u8 {
        memory.read_obj(GuestAddress(address)).unwrap()
    }

    #[test]
    fn whole_pages_are_dropped_and_their_neighbours_stay() {
        let memory = filled();
        let outcome = release_one(&memory, 0x1800..0x4800);
        assert_eq!(outcome, Outcome { released: 0x2000, refused: 0x1000 });
        assert_eq!((byte(&memory, 0x1fff), byte(&memory, 0x2000)), (7, 0));
        assert_eq!((byte(&memory, 0x3fff), byte(&memory, 0x4000)), (0, 7));
    }

    #[test]
    fn a_range_across_the_hole_is_cut_to_what_is_ram() {
        let memory = filled();
        let outcome = release_one(&memory, HOLE - 0x1000..HIGH_RAM + 0x1000);
        assert_eq!(outcome, Outcome { released: 0x2000, refused: HIGH_RAM - HOLE });
        assert_eq!((byte(&memory, HOLE - 1), byte(&memory, HIGH_RAM)), (0, 0));
        assert_eq!((byte(&memory, HOLE - 0x1001), byte(&memory, HIGH_RAM + 0x1000)), (7, 7));
    }

    #[test]
    fn what_is_no_ram_is_refused() {
        let memory = filled();
        let end = HIGH_RAM + RAM_BYTES;
        for range in [HOLE..HIGH_RAM, end..u64::MAX, u64::MAX - 1..u64::MAX, 0x1001..0x1fff] {
            let len = range.end - range.start;
            assert_eq!(release_one(&memory, range), Outcome { released: 0, refused: len });
        }
        #[allow(clippy::reversed_empty_ranges)]
        let nothing = release(&memory, &mut [5..5, 0x5000..0x1000]);
        assert_eq!(nothing, Outcome::default());
        assert_eq!(byte(&memory, 0x1001), 7);
    }

    #[test]
    fn shared_memory_is_cut_out_of_its_file() {
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        file.set_len(0x8000).unwrap();
        let other = file.try_clone().unwrap();
        let whole = (GuestAddress(0), 0x8000, Some(FileOffset::new(file, 0)));
        let memory = GuestMemoryMmap::from_ranges_with_files([whole]).unwrap();
        memory.write_slice(&[7; 0x8000], GuestAddress(0)).unwrap();
        let blocks = || std::os::unix::fs::MetadataExt::blocks(&other.metadata().unwrap()) * 512;
        assert_eq!(blocks(), 0x8000);
        assert_eq!(release_one(&memory, 0x2000..0x6000), Outcome { released: 0x4000, refused: 0 });
        assert_eq!(blocks(), 0x4000, "the file is smaller for everybody who has it");
        assert_eq!((byte(&memory, 0x1fff), byte(&memory, 0x2000), byte(&memory, 0x6000)), (7, 0, 7));
    }

    /// The pool may be empty here: nothing is touched.
    #[test]
    fn hugetlb_pages_are_never_given_back() {
        const HUGE: usize = 2 << 20;
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB;
        let file = std::fs::File::from(memfd_create(c"pages", flags).unwrap());
        file.set_len(HUGE as u64).unwrap();
        let whole = (GuestAddress(0), HUGE, Some(FileOffset::new(file, 0)));
        let memory = GuestMemoryMmap::from_ranges_with_files([whole]).unwrap();
        assert_eq!(release_one(&memory, 0..HUGE as u64), Outcome { released: 0, refused: HUGE as u64 });
        assert!(memory.iter().all(is_kept) && !filled().iter().any(is_kept));
        let options = BalloonOptions { deflate_on_oom: false, free_page_reporting: true };
        let balloon = Balloon::new(options, &memory).unwrap();
        assert_eq!(balloon.features() & F_REPORTING, 0, "it would be for nothing");
        assert!(balloon.backend().unwrap().contains("hugetlb"));
    }

    proptest! {
        #[test]
        fn coalesced_ranges_are_separate_and_the_same_bytes(
            ranges in prop::collection::vec((0_u64..60, 0_u64..8), 0..20)
        ) {
            let mut ranges: Vec<_> = ranges.into_iter().map(|(start, len)| start..start + len).collect();
            let bytes: Vec<bool> = (0..70).map(|at| ranges.iter().any(|range| range.contains(&at))).collect();
            let whole = coalesce(&mut ranges);
            prop_assert!(whole.windows(2).all(|pair| pair[0].end < pair[1].start));
            let after: Vec<bool> = (0..70).map(|at| whole.iter().any(|range| range.contains(&at))).collect();
            prop_assert_eq!(bytes, after);
        }
    }
}
