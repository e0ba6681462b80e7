//! One virtio-blk request (virtio 1.2 §5.2.6): a header to read, data, a status byte to write.
//!
//! The standard does not fix how these are cut into descriptors (§2.7.4), so they are taken as two byte streams.

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::handler::{STATUS_IOERR, STATUS_UNSUPP};
use super::{MAX_DISCARD_SECTORS, MAX_PIECES, MAX_RANGES, MAX_ZERO_SECTORS};
use crate::backend::disk::{self, Buffers, SECTOR};
use crate::devices::virtio::Fault;
use crate::devices::virtio::queue::{Chain, runs};

/// Bytes of the device id GET_ID returns.
pub(super) const ID_BYTES: usize = 20;
const HEADER_BYTES: usize = 16;

/// What the driver asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// VIRTIO_BLK_T_IN.
    Read,
    /// VIRTIO_BLK_T_OUT.
    Write,
    /// VIRTIO_BLK_T_FLUSH.
    Flush,
    /// VIRTIO_BLK_T_GET_ID.
    GetId,
    /// VIRTIO_BLK_T_DISCARD.
    Discard,
    /// VIRTIO_BLK_T_WRITE_ZEROES.
    WriteZeroes,
    /// Anything else.
    Unknown(u32),
}

impl From<u32> for Kind {
    fn from(kind: u32) -> Self {
        match kind {
            0 => Self::Read,
            1 => Self::Write,
            4 => Self::Flush,
            8 => Self::GetId,
            11 => Self::Discard,
            13 => Self::WriteZeroes,
            other => Self::Unknown(other),
        }
    }
}

/// One operation on the disk. Most requests are one; a discard has one per range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) operation: disk::Operation,
    pub(super) offset: u64,
    pub(super) bytes: u64,
}

/// Bytes of `struct virtio_blk_discard_write_zeroes`.
const RANGE_BYTES: usize = 16;
/// Bytes of the longest list of them.
const MAX_RANGES_BYTES: u64 = RANGE_BYTES as u64 * MAX_RANGES as u64;
/// Its flag `unmap`.
const UNMAP: u32 = 1;

/// A request whose buffers all lie in guest memory.
#[derive(Debug)]
pub(super) struct Request<'m> {
    pub(super) kind: Kind,
    pub(super) sector: u64,
    /// The buffers to fill (read, id) or to take from (write).
    pub(super) data: Buffers<'m>,
    /// Where the status byte goes.
    pub(super) status: GuestAddress,
}

impl<'m> Request<'m> {
    /// Takes a chain apart.
    pub(super) fn parse(memory: &'m GuestMemoryMmap, chain: Chain<'_>) -> Result<Self, Fault> {
        let (mut header, mut filled) = ([0; HEADER_BYTES], 0_usize);
        // Behind the header.
        let mut readable = Buffers::default();
        let mut writable = Buffers::default();
        let mut last_writable = None;
        let mut ended = false;
        for descriptor in chain {
            ended = !descriptor.has_next();
            if descriptor.is_write_only() {
                // An empty buffer has no last byte.
                let last = u64::from(descriptor.len()).checked_sub(1);
                last_writable = last.and_then(|last| descriptor.addr().0.checked_add(last)).or(last_writable);
                runs(memory, &descriptor, |slice| writable.add(&slice))?;
            } else {
                runs(memory, &descriptor, |slice| {
                    let taken = slice.read(header.get_mut(filled..).unwrap_or_default(), 0).unwrap_or(0);
                    filled = filled.saturating_add(taken);
                    slice.offset(taken).iter().for_each(|rest| readable.add(rest));
                })?;
            }
            // A table of its own could have 65535 entries, and what is in flight is kept.
            if readable.pieces().saturating_add(writable.pieces()) > MAX_PIECES {
                return Err(Fault::Chain("a request has more buffers than a queue"));
            }
        }
        if !ended {
            return Err(Fault::Chain("a request's chain of descriptors does not end"));
        }
        if filled < HEADER_BYTES {
            return Err(Fault::Chain("the request has no header"));
        }
        let no_status = || Fault::Chain("the request has no status byte");
        let status = last_writable.ok_or_else(no_status)?;
        writable.truncate(writable.len().checked_sub(1).ok_or_else(no_status)?);

        let kind = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        let mut sector = [0; 8];
        sector.copy_from_slice(&header[8..]);
        let kind = Kind::from(kind);
        let takes = matches!(kind, Kind::Write | Kind::Discard | Kind::WriteZeroes);
        let data = if takes { readable } else { writable };
        let sector = u64::from_le_bytes(sector);
        Ok(Self { kind, sector, data, status: GuestAddress(status) })
    }

    /// The ranges of a discard or write-zeroes request on a disk of `size_bytes` bytes, in order; the error is the status
    /// the guest gets (virtio 1.2 §5.2.6.2).
    pub(super) fn ranges(&self, size_bytes: u64) -> Result<Vec<Step>, u8> {
        let whole = self.data.len().is_multiple_of(RANGE_BYTES as u64);
        if !whole || !(1..=MAX_RANGES_BYTES).contains(&self.data.len()) {
            return Err(STATUS_IOERR);
        }
        let mut bytes = vec![0; self.data.len() as usize];
        self.data.copy_to(&mut bytes);
        let (ranges, _) = bytes.as_chunks::<RANGE_BYTES>();
        ranges.iter().map(|range| self.range(range, size_bytes)).collect()
    }

    fn range(&self, range: &[u8; RANGE_BYTES], size_bytes: u64) -> Result<Step, u8> {
        let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, f0, f1, f2, f3] = *range;
        let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        let sectors = u32::from_le_bytes([n0, n1, n2, n3]);
        let flags = u32::from_le_bytes([f0, f1, f2, f3]);
        let (known, most, operation) = match self.kind {
            Kind::Discard => (0, MAX_DISCARD_SECTORS, disk::Operation::Discard),
            _ => {
                let unmap = flags & UNMAP != 0;
                (UNMAP, MAX_ZERO_SECTORS, disk::Operation::WriteZeroes { unmap })
            }
        };
        if flags & !known != 0 {
            return Err(STATUS_UNSUPP);
        }
        let offset = sector.checked_mul(SECTOR).ok_or(STATUS_IOERR)?;
        let bytes = u64::from(sectors).checked_mul(SECTOR).ok_or(STATUS_IOERR)?;
        let end = offset.checked_add(bytes).ok_or(STATUS_IOERR)?;
        if sectors > most || end > size_bytes {
            return Err(STATUS_IOERR);
        }
        Ok(Step { operation, offset, bytes })
    }

    /// Fills the data buffers with `bytes`, as far as they reach, and returns how far that was.
    pub(super) fn fill(&self, bytes: &[u8]) -> u32 {
        self.data.fill_from(bytes);
        (bytes.len() as u64).min(self.data.len()) as u32
    }
}
