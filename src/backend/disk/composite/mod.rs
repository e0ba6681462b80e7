//! A disk made of several files: each is a partition, and the partition table around them exists in memory only.
//!
//! ```text
//! 0        17 KiB    1 MiB                      (multiples of 1 MiB)          end
//! │ MBR GPT │ zeroes │ partition 1 │ zeroes │ partition 2 │ … │ zeroes │ GPT │
//! ```
//!
//! The table is the same for the same labels, paths and sizes, GUIDs included, so that `PARTUUID=` stays true. It cannot
//! be written, and neither can the gaps: a guest that repartitions the disk gets an I/O error.

mod gpt;

use std::collections::HashSet;
use std::fmt;
use std::io;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::{
    Access, Buffers, Disk, DiskError, Place, RawDisk, SECTOR, Way, check_range, describe, looks_like_qcow2,
};

/// Partitions begin on multiples of this, as all tools make them.
const ALIGNMENT: u64 = 1 << 20;

/// One partition: a raw image and its name in the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// The partition's name, which Linux shows as `PARTLABEL`; at most 36 UTF-16 units.
    pub label: String,
    /// The raw image.
    pub path: PathBuf,
    /// The guest may only read it.
    pub readonly: bool,
    /// It is raw whatever its name and its beginning look like.
    pub said_raw: bool,
}

/// As it is typed: `LABEL:PATH` or `LABEL:PATH:ro`.
impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let readonly = if self.readonly { ":ro" } else { "" };
        write!(f, "{}:{}{readonly}", self.label, self.path.display())
    }
}

/// A disk that consists of partition images and a partition table made for them.
#[derive(Debug)]
pub struct CompositeDisk {
    pieces: Vec<Piece>,
    bytes: u64,
    partitions: Vec<Partition>,
    readonly: bool,
}

/// A range of the disk, the next one following without a gap.
#[derive(Debug)]
struct Piece {
    start: u64,
    end: u64,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Zeroes,
    Table(Vec<u8>),
    File(RawDisk),
}

impl CompositeDisk {
    /// Opens and locks the images, and makes the table.
    ///
    /// # Errors
    /// See [`DiskError`]; labels that are empty, too long or there twice, no partition at all, or more than 128.
    pub fn open(partitions: &[Partition], access: Access) -> Result<Self, DiskError> {
        check_labels(partitions)?;
        let mut files = Vec::with_capacity(partitions.len());
        for partition in partitions {
            let access = Access { readonly: access.readonly || partition.readonly, ..access };
            let file = open_raw(partition, access).map_err(|error| DiskError::Partition {
                label: partition.label.clone(),
                source: Box::new(error),
            })?;
            files.push(file);
        }
        let readonly = files.iter().all(Disk::readonly);
        let too_large = || DiskError::Layout("its partitions have more than 2^63 bytes together".to_owned());
        let layout = Layout::of(partitions, &files).ok_or_else(too_large)?;
        Ok(Self {
            bytes: layout.bytes,
            pieces: layout.pieces(files),
            partitions: partitions.to_vec(),
            readonly,
        })
    }

    /// Does something with each part of a range, which lies in one piece: the piece, the offset in it, the offset in the
    /// range, the number of bytes.
    fn each_part(
        &self,
        offset: u64,
        bytes: u64,
        mut each: impl FnMut(&Content, u64, u64, u64) -> io::Result<()>,
    ) -> io::Result<()> {
        check_range(self.bytes, offset, bytes)?;
        let end = offset + bytes;
        let first = self.pieces.partition_point(|piece| piece.end <= offset);
        for piece in self.pieces.iter().skip(first).take_while(|piece| piece.start < end) {
            let from = offset.max(piece.start);
            let until = end.min(piece.end);
            each(&piece.content, from - piece.start, from - offset, until - from)?;
        }
        Ok(())
    }

