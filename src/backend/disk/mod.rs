//! The host side of disks: what an image is, how it is opened and locked, and who does its I/O.
//!
//! ```text
//! Engine      requests with tags in, completions out; io_uring, or a few threads
//!   │
//! dyn Disk    bytes at offsets: RawDisk, Qcow2Disk, CompositeDisk
//!   │
//! files       locked: one writer or many readers
//! ```

mod buffers;
mod composite;
mod convert;
mod create;
mod detect;
mod direct;
mod draft;
mod engine;
mod error;
mod info;
mod lock;
mod qcow2;
mod raw;

use std::fmt::Debug;
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::Arc;

pub use self::buffers::Buffers;
pub use self::composite::{CompositeDisk, Partition};
pub use self::convert::{Progress, convert};
pub use self::create::{Backing, NewImage, create};
use self::detect::looks_like_qcow2;
pub use self::detect::{Format, detect};
pub use self::engine::{Engine, Io, Operation, Request};
pub use self::error::DiskError;
pub use self::info::{ImageInfo, Layer, info};
pub use self::lock::Held;
pub use self::qcow2::Qcow2Disk;
pub use self::raw::RawDisk;

/// Bytes in a sector, the unit of the virtio-blk protocol (virtio 1.2 §5.2.4).
pub const SECTOR: u64 = 512;

/// A disk as a device sees it: bytes at offsets. Requests may come from several threads at once; two that overlap and are
/// in flight together may be done in either order.
pub trait Disk: Debug + Send + Sync {
    /// What it is called in messages: its path, or for a composite disk `partitions LABEL:PATH, LABEL:PATH:ro`.
    fn name(&self) -> String;

    /// Size in bytes, a multiple of [`SECTOR`].
    fn size_bytes(&self) -> u64;

    /// Whether nothing can be written.
    fn readonly(&self) -> bool;

    /// What requests should be aligned to, in bytes; at least [`SECTOR`]. Others are served, but more slowly.
    fn block_bytes(&self) -> u32 {
        SECTOR as u32
    }

    /// Fills `buffers` from byte `offset`.
    ///
    /// # Errors
    /// The kernel's own, and a range that is not on the disk.
    fn read_at(&self, buffers: &Buffers<'_>, offset: u64) -> io::Result<()>;

    /// Writes `buffers` at byte `offset`.
    ///
    /// # Errors
    /// The kernel's own, a range that is not on the disk, and a disk that is read-only.
    fn write_at(&self, buffers: &Buffers<'_>, offset: u64) -> io::Result<()>;

    /// Every write that has completed is on the medium when this returns.
    ///
    /// # Errors
    /// The kernel's own.
    fn flush(&self) -> io::Result<()>;

    /// The guest does not need these bytes any more: they keep their values or read as zeroes from now on.
    ///
    /// # Errors
    /// As for [`write_at`](Self::write_at). That a file system has no holes is none.
    fn discard(&self, offset: u64, bytes: u64) -> io::Result<()>;

    /// These bytes read as zeroes from now on; with `unmap`, the space may be given back.
    ///
    /// # Errors
    /// As for [`write_at`](Self::write_at).
    fn write_zeroes(&self, offset: u64, bytes: u64, unmap: bool) -> io::Result<()>;

    /// Looks whether the image has become larger or smaller, and returns its size in bytes from now on.
    ///
    /// # Errors
    /// The kernel's own.
    fn reread_size(&self) -> io::Result<u64>;

    /// Makes the image `bytes` large; it never becomes smaller. Returns its size from now on.
    ///
    /// # Errors
    /// The kernel's own, and a disk that cannot grow.
    fn grow(&self, bytes: u64) -> io::Result<u64>;

    /// The next bytes from `offset` on that may be something else than zeroes; `None` when all the rest is zeroes.
    ///
    /// # Errors
    /// The kernel's own.
    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>>;

    /// Whether most transfers have a [place](Self::place).
    fn is_plain_file(&self) -> bool {
        false
    }

    /// The file and the offset in it where the kernel can do the transfer as it is, if there is such a place. There is none
    /// for a write to what is read-only.
    fn place(&self, way: Way, buffers: &Buffers<'_>, offset: u64) -> Option<Place<'_>> {
        let _ = (way, buffers, offset);
        None
    }

    /// The file whose fdatasync(2) is the disk's flush, if that is all a flush takes.
    fn flush_file(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// What it is, for the status: `raw, 1073741824 bytes, read-only`.
    fn description(&self) -> String;
}

/// Which way a transfer goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the disk to the memory.
    Read,
    /// From the memory to the disk.
    Write,
}

/// Where a transfer happens.
#[derive(Debug, Clone, Copy)]
pub struct Place<'d> {
    /// The file.
    pub file: BorrowedFd<'d>,
    /// The offset in it, in bytes.
    pub offset: u64,
}

/// How an image is opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Access {
    /// Nothing is written, and the lock is shared.
    pub readonly: bool,
    /// The page cache is left out (`O_DIRECT`).
    pub direct: bool,
}

impl Access {
    /// To read and write, through the page cache.
    pub const WRITE: Self = Self { readonly: false, direct: false };
    /// To read, through the page cache.
    pub const READ: Self = Self { readonly: true, direct: false };
}

/// An image to be opened.
#[derive(Debug, Clone)]
pub struct Image {
    /// The file or block device.
    pub path: PathBuf,
    /// Its format, or `None` to [detect](detect()) it.
    pub format: Option<Format>,
    /// How.
    pub access: Access,
    /// Whether the file that a qcow2 image names as its backing file is opened.
    pub follow_backing: bool,
}

impl Image {
    /// Opens and locks the image.
    ///
    /// # Errors
    /// See [`DiskError`].
    pub fn open(&self) -> Result<Arc<dyn Disk>, DiskError> {
        let format = match self.format {
            Some(format) => format,
            None => detect(&self.path)?,
        };
        Ok(match format {
            Format::Raw => Arc::new(RawDisk::open(&self.path, self.access)?),
            Format::Qcow2 => Arc::new(Qcow2Disk::open(&self.path, self.access, self.follow_backing)?),
        })
    }
}

/// The error of a request outside the disk; `Ok` for one inside.
fn check_range(size_bytes: u64, offset: u64, bytes: u64) -> io::Result<()> {
    match offset.checked_add(bytes) {
        Some(end) if end <= size_bytes => Ok(()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "the range is not on the disk")),
    }
}

/// The error of a write to what is read-only.
fn read_only() -> io::Error {
    io::ErrorKind::ReadOnlyFilesystem.into()
}

/// `raw, 1073741824 bytes, read-only`.
fn describe(format: &str, disk: &dyn Disk, more: &[&str]) -> String {
    let mut text = format!("{format}, {} bytes", disk.size_bytes());
    let readonly = disk.readonly().then_some("read-only");
    for word in more.iter().copied().chain(readonly) {
        text.push_str(", ");
        text.push_str(word);
    }
    text
}

#[cfg(test)]
mod full;
#[cfg(test)]
mod model;
