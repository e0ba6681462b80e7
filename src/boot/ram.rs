//! Where the guest has RAM, and how that is told to it.

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use super::BootError;
use crate::x86::layout::{
    ACPI_END, ACPI_START, HIGH_MEMORY_START, KVM_IDENTITY_MAP_START, LOW_MEMORY_END, LOW_RAM_MAX_END, MIB,
    PCI_ECAM_SIZE, PCI_ECAM_START,
};

/// First byte after the pages kvm_intel needs: the identity map and, right after it, three pages of TSS.
const KVM_PAGES_END: u64 = KVM_IDENTITY_MAP_START + 4 * 4096;

/// As many ranges as boot_params has room for; a machine here has seven.
const MAX_RANGES: usize = 128;

/// The guest's RAM: one run from 0, and what lies above the PCI hole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ram {
    /// End of the RAM that starts at 0, at most [`LOW_RAM_MAX_END`].
    pub low_end: u64,
    /// First address and size in bytes of each run above that.
    pub high: Vec<(u64, u64)>,
}

/// What a range of guest physical addresses is, with the numbers e820 and the PVH memory map share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum RangeKind {
    /// Usable RAM.
    Ram = 1,
    /// Not to be touched.
    Reserved = 2,
    /// ACPI tables, which the guest may reclaim after reading them.
    Acpi = 3,
}

/// One entry of the memory map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// First guest physical address.
    pub start: u64,
    /// Size in bytes.
    pub size: u64,
    /// What it is.
    pub kind: RangeKind,
}

impl Ram {
    /// Reads the layout off `memory`; adjacent regions count as one.
    ///
    /// # Errors
    /// When less than 2 MiB start at address 0: that is where the boot tables go.
    pub fn of(memory: &GuestMemoryMmap) -> Result<Self, BootError> {
        let mut ram = Self { low_end: 0, high: Vec::new() };
        for region in memory.iter() {
            let (start, size) = (region.start_addr().0, region.len());
            if start == ram.low_end && start < LOW_RAM_MAX_END {
                ram.low_end = (start + size).min(LOW_RAM_MAX_END);
            } else if start >= LOW_RAM_MAX_END {
                ram.add_high(start, size);
            }
        }
        if ram.low_end < 2 * MIB {
            return Err(BootError::TooLittleRam { ram_bytes: ram.low_end });
        }
        Ok(ram)
    }

    fn add_high(&mut self, start: u64, size: u64) {
        match self.high.last_mut() {
            Some((last, last_size)) if *last + *last_size == start => *last_size += size,
            _ => self.high.push((start, size)),
        }
    }

    /// The memory map as PC firmware would report it, in ascending order.
    ///
    /// ECAM is reserved here besides in the ACPI namespace: kernels look for it in either place.
    #[must_use]
    pub fn map(&self) -> Vec<Range> {
        let range = |start: u64, end: u64, kind| Range { start, size: end - start, kind };
        let mut map = vec![
            range(0, LOW_MEMORY_END, RangeKind::Ram),
            range(LOW_MEMORY_END, ACPI_START, RangeKind::Reserved),
            range(ACPI_START, ACPI_END, RangeKind::Acpi),
            range(HIGH_MEMORY_START, self.low_end, RangeKind::Ram),
            range(PCI_ECAM_START, PCI_ECAM_START + PCI_ECAM_SIZE, RangeKind::Reserved),
            range(KVM_IDENTITY_MAP_START, KVM_PAGES_END, RangeKind::Reserved),
        ];
        map.extend(self.high.iter().map(|&(start, size)| Range { start, size, kind: RangeKind::Ram }));
        map.truncate(MAX_RANGES);
        map
    }

    /// Whether `bytes` from `start` are all RAM below the PCI hole.
    #[must_use]
    pub fn low_contains(&self, start: GuestAddress, bytes: u64) -> bool {
        start.0.checked_add(bytes).is_some_and(|end| end <= self.low_end)
    }
}
