//! qcow2 images, version 2 and 3, with backing files; imago reads and writes the format.
//!
//! What is refused, and with which mend, is in `header.rs`. An image whose dirty or corrupt bit is set is not opened, not
//! even to read: what it holds cannot be relied on before `qemu-img check -r all` has looked at it. Internal snapshots are
//! kept as they are.

mod chain;
pub(super) mod header;
mod storage;
mod tables;

pub(super) use self::chain::{MAX_LAYERS, backing_format, refuse, resolve};

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use imago::format::PreallocateMode;
use imago::{FormatAccess, Mapping};

use self::storage::TableFile;
use super::{Access, Buffers, Disk, DiskError, SECTOR, check_range, describe, read_only};

/// The most that is copied at once between the guest's memory and ours.
const COPY_BYTES: u64 = 256 << 10;

/// What mends a damaged image.
pub(super) const REPAIR: &str = "repair it with `qemu-img check -r all`, or go back to a copy";

/// Whether an error of imago speaks of what is in the image, and not of the file system below it.
pub(super) fn is_damage(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidData, InvalidInput, Other, UnexpectedEof};
    error.raw_os_error().is_none()
        && matches!(error.kind(), InvalidData | InvalidInput | Other | UnexpectedEof)
}

/// An open, locked qcow2 image with the images it is based on.
///
/// imago works on Rust references, which guest memory cannot be: the guest could change a cluster while it is looked at.
/// So the data of each request is copied once.
pub struct Qcow2Disk {
    /// Written for changes that give clusters away, read for everything else.
    image: RwLock<FormatAccess<TableFile>>,
    path: PathBuf,
    layers: usize,
    access: Access,
}

impl std::fmt::Debug for Qcow2Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Qcow2Disk")
            .field("path", &self.path)
            .field("layers", &self.layers)
            .finish_non_exhaustive()
    }
}

impl Qcow2Disk {
    /// Opens and locks the image and, with `follow_backing`, the images below it. These are opened read-only with shared
    /// locks, so that many images share one base, and a base that somebody has open to write is refused.
    ///
    /// # Errors
    /// See [`DiskError`].
    pub fn open(path: &Path, access: Access, follow_backing: bool) -> Result<Self, DiskError> {
        let opened = chain::open(path, access, follow_backing)?;
        let disk =
            Self { image: RwLock::new(opened.image), path: path.into(), layers: opened.layers, access };
        match disk.size_bytes() {
            0 => Err(DiskError::Empty { path: path.into(), size_bytes: disk.shared().size() }),
            _ => Ok(disk),
        }
    }

    fn shared(&self) -> RwLockReadGuard<'_, FormatAccess<TableFile>> {
        self.image.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn exclusive(&self) -> RwLockWriteGuard<'_, FormatAccess<TableFile>> {
        self.image.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with each piece of a request, small enough to be copied.
    fn in_pieces(
        &self,
        buffers: &Buffers<'_>,
        offset: u64,
        each: impl Fn(&Buffers<'_>, &mut [u8], u64) -> io::Result<()>,
    ) -> io::Result<()> {
        check_range(self.size_bytes(), offset, buffers.len())?;
        let mut copy = vec![0; usize::try_from(buffers.len().min(COPY_BYTES)).map_err(io::Error::other)?];
        let mut done = 0;
        while done < buffers.len() {
            let part = buffers.part(done, COPY_BYTES);
            let room = copy.get_mut(..part.len() as usize).unwrap_or_default();
            each(&part, room, offset.saturating_add(done))?;
            done += part.len();
        }
        Ok(())
    }

    fn zero_by_hand(&self, offset: u64, bytes: u64) -> io::Result<()> {
        let zeroes = vec![0; usize::try_from(bytes.min(COPY_BYTES)).map_err(io::Error::other)?];
        let mut done = 0;
        while done < bytes {
            let count = (bytes - done).min(COPY_BYTES);
            let part = zeroes.get(..count as usize).unwrap_or_default();
            self.shared().write(part, offset.saturating_add(done)).map_err(|error| self.explain(error))?;
            done += count;
        }
        Ok(())
    }

    /// What went wrong, for who does not know how qcow2 images are made. The kernel's own errors speak for themselves.
    fn explain(&self, error: io::Error) -> io::Error {
        if !is_damage(&error) {
            return error;
        }
        let which = if self.layers > 1 { "the image or one below it" } else { "the image" };
        io::Error::new(error.kind(), format!("{which} is damaged ({error}): {REPAIR}"))
    }

    fn check_change(&self, offset: u64, bytes: u64) -> io::Result<()> {
        if self.access.readonly {
            return Err(read_only());
        }
        check_range(self.size_bytes(), offset, bytes)
    }
}

impl Disk for Qcow2Disk {
    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn size_bytes(&self) -> u64 {
        let bytes = self.shared().size();
        bytes - bytes % SECTOR
    }

