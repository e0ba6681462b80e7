//! Why a guest reset: did its kernel panic, and what did it say?
//!
//! A stock kernel has no console before it loads the virtio modules, so a panic before that is silent. But its words are
//! in its log buffer, and the log buffer is in guest RAM.

use memchr::memmem;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::memory::RamRegion;
use crate::backend::console::printable;
use crate::x86::layout::{BDA_RESET_FLAG, BDA_WARM_RESET};

/// How every Linux panic starts.
pub(super) const PANIC: &str = "Kernel panic - not syncing";
/// Bytes searched at once.
const WINDOW: usize = 1 << 20;
/// How far before the panic its log lines are looked for.
const LOG_BYTES: u64 = 16 << 10;
/// Log lines kept.
const LOG_LINES: usize = 40;
/// Runs of printable bytes shorter than this are not log lines.
const MIN_LINE: usize = 6;
const MAX_MESSAGE: usize = 400;
const PAGE: usize = 4096;

/// What guest memory says about the guest's end.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Postmortem {
    /// The panic message.
    pub(super) message: Option<String>,
    /// The last lines of the kernel's log, when a panic was found there.
    pub(super) log: Vec<String>,
}

/// Whether the guest marked its reset as the end of a panic (`reboot=panic_warm`).
pub(super) fn reset_after_panic(memory: &GuestMemoryMmap) -> bool {
    memory.read_obj::<u16>(GuestAddress(BDA_RESET_FLAG)).is_ok_and(|flag| flag == BDA_WARM_RESET)
}

/// Looks for a panic in the RAM the guest has touched; pages it never touched are not touched here either.
pub(super) fn examine(memory: &GuestMemoryMmap, regions: &[RamRegion]) -> Postmortem {
    let found = regions.iter().find_map(|region| {
        resident_windows(region).find_map(|(offset, len)| find_panic(memory, region.gpa + offset, len))
    });
    found.map_or_else(Postmortem::default, |(at, message)| Postmortem {
        message: Some(message),
        log: log_before(memory, at),
    })
}

/// Offsets and lengths of the runs of touched pages, cut into windows that overlap by a message's length.
fn resident_windows(region: &RamRegion) -> impl Iterator<Item = (u64, usize)> {
    let len = region.len as usize;
    let host = region.host;
    (0..len).step_by(WINDOW).filter_map(move |offset| {
        let window = WINDOW.min(len - offset);
        let touched = resident_pages(host + offset as u64, window).any(|resident| resident);
        touched.then(|| (offset as u64, (window + MAX_MESSAGE).min(len - offset)))
    })
}

fn resident_pages(host: u64, len: usize) -> impl Iterator<Item = bool> {
    let mut pages = vec![0_u8; len.div_ceil(PAGE)];
    // SAFETY: the vector has one byte per page of the range, which is mapped guest RAM.
    let failed = unsafe { libc::mincore(host as *mut libc::c_void, len, pages.as_mut_ptr()) } != 0;
    pages.into_iter().map(move |page| !failed && page & 1 != 0)
}

/// The first panic message in a window, and where it starts.
fn find_panic(memory: &GuestMemoryMmap, gpa: u64, len: usize) -> Option<(u64, String)> {
    let mut window = vec![0; len];
    memory.read_slice(&mut window, GuestAddress(gpa)).ok()?;
    let mut from = 0;
    while let Some(at) = memmem::find(window.get(from..)?, PANIC.as_bytes()).map(|at| from + at) {
        let text = printable_run(window.get(at..)?);
        // The kernel's own format string has a conversion where the log has words.
        if !text.contains('%') {
            return Some((gpa + at as u64, text));
        }
        from = at + PANIC.len();
    }
    None
}

/// The log lines before (and the line at) the panic. Records in the log buffer are text between binary headers.
fn log_before(memory: &GuestMemoryMmap, panic_at: u64) -> Vec<String> {
    let start = panic_at.saturating_sub(LOG_BYTES);
    let mut bytes = vec![0; (panic_at - start) as usize + MAX_MESSAGE];
    let read = memory.read(&mut bytes, GuestAddress(start)).unwrap_or(0);
    bytes.truncate(read);
    let runs = bytes.split(|&byte| !is_text(byte)).filter(|run| run.len() >= MIN_LINE);
    let lines: Vec<String> = runs.map(|run| printable(without_echo(run))).collect();
    let end = lines.iter().position(|line| line.starts_with(PANIC)).map_or(lines.len(), |at| at + 1);
    lines[..end].iter().skip(end.saturating_sub(LOG_LINES)).cloned().collect()
}

fn printable_run(bytes: &[u8]) -> String {
    let bytes = &bytes[..bytes.len().min(MAX_MESSAGE)];
    let len = bytes.iter().position(|&byte| !is_text(byte)).unwrap_or(bytes.len());
    printable(without_echo(&bytes[..len]))
}

/// A record whose level prefix (two bytes) the kernel has moved out of the way still ends with its last two bytes twice.
fn without_echo(run: &[u8]) -> &[u8] {
    match run {
        [text @ .., a, b, c, d] if (a, b) == (c, d) => &run[..text.len() + 2],
        _ => run,
    }
}

fn is_text(byte: u8) -> bool {
    matches!(byte, b' '..=b'~' | b'\t')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::memory::GuestRam;

    #[test]
    fn the_message_is_found_in_the_log_and_not_in_the_format_string() {
        let ram = GuestRam::new(64 << 20).unwrap();
        let memory = ram.memory();
        memory.write_slice(b"Kernel panic - not syncing: %s\n\0", GuestAddress(0x100_0000)).unwrap();
        let log = b"\x01\0\0\0\0\0\0\0Booting\0\x02\0Run /init failed\0\0\x03\0Kernel panic - not syncing: VFS: no rootot\0\xff";
        memory.write_slice(log, GuestAddress(0x20f_fff0)).unwrap();
        let found = examine(memory, &ram.regions());
        assert_eq!(found.message.unwrap(), "Kernel panic - not syncing: VFS: no root");
        assert_eq!(found.log, ["Booting", "Run /init failed", "Kernel panic - not syncing: VFS: no root"]);
    }

    #[test]
    fn a_message_across_two_windows_is_whole() {
        let ram = GuestRam::new(8 << 20).unwrap();
        let text = b"Kernel panic - not syncing: across";
        ram.memory().write_slice(text, GuestAddress(WINDOW as u64 - 10)).unwrap();
        let found = examine(ram.memory(), &ram.regions());
        assert_eq!(found.message.unwrap().as_bytes(), text);
    }

    #[test]
    fn untouched_ram_has_no_message_and_stays_untouched() {
        let ram = GuestRam::new(1 << 30).unwrap();
        assert_eq!(examine(ram.memory(), &ram.regions()), Postmortem::default());
        assert!(!reset_after_panic(ram.memory()));
        ram.memory().write_obj(BDA_WARM_RESET, GuestAddress(BDA_RESET_FLAG)).unwrap();
        assert!(reset_after_panic(ram.memory()));
        let resident = resident_pages(ram.host_range().start, 1 << 30).filter(|&resident| resident).count();
        assert!(resident <= 512, "{resident} pages");
    }
}