    /// The same for a change, which is refused as a whole if any part of it cannot be made.
    fn each_change(
        &self,
        offset: u64,
        bytes: u64,
        mut each: impl FnMut(&RawDisk, u64, u64, u64) -> io::Result<()>,
    ) -> io::Result<()> {
        self.each_part(offset, bytes, |content, _, _, _| match content {
            Content::File(file) if file.readonly() => {
                Err(read_only(&format!("the partition of {} is read-only", file.name())))
            }
            Content::File(_) => Ok(()),
            Content::Zeroes | Content::Table(_) => {
                Err(read_only("the partition table and what lies between partitions cannot be written"))
            }
        })?;
        self.each_part(offset, bytes, |content, at, from, bytes| match content {
            Content::File(file) => each(file, at, from, bytes),
            // None is left.
            Content::Zeroes | Content::Table(_) => Ok(()),
        })
    }

    fn files(&self) -> impl Iterator<Item = &RawDisk> {
        self.pieces.iter().filter_map(|piece| match &piece.content {
            Content::File(file) => Some(file),
            Content::Zeroes | Content::Table(_) => None,
        })
    }
}

/// A raw image, and no other: the guest would see a format's tables for its partition, and write over them.
fn open_raw(partition: &Partition, access: Access) -> Result<RawDisk, DiskError> {
    if !partition.said_raw && looks_like_qcow2(&partition.path)? {
        return Err(DiskError::NotRaw(partition.path.clone()));
    }
    RawDisk::open(&partition.path, access)
}

/// The error of a write to what is read-only, in words.
fn read_only(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::ReadOnlyFilesystem, text)
}

fn check_labels(partitions: &[Partition]) -> Result<(), DiskError> {
    let refuse = |text: String| Err(DiskError::Layout(text));
    if partitions.is_empty() {
        return refuse("it has no partition".to_owned());
    }
    if partitions.len() > gpt::ENTRIES {
        return refuse(format!("it has {} partitions, and a table has room for 128", partitions.len()));
    }
    let mut seen = HashSet::new();
    for Partition { label, .. } in partitions {
        if label.is_empty() || label.encode_utf16().count() > gpt::NAME_UNITS {
            return refuse(format!("the label {label:?} does not have 1 to 36 characters"));
        }
        if !seen.insert(label) {
            return refuse(format!("the label {label:?} is there twice"));
        }
    }
    Ok(())
}

/// Where everything is.
struct Layout {
    bytes: u64,
    starts: Vec<u64>,
    tables: gpt::Tables,
}

impl Layout {
    /// `None` when the disk would be larger than a file can be.
    fn of(partitions: &[Partition], files: &[RawDisk]) -> Option<Self> {
        let mut at = ALIGNMENT;
        let mut starts = Vec::with_capacity(files.len());
        let mut entries = Vec::with_capacity(files.len());
        let mut identity = b"nestling composite disk".to_vec();
        for (partition, file) in partitions.iter().zip(files) {
            let end = at.checked_add(file.size_bytes())?;
            let mut name = partition.label.clone().into_bytes();
            name.push(0);
            name.extend(partition.path.as_os_str().as_bytes());
            name.push(0);
            identity.extend(&name);
            entries.push(gpt::Entry {
                guid: gpt::guid(&name),
                first_sector: at / SECTOR,
                last_sector: end / SECTOR - 1,
                readonly: file.readonly(),
                name: partition.label.clone(),
            });
            starts.push(at);
            at = end.checked_next_multiple_of(ALIGNMENT)?;
        }
        // A whole number of MiB again, with the second table at its end.
        let bytes = at.checked_add(ALIGNMENT)?;
        i64::try_from(bytes).ok()?;
        let tables = gpt::tables(gpt::guid(&identity), bytes / SECTOR, &entries);
        Some(Self { bytes, starts, tables })
    }

