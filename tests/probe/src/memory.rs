//! Memory that is taken, and given back when told.

use std::io::{BufRead, Write};
use std::num::NonZeroUsize;

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use crate::error::{Doing, Error, Result};

const PAGE: usize = 4096;

/// `mem-touch`: touches every page, waits for a line, frees them all, waits for a line again.
pub(crate) fn touch(bytes: usize) -> Result<()> {
    let len =
        NonZeroUsize::new(bytes).ok_or_else(|| Error::Arguments("--bytes 0 is nothing to touch".into()))?;
    let (rights, flags) = (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_PRIVATE);
    // SAFETY: asks for new memory at an address of the kernel's choice.
    let memory = unsafe { mmap_anonymous(None, len, rights, flags) }.doing(format!("take {bytes} bytes"))?;
    // Not zeroes, so that nobody can share or drop a page unnoticed.
    for offset in (0..bytes).step_by(PAGE) {
        // SAFETY: `offset` is below the length of the mapping.
        let byte = unsafe { memory.cast::<u8>().add(offset) };
        // SAFETY: the byte is in memory that was mapped above for writing, and nobody else knows of it.
        unsafe { byte.as_ptr().write_volatile(0xa5) };
    }
    say(&format!("touched={bytes}"))?;
    await_line()?;
    // SAFETY: this is the whole mapping made above, and no reference into it is left.
    unsafe { munmap(memory, bytes) }.doing(format!("free {bytes} bytes"))?;
    say(&format!("freed={bytes}"))?;
    await_line()
}

fn say(text: &str) -> Result<()> {
    println!("{text}");
    std::io::stdout().flush().doing("write to standard output")
}

/// Waits for a line, or the end, of standard input.
fn await_line() -> Result<()> {
    std::io::stdin().lock().read_line(&mut String::new()).doing("read standard input").map(drop)
}
