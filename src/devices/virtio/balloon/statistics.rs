//! What the guest's driver tells of its memory (virtio 1.2 §5.5.6.3).

use std::collections::BTreeMap;

/// Bytes of one entry: a 16-bit tag and a 64-bit value, packed.
const ENTRY: usize = 10;
/// The most entries that are read. Linux 6.12 sends 16.
const MAX_ENTRIES: usize = 64;
/// The most bytes that are read.
pub(super) const MAX_BYTES: usize = ENTRY * MAX_ENTRIES;

/// Names by tag (virtio 1.2 §5.5.6.4; from 10 on as Linux numbers them, include/uapi/linux/virtio_balloon.h).
const NAMES: [&str; 16] = [
    "swap_in_bytes",
    "swap_out_bytes",
    "major_faults",
    "minor_faults",
    "free_bytes",
    "total_bytes",
    "available_bytes",
    "cached_bytes",
    "huge_page_allocations",
    "huge_page_failures",
    "oom_kills",
    "allocation_stalls",
    "background_scanned_pages",
    "direct_scanned_pages",
    "background_reclaimed_pages",
    "direct_reclaimed_pages",
];

/// The values by name. A tag nobody knows is skipped (§5.5.6.3.1), and so is half an entry.
pub(super) fn parse(bytes: &[u8]) -> BTreeMap<String, u64> {
    let mut values = BTreeMap::new();
    for entry in bytes.chunks_exact(ENTRY).take(MAX_ENTRIES) {
        if let Some((tag, value)) = entry.split_first_chunk::<2>()
            && let Some(name) = NAMES.get(usize::from(u16::from_le_bytes(*tag)))
            && let Ok(value) = value.try_into()
        {
            values.insert((*name).to_owned(), u64::from_le_bytes(value));
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_tags_are_read_and_the_rest_is_skipped() {
        let entry = |tag: u16, value: u64| [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat();
        let bytes = [entry(4, 77), entry(999, 1), entry(2, u64::MAX), entry(16, 3), vec![6, 0, 1]].concat();
        let expected = BTreeMap::from([("free_bytes".into(), 77), ("major_faults".into(), u64::MAX)]);
        assert_eq!(parse(&bytes), expected);
        assert_eq!(parse(&[]), BTreeMap::new());
        assert_eq!(parse(&[0; 9]), BTreeMap::new());
    }
}
