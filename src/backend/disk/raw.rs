//! Raw images: a file or block device whose bytes are the disk's bytes.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

use super::direct::Direct;
use super::lock::lock;
use super::{Access, Buffers, Disk, DiskError, Place, SECTOR, Way, check_range, describe, read_only};

/// The most that is copied at once where the guest's memory does not suit direct I/O.
const BOUNCE_BYTES: u64 = 1 << 20;

/// An open, locked raw image.
#[derive(Debug)]
pub struct RawDisk {
    file: File,
    path: PathBuf,
    /// A multiple of [`SECTOR`].
    bytes: AtomicU64,
    readonly: bool,
    block_device: bool,
    direct: Option<Direct>,
}

/// Opens an image that is a file or a block device, and locks it: exclusively to write, shared to read.
pub(super) fn open_locked(path: &Path, readonly: bool) -> Result<File, DiskError> {
    let access = if readonly { "reading" } else { "writing" };
    let failed = |source| DiskError::Open { path: path.into(), access, cause: source };
    // Before it is opened: opening a FIFO waits, and opening a device can do anything.
    let kind = path.metadata().map_err(failed)?.file_type();
    if !(kind.is_file() || kind.is_block_device()) {
        return Err(DiskError::NotADisk(path.into()));
    }
    let file = OpenOptions::new().read(true).write(!readonly).open(path).map_err(failed)?;
    lock(&file, path, readonly)?;
    Ok(file)
}

impl RawDisk {
    /// Opens and locks the image. The lock goes when the disk does.
    ///
    /// # Errors
    /// See [`DiskError`].
    pub fn open(path: &Path, access: Access) -> Result<Self, DiskError> {
        let examine = |source| DiskError::Examine { path: path.into(), cause: source };
        let file = open_locked(path, access.readonly)?;
        let block_device = file.metadata().map_err(examine)?.file_type().is_block_device();
        let size_bytes = end_of(&file).map_err(examine)?;
        if size_bytes < SECTOR {
            return Err(DiskError::Empty { path: path.into(), size_bytes });
        }
        if size_bytes % SECTOR != 0 {
            tracing::warn!(disk = %path.display(), "the last {} bytes are not a whole sector; the guest does not see them", size_bytes % SECTOR);
        }
        let direct = access.direct.then(|| Direct::switch_on(&file, path, access.readonly)).transpose()?;
        let bytes = AtomicU64::new(whole_sectors(size_bytes));
        Ok(Self { file, path: path.into(), bytes, readonly: access.readonly, block_device, direct })
    }

    /// Transfers in pieces that suit the file, each with the descriptor that suits the piece.
    fn transfer(&self, buffers: &Buffers<'_>, offset: u64, way: Way) -> io::Result<()> {
        check_range(self.size_bytes(), offset, buffers.len())?;
        let Some(direct) = &self.direct else { return way.transfer(&self.file, buffers.clone(), offset) };
        if !direct.suits_place(offset, buffers.len()) {
            return way.transfer(&direct.cached, buffers.clone(), offset);
        }
        if direct.suits_memory(buffers) {
            return way.transfer(&self.file, buffers.clone(), offset);
        }
        let mut done = 0;
        while done < buffers.len() {
            let part = buffers.part(done, BOUNCE_BYTES);
            let mut bounce = direct.bounce(usize::try_from(part.len()).map_err(io::Error::other)?);
            if matches!(way, Way::Write) {
                part.copy_to(bounce.bytes());
            }
            way.transfer(&self.file, Buffers::of_slice(bounce.bytes()), offset.saturating_add(done))?;
            if matches!(way, Way::Read) {
                part.fill_from(bounce.bytes());
            }
            done += part.len();
        }
        Ok(())
    }

    /// The range of a change, as fallocate(2) takes it; `None` for an empty one.
    fn change(&self, offset: u64, bytes: u64) -> io::Result<Option<(i64, i64)>> {
        if self.readonly {
            return Err(read_only());
        }
        check_range(self.size_bytes(), offset, bytes)?;
        let signed = |number: u64| i64::try_from(number).map_err(io::Error::other);
        if bytes == 0 { Ok(None) } else { Ok(Some((signed(offset)?, signed(bytes)?))) }
    }

    fn punch(&self, (offset, bytes): (i64, i64)) -> nix::Result<()> {
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(&self.file, flags, offset, bytes)
    }

    fn zero_range(&self, (offset, bytes): (i64, i64)) -> nix::Result<()> {
        let flags = FallocateFlags::FALLOC_FL_ZERO_RANGE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(&self.file, flags, offset, bytes)
    }

    /// Writes zeroes as data, where nothing cheaper works.
    fn zero_by_hand(&self, offset: u64, bytes: u64) -> io::Result<()> {
        let file = self.direct.as_ref().map_or(&self.file, |direct| &direct.cached);
        let mut zeroes = vec![0; 64 << 10];
        let mut done = 0;
        while done < bytes {
            let part = Buffers::of_slice(&mut zeroes).part(0, bytes - done);
            let count = part.len();
            Way::Write.transfer(file, part, offset.saturating_add(done))?;
            done += count;
        }
        Ok(())
    }
}

impl Disk for RawDisk {
    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn size_bytes(&self) -> u64 {
        self.bytes.load(Ordering::Acquire)
    }

    fn readonly(&self) -> bool {
        self.readonly
    }

