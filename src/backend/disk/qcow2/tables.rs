//! Where an image's tables are, and what must be true of them. An entry that is wrong can lead anywhere: to the header, to
//! another table, behind the end of the file. What is found wrong is refused before it does harm, in three places:
//!
//! - when the image is opened: the L1 table and, to write, the refcount table lead to clusters of the file, each to its own,
//!   and these count as used (`Tables::load`); the file was not cut off (`check_whole`);
//! - when an L2 table is read: it leads to no table (`check_l2`);
//! - when something is written: data go into no table, and a new entry leads to a table that no other entry has.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;

use super::super::detect::MAGIC;
use super::header::{Header, Refusal, read_up_to};

/// Bits of an entry that are an offset (QEMU docs/interop/qcow2.txt): of L1 and L2 entries, and of the refcount table's.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const REFCOUNT_OFFSET: u64 = !0x1ff;
/// Bits of an L2 entry: the cluster is compressed; it reads as zeroes (version 3).
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;
/// A cluster that is given out lies right behind the others; requests in flight can be ahead of each other by less than
/// this. An entry that leads further behind the end was never given out.
const BEYOND: u64 = 1 << 30;

/// One of the two tables that lead to other tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Root {
    L1,
    Refcounts,
}

/// The tables of an open image.
#[derive(Debug, Default)]
pub(super) struct Tables {
    cluster: u64,
    l1: Range<u64>,
    refcounts: Range<u64>,
    /// L2 tables and refcount blocks by offset, with the entry that leads to each. None is ever taken out: imago may have it
    /// in its cache.
    leaves: HashMap<u64, (Root, u64)>,
}

impl Tables {
    /// Reads and checks the tables of an image of `end` bytes.
    pub(super) fn load(file: &File, header: &Header, writable: bool, end: u64) -> Result<Self, Refusal> {
        let mut tables = Self { cluster: header.cluster_bytes, l1: header.l1(), ..Self::default() };
        if writable {
            tables.refcounts = header.refcount_table();
        }
        let l1 = tables.load_root(file, Root::L1, end)?;
        if writable {
            if overlap(&tables.l1, &tables.refcounts) {
                return Err(damaged("its L1 table and its refcount table overlap"));
            }
            let refcounts = tables.load_root(file, Root::Refcounts, end)?;
            let counts = Counts { file, blocks: &refcounts, header };
            tables.check_counted(&counts)?;
            if counts.end()?.is_some_and(|counted| counted > end) {
                check_whole(file, &l1, header, end)?;
            }
        } else if !end.is_multiple_of(512) {
            // Compressed data may end like that; of anything else, less than a sector would be missed when it is read.
            check_whole(file, &l1, header, end)?;
        }
        Ok(tables)
    }

    fn root(&self, root: Root) -> &Range<u64> {
        match root {
            Root::L1 => &self.l1,
            Root::Refcounts => &self.refcounts,
        }
    }

    /// Reads the L1 or the refcount table; every table that it leads to must be in the file, and be nobody else's.
    fn load_root(&mut self, file: &File, root: Root, end: u64) -> Result<Vec<u64>, Refusal> {
        let (name, mask) = match root {
            Root::L1 => ("L1 table", OFFSET),
            Root::Refcounts => ("refcount table", REFCOUNT_OFFSET),
        };
        let place = self.root(root).clone();
        if place.is_empty() {
            return Ok(Vec::new());
        }
        if place.start < self.cluster || !place.start.is_multiple_of(self.cluster) {
            return Err(damaged(&format!("its {name} is said to be at byte {}", place.start)));
        }
        if place.end > end {
            return Err(cut_off(end));
        }
        let entries = entries(file, &place)?;
        for (index, entry) in entries.iter().enumerate() {
            let leaf = entry & mask;
            if leaf == 0 {
                continue;
            }
            if leaf.saturating_add(self.cluster) > end {
                return Err(cut_off(end));
            }
            self.enter(root, index as u64, leaf)
                .map_err(|text| damaged(&format!("entry {index} of its {name} {text}")))?;
        }
        Ok(entries)
    }

    /// Notes where an entry leads; the error goes on after its name.
    fn enter(&mut self, root: Root, index: u64, leaf: u64) -> Result<(), String> {
        if !leaf.is_multiple_of(self.cluster) {
            return Err(format!("leads to byte {leaf}, where no cluster begins"));
        }
        if self.is_root(leaf) {
            return Err("leads to the header or to one of the first tables".to_owned());
        }
        match *self.leaves.entry(leaf).or_insert((root, index)) {
            owner if owner == (root, index) => Ok(()),
            _ => Err(format!("leads to byte {leaf}, where another table is")),
        }
    }

