//! The file under imago, with one change: what is entered into the L1 table waits for the next flush.
//!
//! imago writes a new L2 table and its L1 entry at once, and the refcount of the table's cluster with the next flush. A process
//! that is killed in between would leave a table in use whose cluster counts as free, and the next one to open the image
//! would give that cluster out again. Held back, an entry that is lost costs a leaked cluster and nothing that was flushed:
//! imago never reads the L1 table again, and gives no L2 table back that the table in the file leads to.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use imago::file::File as ImageFile;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::storage::PreallocateMode;
use imago::storage::drivers::CommonStorageHelper;
use imago::{Storage, StorageExt};

/// Bytes of the header up to the place of the L1 table.
const HEADER_BYTES: usize = 48;

/// An image file whose L1 entries are held back.
#[derive(Debug)]
pub(super) struct TableFile {
    file: ImageFile,
    l1: Mutex<L1>,
}

#[derive(Debug, Default)]
struct L1 {
    /// Where the table is; empty in a file without one.
    place: Range<u64>,
    /// Pieces of the table that the file does not have yet, by offset.
    held: BTreeMap<u64, Vec<u8>>,
}

impl TableFile {
    /// A layer that is only read, or a qcow2 image.
    pub(super) fn new(file: File, has_table: bool) -> io::Result<Self> {
        let file = Self { file: ImageFile::try_from(file)?, l1: Mutex::default() };
        if has_table {
            let place = file.find_table()?;
            file.lock().place = place;
        }
        Ok(file)
    }

    fn lock(&self) -> MutexGuard<'_, L1> {
        self.l1.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the header says that the L1 table is: `l1_size` at byte 36, `l1_table_offset` at 40, `cluster_bits` at 20.
    fn find_table(&self) -> io::Result<Range<u64>> {
        let mut header = [0; HEADER_BYTES];
        self.file.read(&mut header[..], 0)?;
        let (fields, _) = header.as_chunks::<4>();
        let field = |index: usize| fields.get(index).map_or(0, |bytes| u64::from(u32::from_be_bytes(*bytes)));
        let offset = field(10) << 32 | field(11);
        let cluster = 1_u64.checked_shl(u32::try_from(field(5)).unwrap_or(u32::MAX)).unwrap_or(0);
        // Of smaller clusters imago reads what is around an entry.
        if (self.file.req_align().max(self.file.mem_align()) as u64) > cluster {
            return Ok(0..0);
        }
        Ok(offset..offset.saturating_add(field(9).saturating_mul(8)))
    }

    /// Keeps a piece of the L1 table; `false` for anything else.
    fn hold(&self, data: &IoVector<'_>, offset: u64) -> bool {
        let mut l1 = self.lock();
        let held = l1.place.contains(&offset);
        if held {
            let mut bytes = vec![0; usize::try_from(data.len()).unwrap_or(0)];
            data.copy_into_slice(&mut bytes);
            l1.held.insert(offset, bytes);
        }
        held
    }

    /// The header was written: the table may be somewhere else, and went there with all that is in it.
    fn follow_table(&self) -> io::Result<()> {
        let mut l1 = self.lock();
        if !l1.place.is_empty() {
            let place = self.find_table()?;
            if place.start != l1.place.start {
                l1.held.clear();
            }
            l1.place = place;
        }
        Ok(())
    }

    /// Writes what was held back. What it leads to is in the file; it is on the medium first.
    fn release(&self) -> io::Result<()> {
        let mut l1 = self.lock();
        if !l1.held.is_empty() {
            self.file.sync()?;
        }
        while let Some(piece) = l1.held.first_entry() {
            self.file.write(piece.get().as_slice(), *piece.key())?;
            piece.remove();
        }
        Ok(())
    }
}

impl fmt::Display for TableFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.file.fmt(f)
    }
}

impl Storage for TableFile {
    fn mem_align(&self) -> usize {
        self.file.mem_align()
    }

    fn req_align(&self) -> usize {
        self.file.req_align()
    }

    fn zero_align(&self) -> usize {
        self.file.zero_align()
    }

    fn discard_align(&self) -> usize {
        self.file.discard_align()
    }

    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }

    fn resolve_relative_path<P: AsRef<Path>>(&self, relative: P) -> io::Result<PathBuf> {
        self.file.resolve_relative_path(relative)
    }

    fn get_filename(&self) -> Option<PathBuf> {
        self.file.get_filename()
    }

    unsafe fn pure_readv(&self, bufv: IoVectorMut<'_>, offset: u64) -> io::Result<()> {
        // SAFETY: the file's requirements are ours, and the caller meets them.
        unsafe { self.file.pure_readv(bufv, offset) }
    }

    unsafe fn pure_writev(&self, bufv: IoVector<'_>, offset: u64) -> io::Result<()> {
        if self.hold(&bufv, offset) {
            return Ok(());
        }
        // SAFETY: as above.
        unsafe { self.file.pure_writev(bufv, offset) }?;
        if offset < HEADER_BYTES as u64 { self.follow_table() } else { Ok(()) }
    }

    unsafe fn pure_write_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        // SAFETY: as above.
        unsafe { self.file.pure_write_zeroes(offset, length) }
    }

    unsafe fn pure_write_allocated_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        // SAFETY: as above.
        unsafe { self.file.pure_write_allocated_zeroes(offset, length) }
    }

    unsafe fn pure_discard(&self, offset: u64, length: u64) -> io::Result<()> {
        // SAFETY: as above.
        unsafe { self.file.pure_discard(offset, length) }
    }

    /// imago calls this when it has written every L2 table and refcount, and only then.
    fn flush(&self) -> io::Result<()> {
        self.release()?;
        self.file.flush()
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }

    fn settle_writes(&self) -> io::Result<()> {
        self.file.settle_writes()
    }

    unsafe fn invalidate_cache(&self) -> io::Result<()> {
        // SAFETY: as above.
        unsafe { self.file.invalidate_cache() }
    }

    fn get_storage_helper(&self) -> &CommonStorageHelper {
        self.file.get_storage_helper()
    }

    fn resize(&self, new_size: u64, prealloc_mode: PreallocateMode) -> io::Result<()> {
        self.file.resize(new_size, prealloc_mode)
    }
}
