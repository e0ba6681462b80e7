//! O_DIRECT: the page cache is left out, and the kernel asks for alignment in return.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use super::{Buffers, DiskError, SECTOR};

/// What requests to a file opened with O_DIRECT must be aligned to, and a second descriptor for those that are not.
#[derive(Debug)]
pub(super) struct Direct {
    /// Of memory addresses and piece lengths, in bytes.
    memory: u64,
    /// Of offsets and lengths in the file, in bytes.
    pub(super) offset: u64,
    /// The same file through the page cache, which the kernel keeps coherent with direct I/O (open(2), O_DIRECT).
    pub(super) cached: File,
}

/// When the kernel does not say: a page satisfies every device.
const SAFE_ALIGNMENT: u64 = 4096;

impl Direct {
    /// Switches `file` to O_DIRECT and learns its alignment.
    pub(super) fn switch_on(file: &File, path: &Path, readonly: bool) -> Result<Self, DiskError> {
        let examine = |source| DiskError::Examine { path: path.into(), cause: source };
        // Opened through its descriptor, so that it is the same file, whatever the path leads to by now.
        let again = format!("/proc/self/fd/{}", file.as_raw_fd());
        let cached = OpenOptions::new()
            .read(true)
            .write(!readonly)
            .custom_flags(libc::O_CLOEXEC)
            .open(again)
            .map_err(examine)?;
        set_o_direct(file).map_err(|error| match error.raw_os_error() {
            Some(libc::EINVAL) => DiskError::NoDirect(path.into()),
            _ => examine(error),
        })?;
        let (memory, offset) = alignment(file).map_err(examine)?;
        if offset == 0 {
            return Err(DiskError::NoDirect(path.into()));
        }
        Ok(Self { memory: memory.max(1), offset, cached })
    }

    /// Whether offset and length suit direct I/O.
    pub(super) fn suits_place(&self, offset: u64, bytes: u64) -> bool {
        offset.is_multiple_of(self.offset) && bytes.is_multiple_of(self.offset)
    }

    /// Whether the memory suits it: each piece as a whole, for a kernel may cut a request between pieces.
    pub(super) fn suits_memory(&self, buffers: &Buffers<'_>) -> bool {
        buffers.is_aligned(self.memory.max(SECTOR.min(self.offset)))
    }

    /// Memory that suits it.
    pub(super) fn bounce(&self, bytes: usize) -> Bounce {
        let alignment = usize::try_from(self.memory.max(self.offset)).unwrap_or(usize::MAX);
        Bounce::new(bytes, alignment)
    }
}

/// Sets O_DIRECT on an open file; the lock stays with it. EINVAL where the file system has no direct I/O.
fn set_o_direct(file: &File) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL)?);
    fcntl(file, FcntlArg::F_SETFL(flags | OFlag::O_DIRECT))?;
    Ok(())
}

/// Alignment of memory and of offsets, from statx(2) STATX_DIOALIGN (Linux 6.1), else of a block device's sectors
/// (BLKSSZGET), else a safe guess. An offset alignment of 0 says that direct I/O does not work on this file.
fn alignment(file: &File) -> io::Result<(u64, u64)> {
    // SAFETY: statx is plain numbers; all zeroes is one of its values.
    let mut found: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the path is an empty string, `found` is as large as the kernel expects, and both live through the call.
    let result = unsafe {
        libc::statx(file.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, libc::STATX_DIOALIGN, &raw mut found)
    };
    if result == 0 && found.stx_mask & libc::STATX_DIOALIGN != 0 {
        return Ok((found.stx_dio_mem_align.into(), found.stx_dio_offset_align.into()));
    }
    if file.metadata()?.file_type().is_block_device() {
        let mut sector: libc::c_int = 0;
        // SAFETY: BLKSSZGET writes one int.
        unsafe { block::sector_size(file.as_raw_fd(), &raw mut sector) }?;
        let sector = u64::try_from(sector).unwrap_or(SAFE_ALIGNMENT);
        return Ok((sector, sector));
    }
    Ok((SAFE_ALIGNMENT, SAFE_ALIGNMENT))
}

/// Requests of linux/fs.h to block devices.
mod block {
    nix::ioctl_read_bad!(sector_size, nix::request_code_none!(0x12, 104), libc::c_int);
}

/// A piece of memory that begins on a multiple of some power of two.
#[derive(Debug)]
pub(super) struct Bounce {
    memory: Vec<u8>,
    start: usize,
    bytes: usize,
}

impl Bounce {
    fn new(bytes: usize, alignment: usize) -> Self {
        let memory = vec![0; bytes.saturating_add(alignment)];
        let start = memory.as_ptr().align_offset(alignment.next_power_of_two());
        Self { memory, start, bytes }
    }

    /// The memory.
    pub(super) fn bytes(&mut self) -> &mut [u8] {
        let end = self.start.saturating_add(self.bytes);
        self.memory.get_mut(self.start..end).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounced_memory_is_aligned() {
        for alignment in [1, 512, 4096] {
            let mut bounce = Bounce::new(100, alignment);
            assert_eq!(bounce.bytes().len(), 100);
            assert_eq!(bounce.bytes().as_ptr() as usize % alignment, 0);
        }
    }
}