    /// Whether the header or part of the L1 or refcount table is in this cluster.
    fn is_root(&self, cluster: u64) -> bool {
        let place = cluster..cluster.saturating_add(self.cluster);
        cluster == 0 || overlap(&place, &self.l1) || overlap(&place, &self.refcounts)
    }

    /// Space is given out by counts: a table that counts as free would be overwritten, or be in imago's hands twice.
    fn check_counted(&self, counts: &Counts<'_>) -> Result<(), Refusal> {
        if counts.of(0)? == 0 {
            return Err(damaged("does not count its own header as used"));
        }
        let clusters = |place: &Range<u64>| place.clone().step_by(self.cluster as usize);
        for table in clusters(&self.l1).chain(clusters(&self.refcounts)).chain(self.leaves.keys().copied()) {
            if counts.of(table / self.cluster)? == 0 {
                return Err(damaged(&format!("counts its own table at byte {table} as free")));
            }
        }
        Ok(())
    }

    /// The header was written: the L1 and refcount tables may be somewhere else now.
    pub(super) fn follow(&mut self, header: &[u8]) -> io::Result<()> {
        let Some(places) = Header::places(header) else {
            return Err(wrong("the header has no table any more"));
        };
        (self.l1, self.refcounts) = places;
        Ok(())
    }

    /// Size of a cluster; 0 for a raw image.
    pub(super) fn cluster_bytes(&self) -> u64 {
        self.cluster
    }

    /// The place of the L1 table.
    pub(super) fn l1(&self) -> &Range<u64> {
        &self.l1
    }

    /// Whether an L2 table is at this offset.
    pub(super) fn is_l2(&self, offset: u64) -> bool {
        matches!(self.leaves.get(&offset), Some((Root::L1, _)))
    }

    /// Checks an L2 table that was read: it leads to no table, for what it leads to may be written or given out again.
    pub(super) fn check_l2(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        for entry in numbers(bytes) {
            let data = data(entry, self.cluster);
            if let Some(table) = self.table_in(&data) {
                return Err(wrong(&format!(
                    "the L2 table at byte {offset} leads to the table at byte {table}"
                )));
            }
        }
        Ok(())
    }

    /// Checks what is about to be written to the tables: a new entry must lead to a table of its own.
    pub(super) fn check_entries(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if offset == 0 && !bytes.starts_with(&MAGIC) {
            return Err(wrong("a table would be written over the header: its counts are wrong"));
        }
        for (root, mask) in [(Root::L1, OFFSET), (Root::Refcounts, REFCOUNT_OFFSET)] {
            let place = self.root(root).clone();
            for (at, entry) in (offset..).step_by(8).zip(numbers(bytes)) {
                if place.contains(&at) && entry & mask != 0 {
                    let index = (at - place.start) / 8;
                    self.enter(root, index, entry & mask)
                        .map_err(|text| wrong(&format!("a new entry {text}: its counts are wrong")))?;
                }
            }
        }
        Ok(())
    }

    /// Checks that a write does not make a file of `end` bytes longer than new clusters can.
    pub(super) fn check_near(&self, offset: u64, end: u64) -> io::Result<()> {
        if offset <= end.saturating_add(BEYOND) {
            return Ok(());
        }
        Err(wrong(&format!("byte {offset} would be written, and it has {end}")))
    }

    /// Checks where data are about to be written, in a file of `end` bytes.
    pub(super) fn check_data(&self, place: &Range<u64>, end: u64) -> io::Result<()> {
        self.check_near(place.start, end)?;
        match self.table_in(place) {
            Some(table) => Err(wrong(&format!("data would be written to the table at byte {table}"))),
            None => Ok(()),
        }
    }

    /// The first cluster in these bytes that the header or a table is in.
    fn table_in(&self, place: &Range<u64>) -> Option<u64> {
        let mut cluster = place.start - place.start % self.cluster;
        while cluster < place.end {
            if self.is_root(cluster) || self.leaves.contains_key(&cluster) {
                return Some(cluster);
            }
            cluster = cluster.saturating_add(self.cluster);
        }
        None
    }
}

/// The reference counts of clusters, as the file has them.
struct Counts<'f> {
    file: &'f File,
    /// The refcount table.
    blocks: &'f [u64],
    header: &'f Header,
}

