//! The bytes before and after the partitions of a composite disk: protective MBR, and the GUID partition table twice
//! (UEFI 2.10 §5).

use super::super::SECTOR;

/// Entries of the table, and bytes of each: what every tool expects (UEFI 2.10 §5.3.1 asks for at least 16 KiB).
pub(super) const ENTRIES: usize = 128;
const ENTRY_BYTES: usize = 128;
/// Sectors the entries take.
const ENTRY_SECTORS: u64 = (ENTRIES * ENTRY_BYTES) as u64 / SECTOR;
/// Bytes from the start of the disk to the end of the first table.
pub(super) const HEAD_BYTES: u64 = (2 + ENTRY_SECTORS) * SECTOR;
/// Bytes of the second table, at the very end.
pub(super) const TAIL_BYTES: u64 = (ENTRY_SECTORS + 1) * SECTOR;
const HEADER_BYTES: u32 = 92;
/// UTF-16 units of a name.
pub(super) const NAME_UNITS: usize = 36;

/// A GUID as it lies on the disk: the first three fields little-endian.
pub(super) type Guid = [u8; 16];

/// 0FC63DAF-8483-4772-8E79-3D69D8477DE4: Linux filesystem data.
const LINUX_DATA: Guid =
    [0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4];
/// GPT attribute bit 60, read-only, as systemd's discoverable partitions have it. Linux itself does not look at it.
const READ_ONLY: u64 = 1 << 60;

/// One entry of the table.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) guid: Guid,
    pub(super) first_sector: u64,
    pub(super) last_sector: u64,
    pub(super) readonly: bool,
    pub(super) name: String,
}

/// What lies before and after the partitions.
pub(super) struct Tables {
    pub(super) head: Vec<u8>,
    pub(super) tail: Vec<u8>,
}

/// The tables of a disk of `sectors` sectors.
pub(super) fn tables(disk: Guid, sectors: u64, entries: &[Entry]) -> Tables {
    let table = entry_table(entries);
    let last = sectors.saturating_sub(1);
    let header = |own, other, table_at| {
        header(
            &Places { own, other, table_at, last_usable: sectors.saturating_sub(TAIL_BYTES / SECTOR + 1) },
            disk,
            &table,
        )
    };
    let mut head = protective_mbr(sectors);
    head.extend(header(1, last, 2));
    head.extend(&table);
    let mut tail = table.clone();
    tail.extend(header(last, 1, last.saturating_sub(ENTRY_SECTORS)));
    Tables { head, tail }
}

/// A GUID that is the same for the same text: FNV-1a with 128 bits, marked as version 8 (RFC 9562 §5.8).
pub(super) fn guid(text: &[u8]) -> Guid {
    const OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    let hash = text.iter().fold(OFFSET, |hash, byte| (hash ^ u128::from(*byte)).wrapping_mul(PRIME));
    let mut guid = hash.to_be_bytes();
    // The version is in the high half of the third field, which lies little-endian.
    if let Some(byte) = guid.get_mut(7) {
        *byte = *byte & 0x0f | 0x80;
    }
    if let Some(byte) = guid.get_mut(8) {
        *byte = *byte & 0x3f | 0x80;
    }
    guid
}

/// One partition of type 0xee over the whole disk, so that no tool takes it for empty (UEFI 2.10 §5.2.3).
fn protective_mbr(sectors: u64) -> Vec<u8> {
    let mut mbr = vec![0; 446];
    mbr.extend([0x00, 0x00, 0x02, 0x00, 0xee, 0xff, 0xff, 0xff]);
    mbr.extend(1_u32.to_le_bytes());
    mbr.extend(u32::try_from(sectors.saturating_sub(1)).unwrap_or(u32::MAX).to_le_bytes());
    mbr.resize(510, 0);
    mbr.extend([0x55, 0xaa]);
    mbr
}

fn entry_table(entries: &[Entry]) -> Vec<u8> {
    let mut table = Vec::with_capacity(ENTRIES * ENTRY_BYTES);
    for entry in entries {
        table.extend(LINUX_DATA);
        table.extend(entry.guid);
        table.extend(entry.first_sector.to_le_bytes());
        table.extend(entry.last_sector.to_le_bytes());
        table.extend(if entry.readonly { READ_ONLY } else { 0 }.to_le_bytes());
        let name = entry.name.encode_utf16().chain(std::iter::repeat(0)).take(NAME_UNITS);
        table.extend(name.flat_map(u16::to_le_bytes));
    }
    table.resize(ENTRIES * ENTRY_BYTES, 0);
    table
}

struct Places {
    own: u64,
    other: u64,
    table_at: u64,
    last_usable: u64,
}

/// A header in its sector (UEFI 2.10 §5.3.2, table 5-5).
fn header(places: &Places, disk: Guid, table: &[u8]) -> Vec<u8> {
    let fields = |own_crc: u32| {
        let mut header = b"EFI PART".to_vec();
        header.extend(0x0001_0000_u32.to_le_bytes());
        header.extend(HEADER_BYTES.to_le_bytes());
        header.extend(own_crc.to_le_bytes());
        header.extend([0; 4]);
        header.extend(places.own.to_le_bytes());
        header.extend(places.other.to_le_bytes());
        header.extend((HEAD_BYTES / SECTOR).to_le_bytes());
        header.extend(places.last_usable.to_le_bytes());
        header.extend(disk);
        header.extend(places.table_at.to_le_bytes());
        header.extend((ENTRIES as u32).to_le_bytes());
        header.extend((ENTRY_BYTES as u32).to_le_bytes());
        header.extend(crc32fast::hash(table).to_le_bytes());
        header
    };
    let mut header = fields(crc32fast::hash(&fields(0)));
    header.resize(SECTOR as usize, 0);
    header
}
