//! A qcow2 image's header, read before anything trusts it (QEMU docs/interop/qcow2.txt).

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::super::detect::{Format, MAGIC};

/// Bytes of a version 3 header.
const V3_BYTES: usize = 104;
/// Names of backing files have at most this many bytes.
const MAX_NAME: u32 = 1023;
/// QEMU's own limits for tables that are held in memory, in bytes.
const MAX_L1_BYTES: u64 = 32 << 20;
const MAX_REFCOUNT_TABLE_BYTES: u64 = 8 << 20;
/// Header extensions that are looked at before the rest is taken to be nonsense.
const MAX_EXTENSIONS: usize = 64;
/// The extension that holds the backing file's format.
const BACKING_FORMAT: u32 = 0xe279_2aca;

/// Incompatible features: the image was not closed in order, and refcounts may be wrong.
const DIRTY: u64 = 1 << 0;
const CORRUPT: u64 = 1 << 1;
const EXTERNAL_DATA: u64 = 1 << 2;
const COMPRESSION_TYPE: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;

/// What an image says about itself, found fit to be opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Header {
    pub(in super::super) version: u32,
    pub(in super::super) cluster_bytes: u64,
    pub(in super::super) virtual_bytes: u64,
    pub(in super::super) snapshots: u32,
    pub(in super::super) backing: Option<BackingName>,
    /// Binary logarithm of a reference count's bits.
    pub(super) refcount_order: u32,
    /// The L1 table and the refcount table.
    places: (Range<u64>, Range<u64>),
}

/// The backing file as the image names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct BackingName {
    pub(in super::super) name: String,
    /// `None` where the image does not say.
    pub(in super::super) format: Option<Format>,
}