    fn block_bytes(&self) -> u32 {
        let direct = self.direct.as_ref().map_or(SECTOR, |direct| direct.offset.max(SECTOR));
        u32::try_from(direct).unwrap_or(SECTOR as u32)
    }

    fn read_at(&self, buffers: &Buffers<'_>, offset: u64) -> io::Result<()> {
        self.transfer(buffers, offset, Way::Read)
    }

    fn write_at(&self, buffers: &Buffers<'_>, offset: u64) -> io::Result<()> {
        if self.readonly {
            return Err(read_only());
        }
        self.transfer(buffers, offset, Way::Write)
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn discard(&self, offset: u64, bytes: u64) -> io::Result<()> {
        let Some(range) = self.change(offset, bytes)? else { return Ok(()) };
        let done = if self.block_device {
            let range = [offset, bytes];
            // SAFETY: BLKDISCARD reads two 64-bit numbers.
            unsafe { ioctl::discard(self.file.as_raw_fd(), &raw const range) }.map(drop)
        } else {
            self.punch(range)
        };
        match done {
            // A discard is advice: who cannot take it loses nothing (virtio 1.2 §5.2.6.2). EINVAL is a device whose own
            // granularity does not suit the range.
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::ENOTTY | Errno::EINVAL) => Ok(()),
            other => other.map_err(io::Error::from),
        }
    }

    fn write_zeroes(&self, offset: u64, bytes: u64, unmap: bool) -> io::Result<()> {
        let Some(range) = self.change(offset, bytes)? else { return Ok(()) };
        // A hole reads as zeroes, in a file and (Linux 4.9) in a block device; each refusal leads to the next best way.
        if unmap && self.punch(range).is_ok() {
            return Ok(());
        }
        match self.zero_range(range) {
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL) => self.zero_by_hand(offset, bytes),
            other => other.map_err(io::Error::from),
        }
    }

    fn reread_size(&self) -> io::Result<u64> {
        let bytes = whole_sectors(end_of(&self.file)?);
        self.bytes.store(bytes, Ordering::Release);
        Ok(bytes)
    }

    /// A file grows by a hole; a block device's size is its owner's affair.
    fn grow(&self, bytes: u64) -> io::Result<u64> {
        if self.readonly {
            return Err(read_only());
        }
        if !self.block_device && bytes > self.reread_size()? {
            self.file.set_len(whole_sectors(bytes))?;
        }
        self.reread_size()
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        let end = self.size_bytes();
        let seek = |from: u64, whence| {
            let from = i64::try_from(from).map_err(|_| Errno::EOVERFLOW)?;
            nix::unistd::lseek(&self.file, from, whence).map(|at| u64::try_from(at).unwrap_or(end))
        };
        if offset >= end {
            return Ok(None);
        }
        let start = match seek(offset, nix::unistd::Whence::SeekData) {
            Ok(start) => start,
            Err(Errno::ENXIO) => return Ok(None),
            // Who knows no holes has data everywhere.
            Err(_) => return Ok(Some(offset..end)),
        };
        let hole = seek(start, nix::unistd::Whence::SeekHole).unwrap_or(end);
        Ok((start < end).then(|| start..hole.min(end)))
    }

    fn is_plain_file(&self) -> bool {
        true
    }

    fn place(&self, way: Way, buffers: &Buffers<'_>, offset: u64) -> Option<Place<'_>> {
        if way == Way::Write && self.readonly {
            return None;
        }
        check_range(self.size_bytes(), offset, buffers.len()).ok()?;
        let suits = self
            .direct
            .as_ref()
            .is_none_or(|direct| direct.suits_place(offset, buffers.len()) && direct.suits_memory(buffers));
        suits.then(|| Place { file: self.file.as_fd(), offset })
    }

    fn flush_file(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }

    fn description(&self) -> String {
        let direct: &[&str] = if self.direct.is_some() { &["direct"] } else { &[] };
        describe("raw", self, direct)
    }
}

/// The end of a block device is its size, where its metadata says 0.
pub(super) fn end_of(mut file: &File) -> io::Result<u64> {
    file.seek(SeekFrom::End(0))
}

fn whole_sectors(bytes: u64) -> u64 {
    bytes - bytes % SECTOR
}

/// Requests of linux/fs.h to block devices.
mod ioctl {
    nix::ioctl_write_ptr_bad!(discard, nix::request_code_none!(0x12, 119), [u64; 2]);
}

impl Way {
    /// Transfers all of `buffers` at `offset`, however often the kernel stops in between.
    fn transfer(self, file: &File, mut buffers: Buffers<'_>, mut offset: u64) -> io::Result<()> {
        let vectored = match self {
            Self::Read => libc::preadv,
            Self::Write => libc::pwritev,
        };
        while !buffers.is_empty() {
            let vectors = buffers.vectors();
            let at = libc::off_t::try_from(offset).map_err(io::Error::other)?;
            // SAFETY: every vector is memory that `Buffers` keeps mapped; a guest may change it at any time, but no Rust
            // reference to it exists.
            let done =
                unsafe { vectored(file.as_raw_fd(), vectors.as_ptr(), vectors.len() as libc::c_int, at) };
            match u64::try_from(done) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(done) => {
                    offset = offset.saturating_add(done);
                    buffers.advance(done);
                }
                Err(_) => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        return Err(error);
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
