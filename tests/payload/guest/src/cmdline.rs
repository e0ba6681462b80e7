//! What the boot loader passed: `hvm_start_info`, its command line and its memory map.

use crate::io::peek;

unsafe extern "C" {
    static boot_start_info: u32;
}

/// `XEN_HVM_START_MAGIC_VALUE`.
pub const START_MAGIC: u32 = 0x336e_c578;

/// One entry of the memory map.
#[derive(Debug, Clone, Copy)]
pub struct MapEntry {
    /// First address.
    pub start: u64,
    /// Bytes.
    pub size: u64,
    /// e820 type.
    pub kind: u32,
}

/// Address of the start info.
#[must_use]
pub fn start_info() -> u64 {
    // SAFETY: written once by `start.s` before any Rust code runs.
    u64::from(unsafe { (&raw const boot_start_info).read() })
}

/// The memory map.
pub fn memory_map() -> impl Iterator<Item = MapEntry> {
    let (table, count) = (peek::<u64>(start_info() + 40), peek::<u32>(start_info() + 48));
    (0..u64::from(count)).map(move |index| {
        let entry = table + index * 24;
        MapEntry { start: peek(entry), size: peek(entry + 8), kind: peek(entry + 16) }
    })
}

/// The kernel command line.
#[must_use]
pub fn text() -> &'static str {
    let start: u64 = peek(start_info() + 24);
    let len = (0..2048).take_while(|&at| peek::<u8>(start + at) != 0).count();
    // SAFETY: the boot loader's text stays where it is; nothing here writes to it.
    let bytes = unsafe { core::slice::from_raw_parts(start as *const u8, len) };
    core::str::from_utf8(bytes).unwrap_or_default()
}

/// The value of `key=value`.
#[must_use]
pub fn value(key: &str) -> Option<&'static str> {
    text().split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
}

/// The number `key=value` gives, or `default`.
#[must_use]
pub fn number(key: &str, default: u64) -> u64 {
    value(key).and_then(|text| text.parse().ok()).unwrap_or(default)
}
