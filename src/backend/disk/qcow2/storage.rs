//! The file under imago, twice: as what its tables are in, and as what data are in. Between them stands what is known of the
//! [tables](super::tables). One thing is changed on the way: what is entered into the L1 table waits for the next flush.
//!
//! imago writes a new L2 table and its L1 entry at once, and the refcount of the table's cluster with the next flush. A process
//! that is killed in between would leave a table in use whose cluster counts as free, and the next one to open the image
//! would give that cluster out again. Held back, an entry that is lost costs a leaked cluster and nothing that was flushed:
//! imago never reads the L1 table again, and gives no L2 table back that the table in the file leads to.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use imago::file::File as ImageFile;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::storage::PreallocateMode;
use imago::storage::drivers::CommonStorageHelper;
use imago::{Storage, StorageExt};

use super::tables::Tables;

/// Bytes of the header up to and with the places of the tables.
const HEADER_BYTES: usize = 60;

/// An image file, for one of its uses.
#[derive(Debug)]
pub(super) struct TableFile {
    image: Arc<Image>,
    role: Role,
}

/// What goes through it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// All of a raw image, which is only read.
    Raw,
    /// A qcow2 image's header and tables.
    Tables,
    /// A qcow2 image's data.
    Data,
}

#[derive(Debug)]
struct Image {
    file: ImageFile,
    tables: RwLock<Tables>,
    /// Pieces of the L1 table that the file does not have yet, by offset.
    held: Mutex<BTreeMap<u64, Vec<u8>>>,
    writable: bool,
    /// The disk ends in the middle of a cluster, which the file may then have in part.
    ends_within_cluster: bool,
}

/// Bytes of the smallest access: more than one with O_DIRECT.
pub(super) fn alignment(file: &ImageFile) -> u64 {
    file.req_align().max(file.mem_align()) as u64
}

impl TableFile {
    /// A raw image.
    pub(super) fn of_raw(file: ImageFile) -> Self {
        Self { image: Arc::new(Image::new(file, Tables::default(), 0, false)), role: Role::Raw }
    }

    /// A qcow2 image of a disk of `virtual_bytes` bytes: for its tables, and for its data.
    pub(super) fn of_image(
        file: ImageFile,
        tables: Tables,
        virtual_bytes: u64,
        writable: bool,
    ) -> (Self, Self) {
        let image = Arc::new(Image::new(file, tables, virtual_bytes, writable));
        (Self { image: Arc::clone(&image), role: Role::Tables }, Self { image, role: Role::Data })
    }
}

impl Image {
    fn new(file: ImageFile, tables: Tables, virtual_bytes: u64, writable: bool) -> Self {
        let cluster = tables.cluster_bytes();
        let ends_within_cluster = cluster > 0 && !virtual_bytes.is_multiple_of(cluster);
        let (tables, held) = (RwLock::new(tables), Mutex::default());
        Self { file, tables, held, writable, ends_within_cluster }
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<u64, Vec<u8>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What lies behind the end reads as zeroes, and would pass for data: the guest would see an empty disk where its files
    /// were. The last compressed cluster ends where its data do, and is read up to the next multiple of 512.
    fn check_read(&self, role: Role, offset: u64, bytes: u64) -> io::Result<()> {
        let end = self.file.size()?;
        let until = offset.saturating_add(bytes);
        let alignment = alignment(&self.file);
        // An access is rounded up to a multiple of `alignment`, and need not begin at one.
        let is_there = |alignment: u64| until < end.saturating_add(alignment);
        let is_whole = match role {
            Role::Raw => true,
            Role::Tables => is_there(alignment),
            // With O_DIRECT, what is around a small write is read first, and may not be there yet.
            Role::Data if self.file.req_align() > 1 && self.writable => true,
            Role::Data => is_there(alignment.max(512)) || (offset < end && self.ends_within_cluster),
        };
        if is_whole || bytes == 0 {
            return Ok(());
        }
        let text =
            format!("it is cut off: it has {end} bytes, and what is asked for lies up to byte {until}");
        Err(io::Error::new(io::ErrorKind::UnexpectedEof, text))
    }

    fn is_l2(&self, offset: u64, bytes: u64) -> bool {
        let tables = self.tables.read().unwrap_or_else(PoisonError::into_inner);
        bytes == tables.cluster_bytes() && tables.is_l2(offset)
    }

    fn read_l2(&self, mut into: IoVectorMut<'_>, offset: u64) -> io::Result<()> {
        let mut bytes = vec![0; usize::try_from(into.len()).map_err(io::Error::other)?];
        self.file.read(&mut bytes[..], offset)?;
        self.tables.read().unwrap_or_else(PoisonError::into_inner).check_l2(offset, &bytes)?;
        into.copy_from_slice(&bytes);
        Ok(())
    }

    /// Checks a write to the header or a table; a piece of the L1 table is kept for later, and `false` says so.
    fn admit_table(&self, data: &IoVector<'_>, offset: u64) -> io::Result<bool> {
        let mut bytes = vec![0; usize::try_from(data.len()).map_err(io::Error::other)?];
        data.copy_into_slice(&mut bytes);
        let mut tables = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        tables.check_near(offset, self.file.size()?)?;
        tables.check_entries(offset, &bytes)?;
        let hold = tables.l1().contains(&offset);
        if hold {
            self.held().insert(offset, bytes);
        }
        Ok(!hold)
    }

    fn admit_data(&self, offset: u64, bytes: u64) -> io::Result<()> {
        let tables = self.tables.read().unwrap_or_else(PoisonError::into_inner);
        tables.check_data(&(offset..offset.saturating_add(bytes)), self.file.size()?)
    }

    /// The header was written: the L1 table may be somewhere else, and went there with all that is in it.
    fn follow_tables(&self) -> io::Result<()> {
        let mut header = [0; HEADER_BYTES];
        self.file.read(&mut header[..], 0)?;
        let mut tables = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        let before = tables.l1().start;
        tables.follow(&header)?;
        if tables.l1().start != before {
            self.held().clear();
        }
        Ok(())
    }

    /// Writes what was held back. What it leads to is in the file; it is on the medium first.
    fn release(&self) -> io::Result<()> {
        let mut held = self.held();
        if !held.is_empty() {
            self.file.sync()?;
        }
        while let Some(piece) = held.first_entry() {
            self.file.write(piece.get().as_slice(), *piece.key())?;
            piece.remove();
        }
        Ok(())
    }
}

impl fmt::Display for TableFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.image.file.fmt(f)
    }
}

