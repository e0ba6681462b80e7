//! Random bytes of the kernel.

use std::io;

/// Up to so many bytes at once never come short (getrandom(2)).
const WHOLE: usize = 256;

/// Fills `bytes`; waits only for a kernel that has just started.
///
/// # Errors
/// The kernel's own.
pub fn fill(bytes: &mut [u8]) -> io::Result<()> {
    for part in bytes.chunks_mut(WHOLE) {
        // SAFETY: the pointer and the length are those of `part`.
        let read = unsafe { libc::getrandom(part.as_mut_ptr().cast(), part.len(), 0) };
        if read != part.len().cast_signed() {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
