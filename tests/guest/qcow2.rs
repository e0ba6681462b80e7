//! Looks a qcow2 image over, as `qemu-img check` does, which the node has not: what refers to clusters, and what the
//! refcounts say (QEMU's docs/interop/qcow2.rst).

use std::collections::BTreeMap;
use std::path::Path;

/// An image that was looked over.
#[derive(Debug)]
pub(crate) struct Checked {
    /// Clusters that hold the guest's data.
    pub(crate) data: usize,
    /// Clusters that are counted and that nothing refers to.
    pub(crate) leaked: usize,
}

struct Image {
    bytes: Vec<u8>,
    cluster: u64,
    references: BTreeMap<u64, u64>,
}

/// Bits 9 to 55 of an entry are the offset.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Bit 62 of an L2 entry: a compressed cluster.
const COMPRESSED: u64 = 1 << 62;

/// Fails if anything refers to a cluster that is not counted as often, or that is not in the file.
#[track_caller]
pub(crate) fn check(path: &Path) -> Checked {
    let bytes = std::fs::read(path).unwrap();
    assert_eq!(bytes[..4], *b"QFI\xfb");
    let mut image = Image { cluster: 0, references: BTreeMap::new(), bytes };
    image.cluster = 1 << image.u32(20);
    assert_eq!(image.u64(72) & 3, 0, "neither dirty nor corrupt");
    assert_eq!(image.u32(96), 4, "refcounts of 16 bits");
    let cluster = image.cluster;
    image.refer(0, 1);

    let (l1, entries) = (image.u64(40), u64::from(image.u32(36)));
    image.refer(l1, (entries * 8).div_ceil(cluster));
    let mut data = 0;
    for l1_index in 0..entries {
        let l2 = image.u64(l1 + 8 * l1_index) & OFFSET;
        if l2 == 0 {
            continue;
        }
        image.refer(l2, 1);
        for l2_index in 0..cluster / 8 {
            let entry = image.u64(l2 + 8 * l2_index);
            assert_eq!(entry & COMPRESSED, 0, "nobody compressed anything");
            if entry & OFFSET != 0 {
                image.refer(entry & OFFSET, 1);
                data += 1;
            }
        }
    }

    let (table, clusters) = (image.u64(48), u64::from(image.u32(56)));
    image.refer(table, clusters);
    let mut counts = BTreeMap::new();
    let per_block = cluster / 2;
    for index in 0..clusters * cluster / 8 {
        let block = image.u64(table + 8 * index) & OFFSET;
        if block == 0 {
            continue;
        }
        image.refer(block, 1);
        for entry in 0..per_block {
            let at = (block + 2 * entry) as usize;
            let count = u64::from(u16::from_be_bytes(image.bytes[at..at + 2].try_into().unwrap()));
            if count > 0 {
                counts.insert((index * per_block + entry) * cluster, count);
            }
        }
    }

    let mut leaked = 0;
    for (offset, count) in &counts {
        let references = image.references.remove(offset).unwrap_or(0);
        assert!(*count >= references, "{references} refer to the cluster at {offset:#x}, counted {count}");
        leaked += usize::from(*count > references);
    }
    assert!(image.references.is_empty(), "in use, and counted as free: {:x?}", image.references);
    Checked { data, leaked }
}

impl Image {
    fn u32(&self, at: u64) -> u32 {
        u32::from_be_bytes(self.bytes[at as usize..][..4].try_into().unwrap())
    }

    fn u64(&self, at: u64) -> u64 {
        u64::from_be_bytes(self.bytes[at as usize..][..8].try_into().unwrap())
    }

    /// Something refers to so many clusters.
    fn refer(&mut self, offset: u64, clusters: u64) {
        assert!(offset.is_multiple_of(self.cluster), "{offset:#x} is not where a cluster begins");
        for number in 0..clusters {
            let at = offset + number * self.cluster;
            assert!(at < self.bytes.len() as u64, "the cluster at {at:#x} is beyond the file");
            *self.references.entry(at).or_default() += 1;
        }
    }
}
