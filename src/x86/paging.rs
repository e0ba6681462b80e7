//! The page tables a 64-bit kernel is entered with.

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::layout::{GIB, PAGE_TABLES_START};

/// Present and writable (SDM Vol. 3A §4.5, tables 4-15 to 4-18).
const PRESENT_WRITABLE: u64 = 0b11;
/// The entry maps a 2 MiB page instead of pointing to a page table.
const HUGE_PAGE: u64 = 1 << 7;
const PAGE_BYTES: u64 = 4096;
const TABLE_ENTRIES: u64 = 512;
/// What one page directory covers is 1 GiB, so four of them cover everything below 4 GiB.
const DIRECTORIES: u64 = 4;
const _: () = assert!(PAGE_TABLES_START + (2 + DIRECTORIES) * PAGE_BYTES == super::layout::PAGE_TABLES_END);

/// Writes page tables that map the first 4 GiB one to one and returns the address for `CR3`.
///
/// The boot protocol asks that the kernel, boot_params and command line are identity-mapped; all of them lie below
/// 4 GiB. Pages are 2 MiB, because 1 GiB pages are an optional feature (CPUID 8000_0001h EDX bit 26).
///
/// # Errors
/// When the guest has no RAM at [`PAGE_TABLES_START`].
pub fn write_identity_map(memory: &GuestMemoryMmap) -> Result<GuestAddress, vm_memory::GuestMemoryError> {
    let pml4 = PAGE_TABLES_START;
    let pointers = pml4 + PAGE_BYTES;
    let directories = pointers + PAGE_BYTES;

    write_table(memory, pml4, &[pointers | PRESENT_WRITABLE])?;
    let entries: Vec<u64> =
        (0..DIRECTORIES).map(|i| (directories + i * PAGE_BYTES) | PRESENT_WRITABLE).collect();
    write_table(memory, pointers, &entries)?;
    for directory in 0..DIRECTORIES {
        let pages: Vec<u64> = (0..TABLE_ENTRIES)
            .map(|page| (directory * GIB + (page << 21)) | PRESENT_WRITABLE | HUGE_PAGE)
            .collect();
        write_table(memory, directories + directory * PAGE_BYTES, &pages)?;
    }
    Ok(GuestAddress(pml4))
}

/// Writes the first entries of one table; the rest of its page is zero in fresh RAM and stays "not present".
fn write_table(
    memory: &GuestMemoryMmap,
    start: u64,
    entries: &[u64],
) -> Result<(), vm_memory::GuestMemoryError> {
    let bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.to_le_bytes()).collect();
    memory.write_slice(&bytes, GuestAddress(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Walks the tables the way the CPU does (SDM Vol. 3A §4.5.4).
    fn translate(memory: &GuestMemoryMmap, cr3: u64, address: u64) -> Option<u64> {
        let mut table = cr3;
        for shift in [39, 30, 21] {
            let index = (address >> shift) & (TABLE_ENTRIES - 1);
            let entry: u64 = memory.read_obj(GuestAddress(table + index * 8)).unwrap();
            if entry & 1 == 0 {
                return None;
            }
            if entry & HUGE_PAGE != 0 {
                return Some((entry & !0x1f_ffff) | (address & 0x1f_ffff));
            }
            table = entry & !0xfff;
        }
        None
    }

    #[test]
    fn every_address_below_4_gib_maps_to_itself_and_nothing_above_is_mapped() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let cr3 = write_identity_map(&memory).unwrap().0;
        for address in [0, 0x1234, 0x1f_ffff, 0x20_0000, GIB - 1, GIB, 3 * GIB + 5, 4 * GIB - 1] {
            assert_eq!(translate(&memory, cr3, address), Some(address));
        }
        assert_eq!(translate(&memory, cr3, 4 * GIB), None);
        assert_eq!(translate(&memory, cr3, 512 * GIB), None);
    }

    #[test]
    fn a_guest_without_ram_there_is_an_error() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x9000)]).unwrap();
        assert!(write_identity_map(&memory).is_err());
    }
}
