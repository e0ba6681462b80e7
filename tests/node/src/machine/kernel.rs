//! A Linux kernel file taken apart: bzImage → compressed ELF → one flat image, as it lies in memory.

use serde::{Deserialize, Serialize};

/// Where the flat image belongs, and where it is entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Placement {
    /// Physical address of the image's first byte.
    pub load: u64,
    /// End of the memory it uses, which is beyond the image: the rest is zero.
    pub end: u64,
    /// The 32-bit PVH entry point.
    pub entry: u32,
}

/// How a bzImage is packed, by the tool that unpacks it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packed {
    Lz4,
    Zstd,
    Xz,
    Gzip,
}

impl Packed {
    /// The command that turns standard input into the ELF file.
    pub(crate) fn tool(self) -> &'static str {
        match self {
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
            Self::Xz => "xz",
            Self::Gzip => "gzip",
        }
    }

    fn of(payload: &[u8]) -> Option<Self> {
        match payload {
            [0x02, 0x21, 0x4c, 0x18, ..] => Some(Self::Lz4),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Self::Zstd),
            [0xfd, b'7', b'z', b'X', ..] => Some(Self::Xz),
            [0x1f, 0x8b, ..] => Some(Self::Gzip),
            _ => None,
        }
    }
}

/// The compressed ELF inside a bzImage (Linux x86 boot protocol 2.08: `payload_offset`, `payload_length`).
pub(crate) fn payload(image: &[u8]) -> Result<(Packed, &[u8]), &'static str> {
    const SETUP_SECTORS: usize = 0x1f1;
    const SIGNATURE: usize = 0x202;
    const PAYLOAD_OFFSET: usize = 0x248;
    const PAYLOAD_LENGTH: usize = 0x24c;
    // After the payload the build appends the ELF's size.
    const SIZE_TRAILER: usize = 4;
    if image.get(SIGNATURE..SIGNATURE + 4) != Some(b"HdrS") {
        return Err("is not a bzImage");
    }
    let setup = (usize::from(image[SETUP_SECTORS]) + 1) * 512;
    let offset = u32_at(image, PAYLOAD_OFFSET).ok_or("is cut short")? as usize;
    let length = u32_at(image, PAYLOAD_LENGTH).ok_or("is cut short")? as usize;
    let payload = image.get(setup + offset..setup + offset + length).ok_or("is cut short")?;
    let packed = Packed::of(payload).ok_or("is packed in an unknown way")?;
    let end = if packed == Packed::Gzip { length } else { length.saturating_sub(SIZE_TRAILER) };
    Ok((packed, &payload[..end]))
}

/// Lays the loadable segments of an ELF kernel out as they lie in memory.
pub(crate) fn flatten(elf: &[u8]) -> Result<(Placement, Vec<u8>), &'static str> {
    const LOAD: u32 = 1;
    const NOTE: u32 = 4;
    const LIMIT: u64 = 1 << 30;
    let headers = program_headers(elf)?;
    let loads: Vec<_> = headers.iter().filter(|h| h.kind == LOAD && h.memory_size > 0).collect();
    let load = loads.iter().map(|h| h.physical).min().ok_or("has nothing to load")?;
    let end = loads.iter().filter_map(|h| h.physical.checked_add(h.memory_size)).max().unwrap_or(0);
    let filled = loads.iter().filter_map(|h| h.physical.checked_add(h.file_size)).max().unwrap_or(0);
    if end - load > LIMIT || filled > end {
        return Err("has segments of absurd size");
    }
    let entry = headers
        .iter()
        .filter(|h| h.kind == NOTE)
        .find_map(|h| pvh_entry(h.content(elf)?))
        .ok_or("has no PVH entry (CONFIG_PVH)")?;
    let mut image = vec![0; (filled - load) as usize];
    for header in loads {
        let content = header.content(elf).ok_or("is cut short")?;
        let start = (header.physical - load) as usize;
        image[start..start + content.len()].copy_from_slice(content);
    }
    Ok((Placement { load, end, entry }, image))
}

struct ProgramHeader {
    kind: u32,
    offset: u64,
    physical: u64,
    file_size: u64,
    memory_size: u64,
}

impl ProgramHeader {
    fn content<'a>(&self, elf: &'a [u8]) -> Option<&'a [u8]> {
        elf.get(self.offset as usize..self.offset.checked_add(self.file_size)? as usize)
    }
}

fn program_headers(elf: &[u8]) -> Result<Vec<ProgramHeader>, &'static str> {
    const SIZE: usize = 56;
    const CLASS_64_LITTLE_ENDIAN: [u8; 2] = [2, 1];
    if elf.get(..4) != Some(b"\x7fELF") || elf.get(4..6) != Some(&CLASS_64_LITTLE_ENDIAN) {
        return Err("is not a 64-bit ELF file");
    }
    let start = u64_at(elf, 0x20).ok_or("is cut short")? as usize;
    let count = u16_at(elf, 0x38).ok_or("is cut short")?;
    let table = elf.get(start..).and_then(|t| t.get(..SIZE * usize::from(count))).ok_or("is cut short")?;
    let header = |h: &[u8]| {
        Some(ProgramHeader {
            kind: u32_at(h, 0)?,
            offset: u64_at(h, 8)?,
            physical: u64_at(h, 24)?,
            file_size: u64_at(h, 32)?,
            memory_size: u64_at(h, 40)?,
        })
    };
    table.chunks_exact(SIZE).map(|h| header(h).ok_or("is cut short")).collect()
}