impl Counts<'_> {
    /// Counts in one block.
    fn per_block(&self) -> u64 {
        (self.header.cluster_bytes * 8) >> self.header.refcount_order
    }

    /// The count of a cluster, by its number.
    fn of(&self, cluster: u64) -> io::Result<u64> {
        let block = usize::try_from(cluster / self.per_block()).ok().and_then(|index| self.blocks.get(index));
        let Some(block) = block.map(|entry| entry & REFCOUNT_OFFSET).filter(|block| *block != 0) else {
            return Ok(0);
        };
        let order = self.header.refcount_order;
        let bit = (cluster % self.per_block()) << order;
        if order < 3 {
            // Narrow counts fill a byte from its lowest bits on.
            let byte = read_up_to(self.file, block + bit / 8, 1)?.first().copied().unwrap_or(0);
            return Ok(u64::from(byte >> (bit % 8)) & ((1 << (1 << order)) - 1));
        }
        let bytes = read_up_to(self.file, block + bit / 8, 1 << (order - 3))?;
        Ok(bytes.iter().fold(0, |count, byte| count << 8 | u64::from(*byte)))
    }

    /// Where the last cluster that is counted as used ends.
    fn end(&self) -> io::Result<Option<u64>> {
        for (index, entry) in self.blocks.iter().enumerate().rev() {
            let block = entry & REFCOUNT_OFFSET;
            if block == 0 {
                continue;
            }
            let bytes = read_up_to(self.file, block, self.header.cluster_bytes as usize)?;
            if let Some(last) = bytes.iter().rposition(|byte| *byte != 0) {
                // The last cluster that the byte has to do with.
                let order = self.header.refcount_order;
                let within = ((last as u64 * 8 + 7) >> order) + index as u64 * self.per_block();
                return Ok(Some((within + 1).saturating_mul(self.header.cluster_bytes)));
            }
        }
        Ok(None)
    }
}

/// Whether every cluster with data lies in the file, of `end` bytes. A process that is killed may leave clusters behind the
/// end that count as used; but nothing leads to them.
fn check_whole(file: &File, l1: &[u64], header: &Header, end: u64) -> Result<(), Refusal> {
    let cluster = header.cluster_bytes;
    let per_table = cluster / 8;
    for (index, table) in l1.iter().enumerate().filter(|(_, entry)| *entry & OFFSET != 0) {
        let table = table & OFFSET;
        let entries = entries(file, &(table..table.saturating_add(cluster)))?;
        for (guest, entry) in (index as u64 * per_table..).zip(entries) {
            let data = entry & OFFSET;
            let reads_as_zeroes = header.version == 3 && entry & ZERO != 0;
            if entry & COMPRESSED != 0 || data == 0 || reads_as_zeroes {
                continue;
            }
            // The last cluster of a disk may be there in part.
            let used = header.virtual_bytes.saturating_sub(guest.saturating_mul(cluster)).min(cluster);
            if used > 0 && data.saturating_add(used) > end {
                return Err(cut_off(end));
            }
        }
    }
    Ok(())
}

/// The bytes that an L2 entry leads to; none for one that leads nowhere. Compressed data begin anywhere, and their length is
/// a number of sectors; which bits are which depends on the size of a cluster.
fn data(entry: u64, cluster: u64) -> Range<u64> {
    if entry & COMPRESSED == 0 {
        let start = entry & OFFSET;
        return start..if start == 0 { 0 } else { start.saturating_add(cluster) };
    }
    let offset_bits = 70_u32.saturating_sub(cluster.trailing_zeros());
    let mask = (1_u64 << offset_bits.min(56)) - 1;
    let sectors = (entry & (COMPRESSED - 1)) >> offset_bits;
    let start = entry & mask;
    start..(start - start % 512).saturating_add((sectors + 1) * 512)
}

fn entries(file: &File, place: &Range<u64>) -> Result<Vec<u64>, Refusal> {
    let bytes = usize::try_from(place.end - place.start).map_err(io::Error::other)?;
    Ok(numbers(&read_up_to(file, place.start, bytes)?).collect())
}

/// Big-endian numbers.
fn numbers(bytes: &[u8]) -> impl Iterator<Item = u64> {
    let (numbers, _) = bytes.as_chunks::<8>();
    numbers.iter().map(|number| u64::from_be_bytes(*number))
}

fn overlap(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}

fn cut_off(end: u64) -> Refusal {
    Refusal::Unsupported(format!(
        "is cut off: it has {end} bytes, and its tables lead to more; go back to a copy, for what is missing is lost"
    ))
}

fn damaged(text: &str) -> Refusal {
    Refusal::Unsupported(format!("is damaged ({text}): {}", super::REPAIR))
}

fn wrong(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}