impl Storage for TableFile {
    fn mem_align(&self) -> usize {
        self.image.file.mem_align()
    }

    fn req_align(&self) -> usize {
        self.image.file.req_align()
    }

    fn zero_align(&self) -> usize {
        self.image.file.zero_align()
    }

    fn discard_align(&self) -> usize {
        self.image.file.discard_align()
    }

    fn size(&self) -> io::Result<u64> {
        self.image.file.size()
    }

    fn resolve_relative_path<P: AsRef<Path>>(&self, relative: P) -> io::Result<PathBuf> {
        self.image.file.resolve_relative_path(relative)
    }

    fn get_filename(&self) -> Option<PathBuf> {
        self.image.file.get_filename()
    }

    unsafe fn pure_readv(&self, bufv: IoVectorMut<'_>, offset: u64) -> io::Result<()> {
        self.image.check_read(self.role, offset, bufv.len())?;
        if self.role == Role::Tables && self.image.is_l2(offset, bufv.len()) {
            return self.image.read_l2(bufv, offset);
        }
        // SAFETY: the file's requirements are ours, and the caller meets them.
        unsafe { self.image.file.pure_readv(bufv, offset) }
    }

    unsafe fn pure_writev(&self, bufv: IoVector<'_>, offset: u64) -> io::Result<()> {
        match self.role {
            Role::Raw => {}
            Role::Data => self.image.admit_data(offset, bufv.len())?,
            Role::Tables => {
                if !self.image.admit_table(&bufv, offset)? {
                    return Ok(());
                }
            }
        }
        // SAFETY: as above.
        unsafe { self.image.file.pure_writev(bufv, offset) }?;
        if self.role == Role::Tables && offset < HEADER_BYTES as u64 {
            self.image.follow_tables()
        } else {
            Ok(())
        }
    }

    unsafe fn pure_write_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        self.image.admit_data(offset, length)?;
        // SAFETY: as above.
        unsafe { self.image.file.pure_write_zeroes(offset, length) }
    }

    unsafe fn pure_write_allocated_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        self.image.admit_data(offset, length)?;
        // SAFETY: as above.
        unsafe { self.image.file.pure_write_allocated_zeroes(offset, length) }
    }

    unsafe fn pure_discard(&self, offset: u64, length: u64) -> io::Result<()> {
        self.image.admit_data(offset, length)?;
        // SAFETY: as above.
        unsafe { self.image.file.pure_discard(offset, length) }
    }

    /// imago calls this for the tables when it has written every L2 table and refcount, and only then.
    fn flush(&self) -> io::Result<()> {
        if self.role == Role::Tables {
            self.image.release()?;
        }
        self.image.file.flush()
    }

    /// Both are one file.
    fn sync(&self) -> io::Result<()> {
        if self.role == Role::Data { Ok(()) } else { self.image.file.sync() }
    }

    fn settle_writes(&self) -> io::Result<()> {
        self.image.file.settle_writes()
    }

    unsafe fn invalidate_cache(&self) -> io::Result<()> {
        // SAFETY: as above.
        unsafe { self.image.file.invalidate_cache() }
    }

    fn get_storage_helper(&self) -> &CommonStorageHelper {
        self.image.file.get_storage_helper()
    }

    /// A disk that grows has its data no further from the start than before.
    fn resize(&self, new_size: u64, prealloc_mode: PreallocateMode) -> io::Result<()> {
        if self.role == Role::Data {
            return Ok(());
        }
        self.image.file.resize(new_size, prealloc_mode)
    }
}