/// Why an image cannot be opened.
#[derive(Debug)]
pub(in super::super) enum Refusal {
    /// It cannot be read.
    Io(io::Error),
    /// It is none.
    NotQcow2(String),
    /// It is one of a kind that is not supported; the text goes on after its name.
    Unsupported(String),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Header {
    /// Reads and checks an image's header.
    pub(in super::super) fn read(file: &File) -> Result<Self, Refusal> {
        let bytes = read_up_to(file, 0, V3_BYTES)?;
        let fields = Fields(&bytes);
        let wrong = |reason: &str| Refusal::NotQcow2(reason.to_owned());
        if bytes.get(..MAGIC.len()) != Some(&MAGIC[..]) {
            return Err(wrong("it does not begin as one"));
        }
        let cut = || wrong("its header is cut off");
        let version = fields.u32(4).ok_or_else(cut)?;
        let cluster_bits = fields.u32(20).ok_or_else(cut)?;
        let virtual_bytes = fields.u64(24).ok_or_else(cut)?;
        let l1_entries = fields.u32(36).ok_or_else(cut)?;
        let refcount_clusters = fields.u32(56).ok_or_else(cut)?;
        let snapshots = fields.u32(60).ok_or_else(cut)?;
        let unsupported = |text: &str| Err(Refusal::Unsupported(text.to_owned()));
        if !matches!(version, 2 | 3) {
            return unsupported(&format!("has version {version}: versions 2 and 3 are supported"));
        }
        if !(9..=21).contains(&cluster_bits) {
            return Err(Refusal::NotQcow2(format!("its clusters have 2^{cluster_bits} bytes")));
        }
        match fields.u32(32) {
            Some(0) => {}
            Some(_) => {
                return unsupported(
                    "is encrypted, which is not supported: decrypt it with `qemu-img convert`",
                );
            }
            None => return Err(cut()),
        }
        if version == 3 {
            check_features(fields.u64(72).ok_or_else(cut)?)?;
        }
        if i64::try_from(virtual_bytes).is_err() {
            return Err(wrong("its disk would be larger than any"));
        }
        if u64::from(l1_entries) * 8 > MAX_L1_BYTES {
            return Err(wrong("its L1 table is larger than 32 MiB"));
        }
        // Behind the end of a file everything reads as zeroes: the disk would look empty, and be copied as such.
        let l1_at = fields.u64(40).ok_or_else(cut)?;
        if l1_entries > 0 && l1_at.is_multiple_of(512) && read_up_to(file, l1_at, 8)?.len() < 8 {
            return Err(wrong("it is cut off before its L1 table"));
        }
        if u64::from(refcount_clusters) << cluster_bits > MAX_REFCOUNT_TABLE_BYTES {
            return Err(wrong("its refcount table is larger than 8 MiB"));
        }
        let backing = backing_name(file, &fields, version)?;
        let refcount_order = if version == 2 { 4 } else { fields.u32(96).ok_or_else(cut)? };
        if refcount_order > 6 {
            return Err(Refusal::NotQcow2(format!("its reference counts have 2^{refcount_order} bits")));
        }
        let places = Self::places(&bytes).ok_or_else(cut)?;
        let cluster_bytes = 1 << cluster_bits;
        Ok(Self { version, cluster_bytes, virtual_bytes, snapshots, backing, refcount_order, places })
    }

    /// Where the L1 table is; empty if there is none.
    pub(super) fn l1(&self) -> Range<u64> {
        self.places.0.clone()
    }

    /// Where the refcount table is.
    pub(super) fn refcount_table(&self) -> Range<u64> {
        self.places.1.clone()
    }

    /// Where a header says that the L1 table and the refcount table are. Its first 60 bytes will do.
    pub(super) fn places(header: &[u8]) -> Option<(Range<u64>, Range<u64>)> {
        let fields = Fields(header);
        let place = |at: u64, bytes: u64| at..at.saturating_add(bytes);
        let cluster = 1_u64.checked_shl(fields.u32(20)?)?;
        let l1 = place(fields.u64(40)?, u64::from(fields.u32(36)?) * 8);
        let refcounts = place(fields.u64(48)?, u64::from(fields.u32(56)?).saturating_mul(cluster));
        Some((l1, refcounts))
    }
}

fn check_features(incompatible: u64) -> Result<(), Refusal> {
    let text = if incompatible & CORRUPT != 0 {
        "is marked corrupt: repair it with `qemu-img check -r all`"
    } else if incompatible & DIRTY != 0 {
        "was not closed in order and its refcounts may be wrong: repair it with `qemu-img check -r all`"
    } else if incompatible & EXTERNAL_DATA != 0 {
        "keeps its data in another file, which is not supported: convert it with `qemu-img convert -O qcow2`"
    } else if incompatible & COMPRESSION_TYPE != 0 {
        "is compressed with zstd, which is not supported: convert it with `qemu-img convert -O qcow2`"
    } else if incompatible & EXTENDED_L2 != 0 {
        "has subclusters (extended_l2), which are not supported: convert it with `qemu-img convert -O qcow2`"
    } else if incompatible != 0 {
        let text = format!(
            "needs features that are not known here (incompatible bits {incompatible:#x}): convert it with `qemu-img convert -O qcow2`, or go back to a copy"
        );
        return Err(Refusal::Unsupported(text));
    } else {
        return Ok(());
    };
    Err(Refusal::Unsupported(text.to_owned()))
}

fn backing_name(file: &File, fields: &Fields<'_>, version: u32) -> Result<Option<BackingName>, Refusal> {
    let wrong = |reason: &str| Refusal::NotQcow2(reason.to_owned());
    let (Some(offset), Some(length)) = (fields.u64(8), fields.u32(16)) else {
        return Err(wrong("its header is cut off"));
    };
    if offset == 0 || length == 0 {
        return Ok(None);
    }
    if length > MAX_NAME {
        return Err(wrong("the name of its backing file has more than 1023 bytes"));
    }
    let name = read_up_to(file, offset, length as usize)?;
    if name.len() != length as usize {
        return Err(wrong("the name of its backing file is cut off"));
    }
    let name = String::from_utf8(name).map_err(|_| wrong("the name of its backing file is not UTF-8"))?;
    let extensions_at = if version == 2 { 72 } else { u64::from(fields.u32(100).unwrap_or(0)) };
    let format = match backing_format(file, extensions_at)?.as_deref() {
        None => None,
        Some(b"raw" | b"file" | b"host_device") => Some(Format::Raw),
        Some(b"qcow2") => Some(Format::Qcow2),
        Some(other) => {
            let other = String::from_utf8_lossy(other).into_owned();
            let text = format!("has a backing file of format {other:?}: raw and qcow2 are supported");
            return Err(Refusal::Unsupported(text));
        }
    };
    Ok(Some(BackingName { name, format }))
}

/// Looks through the header extensions: type, length, data padded to 8 bytes; type 0 ends them.
fn backing_format(file: &File, mut at: u64) -> Result<Option<Vec<u8>>, Refusal> {
    for _ in 0..MAX_EXTENSIONS {
        let head = read_up_to(file, at, 8)?;
        let fields = Fields(&head);
        let (Some(kind), Some(length)) = (fields.u32(0), fields.u32(4)) else { return Ok(None) };
        match kind {
            0 => return Ok(None),
            BACKING_FORMAT => {
                return Ok(Some(read_up_to(file, at.saturating_add(8), length.min(64) as usize)?));
            }
            _ => at = at.saturating_add(8).saturating_add(u64::from(length).next_multiple_of(8)),
        }
    }
    Ok(None)
}

/// Big-endian numbers at offsets.
struct Fields<'b>(&'b [u8]);

impl Fields<'_> {
    fn array<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.0.get(at..at.checked_add(N)?)?.try_into().ok()
    }

    fn u32(&self, at: usize) -> Option<u32> {
        self.array(at).map(u32::from_be_bytes)
    }

    fn u64(&self, at: usize) -> Option<u64> {
        self.array(at).map(u64::from_be_bytes)
    }
}

/// Reads until `bytes` are there or the file ends.
pub(super) fn read_up_to(file: &File, offset: u64, bytes: usize) -> io::Result<Vec<u8>> {
    let mut read = vec![0; bytes];
    let mut have = 0;
    while let Some(rest) = read.get_mut(have..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset.saturating_add(have as u64)) {
            Ok(0) => break,
            Ok(count) => have += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // An offset beyond what a file can have.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => break,
            Err(error) => return Err(error),
        }
    }
    read.truncate(have);
    Ok(read)
}