    fn readonly(&self) -> bool {
        self.access.readonly
    }

    fn read_at(&self, buffers: &Buffers<'_>, offset: u64) -> io::Result<()> {
        self.in_pieces(buffers, offset, |part, copy, at| {
            self.shared().read(&mut *copy, at).map_err(|error| self.explain(error))?;
            part.fill_from(copy);
            Ok(())
        })
    }

    fn write_at(&self, buffers: &Buffers<'_>, offset: u64) -> io::Result<()> {
        if self.access.readonly {
            return Err(read_only());
        }
        self.in_pieces(buffers, offset, |part, copy, at| {
            part.copy_to(copy);
            self.shared().write(&*copy, at).map_err(|error| self.explain(error))
        })
    }

    /// The tables are written, then everything is made stable. Nobody writes while the tables are: an L1 entry must not get
    /// ahead of what it leads to.
    fn flush(&self) -> io::Result<()> {
        self.exclusive().flush().map_err(|error| self.explain(error))?;
        self.shared().sync()
    }

    fn discard(&self, offset: u64, bytes: u64) -> io::Result<()> {
        self.check_change(offset, bytes)?;
        match self.exclusive().discard_to_zero(offset, bytes) {
            // Version 2 has no way to say that a cluster is zero.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(()),
            other => other.map_err(|error| self.explain(error)),
        }
    }

    fn write_zeroes(&self, offset: u64, bytes: u64, unmap: bool) -> io::Result<()> {
        self.check_change(offset, bytes)?;
        if unmap {
            match self.exclusive().discard_to_zero(offset, bytes) {
                Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
                other => return other.map_err(|error| self.explain(error)),
            }
        }
        match self.shared().write_zeroes(offset, bytes) {
            // Version 2 again: zeroes are data like any other.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => self.zero_by_hand(offset, bytes),
            other => other.map_err(|error| self.explain(error)),
        }
    }

    /// The image is ours alone while it is open, so its size is what we know.
    fn reread_size(&self) -> io::Result<u64> {
        Ok(self.size_bytes())
    }

    fn grow(&self, bytes: u64) -> io::Result<u64> {
        if self.access.readonly {
            return Err(read_only());
        }
        let bytes = bytes - bytes % SECTOR;
        // A base that is larger than the image must not show through where the image grows.
        let mode = if self.layers > 1 { PreallocateMode::Zero } else { PreallocateMode::None };
        let image = self.exclusive();
        if bytes > image.size() {
            // The L1 table may move.
            image.flush()?;
            image.resize_grow(bytes, mode)?;
            image.flush()?;
            image.sync()?;
        }
        drop(image);
        Ok(self.size_bytes())
    }

    fn next_data(&self, mut offset: u64) -> io::Result<Option<Range<u64>>> {
        let end = self.size_bytes();
        let image = self.shared();
        while offset < end {
            let (mapping, length) =
                image.get_mapping(offset, end - offset).map_err(|error| self.explain(error))?;
            match mapping {
                Mapping::Zero { .. } if length > 0 => offset = offset.saturating_add(length),
                Mapping::Zero { .. } | Mapping::Eof { .. } => return Ok(None),
                _ => return Ok(Some(offset..offset.saturating_add(length.max(1)).min(end))),
            }
        }
        Ok(None)
    }

    fn description(&self) -> String {
        let mut more = Vec::new();
        if self.access.direct {
            more.push("direct".to_owned());
        }
        match self.layers {
            1 => {}
            2 => more.push("1 backing file".to_owned()),
            layers => more.push(format!("{} backing files", layers - 1)),
        }
        describe("qcow2", self, &more.iter().map(String::as_str).collect::<Vec<_>>())
    }
}

#[cfg(test)]
pub(super) mod tests;
