//! The page of boot information: what the PVH boot protocol wants to know (Xen's `hvm_start_info`, version 1).

use crate::error::{Error, Result};

/// Where the page is, and where the ROM finds the two numbers it needs: the address of `hvm_start_info`, then the
/// kernel's entry point.
pub(crate) const HANDOFF: u32 = 0x10_0000;

const PAGE: usize = 4096;
const START_INFO: usize = 0x40;
const MODULES: usize = 0x80;
const MEMORY_MAP: usize = 0x100;
const COMMAND_LINE: usize = 0x200;
/// What is left for the command line, and what Linux takes (2048), whichever is less.
const COMMAND_LINE_LIMIT: usize = 2047;

const MAGIC: u32 = 0x336e_c578;
const USABLE: u32 = 1;
const RESERVED: u32 = 2;
/// Bochs' BIOS puts its ACPI tables into the last 64 KiB.
pub(crate) const ACPI_BYTES: u64 = 0x1_0000;

/// What the page tells.
pub(crate) struct BootInfo<'a> {
    pub entry: u32,
    pub memory_bytes: u64,
    pub initramfs: u64,
    pub initramfs_bytes: u64,
    pub command_line: &'a str,
}

impl BootInfo<'_> {
    /// The page, to be placed at [`HANDOFF`].
    pub(crate) fn page(&self) -> Result<Vec<u8>> {
        let length = self.command_line.len();
        if length > COMMAND_LINE_LIMIT {
            return Err(Error::CommandLine { length, limit: COMMAND_LINE_LIMIT });
        }
        let at = |offset: usize| u64::from(HANDOFF) + offset as u64;
        let map = self.memory_map();
        let mut page = Page(vec![0; PAGE]);
        page.put(0, &[HANDOFF + START_INFO as u32, self.entry]);
        page.put(START_INFO, &[MAGIC, 1, 0, 1]); // magic, version, flags, number of modules
        page.put(START_INFO + 16, &[at(MODULES), at(COMMAND_LINE), 0, at(MEMORY_MAP)]);
        page.put(START_INFO + 48, &[map.len() as u32, 0]);
        page.put(MODULES, &[self.initramfs, self.initramfs_bytes, 0, 0]);
        for (index, (start, end, kind)) in map.iter().enumerate() {
            page.put(MEMORY_MAP + 24 * index, &[*start, end - start]);
            page.put(MEMORY_MAP + 24 * index + 16, &[*kind, 0]);
        }
        page.0[COMMAND_LINE..COMMAND_LINE + length].copy_from_slice(self.command_line.as_bytes());
        Ok(page.0)
    }

    /// (start, end, kind) of each range.
    fn memory_map(&self) -> [(u64, u64, u32); 5] {
        let tables = self.memory_bytes - ACPI_BYTES;
        [
            (0, 0x9_fc00, USABLE),
            (0x9_fc00, 0x10_0000, RESERVED),
            (0x10_0000, tables, USABLE),
            (tables, self.memory_bytes, RESERVED),
            (0xfffc_0000, 0x1_0000_0000, RESERVED),
        ]
    }
}

struct Page(Vec<u8>);

impl Page {
    /// Writes little-endian numbers one after the other.
    fn put<N: Number>(&mut self, at: usize, numbers: &[N]) {
        let bytes: Vec<u8> = numbers.iter().flat_map(N::bytes).collect();
        self.0[at..at + bytes.len()].copy_from_slice(&bytes);
    }
}

trait Number {
    fn bytes(&self) -> Vec<u8>;
}

impl Number for u32 {
    fn bytes(&self) -> Vec<u8> {
        self.to_le_bytes().to_vec()
    }
}

impl Number for u64 {
    fn bytes(&self) -> Vec<u8> {
        self.to_le_bytes().to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(command_line: &str) -> BootInfo<'_> {
        BootInfo {
            entry: 0x100_1234,
            memory_bytes: 1 << 30,
            initramfs: 0x800_0000,
            initramfs_bytes: 4711,
            command_line,
        }
    }

    #[test]
    fn the_page_follows_the_protocol() {
        let page = info("quiet panic=-1").page().unwrap();
        let u32_at = |at: usize| u32::from_le_bytes(page[at..at + 4].try_into().unwrap());
        let u64_at = |at: usize| u64::from_le_bytes(page[at..at + 8].try_into().unwrap());
        let local = |address: u64| (address - u64::from(HANDOFF)) as usize;
        assert_eq!(u32_at(4), 0x100_1234);
        let start = local(u32_at(0).into());
        assert_eq!([u32_at(start), u32_at(start + 4), u32_at(start + 12)], [0x336e_c578, 1, 1]);
        let module = local(u64_at(start + 16));
        assert_eq!([u64_at(module), u64_at(module + 8)], [0x800_0000, 4711]);
        let line = local(u64_at(start + 24));
        assert_eq!(&page[line..line + 15], b"quiet panic=-1\0");
        let map = local(u64_at(start + 40));
        let entries = u32_at(start + 48) as usize;
        let usable: u64 = (0..entries)
            .map(|i| map + 24 * i)
            .filter(|at| u32_at(at + 16) == 1)
            .map(|at| u64_at(at + 8))
            .sum();
        assert_eq!(usable, (1 << 30) - ACPI_BYTES - (0x10_0000 - 0x9_fc00));
    }

    #[test]
    fn a_command_line_that_linux_would_cut_is_refused() {
        assert!(info(&"x".repeat(COMMAND_LINE_LIMIT)).page().is_ok());
        assert!(matches!(info(&"x".repeat(2048)).page(), Err(Error::CommandLine { length: 2048, .. })));
    }
}