    /// Puts everything in order, with zeroes in the gaps.
    fn pieces(self, files: Vec<RawDisk>) -> Vec<Piece> {
        let tail_at = self.bytes.saturating_sub(gpt::TAIL_BYTES);
        let head = (0, gpt::HEAD_BYTES, Content::Table(self.tables.head));
        let tail = (tail_at, gpt::TAIL_BYTES, Content::Table(self.tables.tail));
        let files = self.starts.into_iter().zip(files);
        let files = files.map(|(start, file)| (start, file.size_bytes(), Content::File(file)));
        let mut pieces: Vec<Piece> = Vec::new();
        let mut at = 0;
        for (start, bytes, content) in std::iter::once(head).chain(files).chain([tail]) {
            if at < start {
                pieces.push(Piece { start: at, end: start, content: Content::Zeroes });
            }
            at = start.saturating_add(bytes);
            pieces.push(Piece { start, end: at, content });
        }
        pieces
    }
}

impl Disk for CompositeDisk {
    fn name(&self) -> String {
        let partitions: Vec<_> = self.partitions.iter().map(ToString::to_string).collect();
        format!("partitions {}", partitions.join(", "))
    }

    fn size_bytes(&self) -> u64 {
        self.bytes
    }

    fn readonly(&self) -> bool {
        self.readonly
    }

    fn block_bytes(&self) -> u32 {
        self.files().map(Disk::block_bytes).max().unwrap_or(SECTOR as u32)
    }

    fn read_at(&self, buffers: &Buffers<'_>, offset: u64) -> io::Result<()> {
        self.each_part(offset, buffers.len(), |content, at, from, bytes| {
            let part = buffers.part(from, bytes);
            match content {
                Content::Zeroes => part.zero(),
                Content::Table(table) => {
                    part.fill_from(
                        usize::try_from(at).ok().and_then(|at| table.get(at..)).unwrap_or_default(),
                    );
                }
                Content::File(file) => file.read_at(&part, at)?,
            }
            Ok(())
        })
    }

    fn write_at(&self, buffers: &Buffers<'_>, offset: u64) -> io::Result<()> {
        self.each_change(offset, buffers.len(), |file, at, from, bytes| {
            file.write_at(&buffers.part(from, bytes), at)
        })
    }

    fn flush(&self) -> io::Result<()> {
        self.files().filter(|file| !file.readonly()).try_for_each(Disk::flush)
    }

    fn discard(&self, offset: u64, bytes: u64) -> io::Result<()> {
        self.each_change(offset, bytes, |file, at, _, bytes| file.discard(at, bytes))
    }

    fn write_zeroes(&self, offset: u64, bytes: u64, unmap: bool) -> io::Result<()> {
        self.each_change(offset, bytes, |file, at, _, bytes| file.write_zeroes(at, bytes, unmap))
    }

    /// The table is fixed when the disk is opened, and with it all sizes.
    fn reread_size(&self) -> io::Result<u64> {
        Ok(self.bytes)
    }

    fn grow(&self, _bytes: u64) -> io::Result<u64> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "a composite disk has the size of its partitions"))
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        for piece in self.pieces.iter().filter(|piece| piece.end > offset) {
            let from = offset.max(piece.start);
            match &piece.content {
                Content::Zeroes => {}
                Content::Table(_) => return Ok(Some(from..piece.end)),
                Content::File(file) => {
                    if let Some(data) = file.next_data(from - piece.start)? {
                        return Ok(Some(piece.start + data.start..piece.start + data.end));
                    }
                }
            }
        }
        Ok(None)
    }

    fn is_plain_file(&self) -> bool {
        true
    }

    fn place(&self, way: Way, buffers: &Buffers<'_>, offset: u64) -> Option<Place<'_>> {
        let index = self.pieces.partition_point(|piece| piece.end <= offset);
        let piece = self.pieces.get(index)?;
        match &piece.content {
            // A range that reaches into the next piece is none of the file's.
            Content::File(file) => file.place(way, buffers, offset - piece.start),
            Content::Zeroes | Content::Table(_) => None,
        }
    }

    fn description(&self) -> String {
        let partitions = format!("{} partitions", self.partitions.len());
        describe("composite", self, &[&partitions])
    }
}

#[cfg(test)]
mod tests;