/// Whether an ELF executable names a dynamic loader; `None` when it is no x86-64 ELF file.
pub(crate) fn wants_loader(elf: &[u8]) -> Option<bool> {
    const INTERPRETER: u32 = 3;
    const X86_64: u16 = 62;
    let headers = program_headers(elf).ok().filter(|_| u16_at(elf, 0x12) == Some(X86_64))?;
    Some(headers.iter().any(|h| h.kind == INTERPRETER))
}

/// Cuts off what comes behind the last segment of an executable: symbols, debug information, section headers.
pub(crate) fn strip(elf: &mut Vec<u8>) {
    const SECTION_HEADERS: [std::ops::Range<usize>; 2] = [0x28..0x30, 0x3c..0x40]; // offset; count and name table
    let Ok(headers) = program_headers(elf) else { return };
    let Some(end) = headers.iter().filter_map(|h| h.offset.checked_add(h.file_size)).max() else { return };
    elf.truncate(end as usize);
    for field in SECTION_HEADERS {
        elf[field].fill(0);
    }
}

/// Finds Xen's note 18, `XEN_ELFNOTE_PHYS32_ENTRY`.
fn pvh_entry(mut notes: &[u8]) -> Option<u32> {
    const PHYS32_ENTRY: u32 = 18;
    let padded = |length: u32| (length as usize).next_multiple_of(4);
    loop {
        let (name_size, size, kind) = (u32_at(notes, 0)?, u32_at(notes, 4)?, u32_at(notes, 8)?);
        let content = 12 + padded(name_size);
        if kind == PHYS32_ENTRY && notes.get(12..16) == Some(b"Xen\0") {
            return u32_at(notes, content);
        }
        notes = notes.get(content + padded(size)..)?;
    }
}

fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes_at(bytes, at).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes_at(bytes, at).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes_at(bytes, at).map(u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A kernel of two segments and one note.
    fn elf(with_note: bool) -> Vec<u8> {
        let mut elf = vec![0; 0x400];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[0x12] = 62;
        elf[0x20] = 64;
        elf[0x38] = 3;
        let mut header = |index: usize, kind: u32, fields: [u64; 4]| {
            let at = 64 + 56 * index;
            elf[at..at + 4].copy_from_slice(&kind.to_le_bytes());
            for (place, value) in [8, 24, 32, 40].into_iter().zip(fields) {
                elf[at + place..at + place + 8].copy_from_slice(&value.to_le_bytes());
            }
        };
        header(0, 1, [0x200, 0x100_0000, 0x10, 0x1000]);
        header(1, 1, [0x210, 0x100_2000, 0x10, 0x9000]);
        header(2, 4, [0x300, 0, if with_note { 0x28 } else { 0 }, 0]);
        elf[0x200..0x210].fill(0xaa);
        elf[0x210..0x220].fill(0xbb);
        let notes = [
            4u32,
            4,
            6,
            u32::from_le_bytes(*b"Xen\0"),
            1,
            4,
            4,
            18,
            u32::from_le_bytes(*b"Xen\0"),
            0x100_0040,
        ];
        for (index, word) in notes.iter().enumerate() {
            elf[0x300 + 4 * index..0x304 + 4 * index].copy_from_slice(&word.to_le_bytes());
        }
        elf
    }

    #[test]
    fn segments_land_at_their_physical_addresses() {
        let (placement, image) = flatten(&elf(true)).unwrap();
        assert_eq!(placement, Placement { load: 0x100_0000, end: 0x100_b000, entry: 0x100_0040 });
        assert_eq!(image.len(), 0x2010);
        assert!(image[..0x10].iter().all(|b| *b == 0xaa));
        assert!(image[0x10..0x2000].iter().all(|b| *b == 0));
        assert!(image[0x2000..].iter().all(|b| *b == 0xbb));
    }

    #[test]
    fn kernels_that_cannot_boot_are_refused() {
        assert_eq!(flatten(&elf(false)).unwrap_err(), "has no PVH entry (CONFIG_PVH)");
        assert_eq!(flatten(b"#!/bin/sh").unwrap_err(), "is not a 64-bit ELF file");
        assert_eq!(flatten(&elf(true)[..0x208]).unwrap_err(), "has no PVH entry (CONFIG_PVH)");
        assert_eq!(flatten(&elf(true)[..0x50]).unwrap_err(), "is cut short");
        assert_eq!(payload(&[0; 4096]).unwrap_err(), "is not a bzImage");
    }

    #[test]
    fn the_payload_is_found_by_the_setup_header() {
        let mut image = vec![0; 0x1000];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248..0x24c].copy_from_slice(&0x10u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&12u32.to_le_bytes());
        image[0x410..0x41c].copy_from_slice(b"\x02\x21\x4c\x18lz4!\x04\0\0\0");
        assert_eq!(payload(&image).unwrap(), (Packed::Lz4, &b"\x02\x21\x4c\x18lz4!"[..]));
        assert_eq!(payload(&image[..0x414]).unwrap_err(), "is cut short");
    }

    #[test]
    fn a_stripped_executable_keeps_its_segments() {
        let whole = elf(true);
        let mut stripped = whole.clone();
        stripped.extend([0xdd; 1000]);
        stripped[0x3c] = 9;
        strip(&mut stripped);
        assert_eq!(stripped, whole[..0x328]);
        assert_eq!(flatten(&stripped).unwrap(), flatten(&whole).unwrap());
    }

    #[test]
    fn a_static_executable_names_no_loader() {
        assert_eq!(wants_loader(&elf(true)), Some(false));
        assert_eq!(wants_loader(b"#!/bin/sh"), None);
    }
}
