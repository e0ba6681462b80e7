//! What the machine looks like now, for the status.

use std::fs;
use std::ops::Range;

use super::memory::GuestRam;
use crate::status::model::MemoryFacts;

/// Pages of 2 MiB by kind: of anonymous memory, of a memfd, of hugetlb.
const HUGE: [&str; 4] = ["AnonHugePages:", "ShmemPmdMapped:", "Shared_Hugetlb:", "Private_Hugetlb:"];

/// Reads what backs guest RAM from `/proc/self/smaps` (proc(5)).
pub(super) fn memory(ram: &GuestRam) -> MemoryFacts {
    let smaps = fs::read_to_string("/proc/self/smaps").unwrap_or_default();
    let backing = ram.backing();
    MemoryFacts {
        backing: backing.name.to_owned(),
        backing_cost: backing.cost.clone(),
        ..measure(&smaps, &ram.host_range())
    }
}

fn measure(smaps: &str, ram: &Range<u64>) -> MemoryFacts {
    let mut facts = MemoryFacts { size_bytes: ram.end - ram.start, ..MemoryFacts::default() };
    let mut in_ram = false;
    for line in smaps.lines() {
        if let Some(range) = mapping(line) {
            in_ram = range.start < ram.end && ram.start < range.end;
        } else if let Some(bytes) = kib(line, "Rss:") {
            let sum = if in_ram { &mut facts.resident_bytes } else { &mut facts.overhead_bytes };
            *sum += bytes;
        } else if let Some(bytes) = HUGE.iter().find_map(|name| kib(line, name)).filter(|_| in_ram) {
            facts.huge_bytes += bytes;
            // hugetlb pages are not among `Rss`.
            if line.contains("Hugetlb") {
                facts.resident_bytes += bytes;
            }
        }
    }
    if facts.resident_bytes > 0 {
        facts.huge_share = facts.huge_bytes as f64 / facts.resident_bytes as f64;
    }
    facts
}

/// The address range of a mapping's first line, `start-end perms …`.
fn mapping(line: &str) -> Option<Range<u64>> {
    let (start, end) = line.split_whitespace().next()?.split_once('-')?;
    Some(u64::from_str_radix(start, 16).ok()?..u64::from_str_radix(end, 16).ok()?)
}

/// The value of a `name: 12 kB` line in bytes.
fn kib(line: &str, name: &str) -> Option<u64> {
    let value: u64 = line.strip_prefix(name)?.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(value << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_ram_and_the_rest_are_told_apart() {
        let smaps = "\
7f0000000000-7f0008000000 rw-p 00000000 00:00 0 \n\
Size:             131072 kB\nRss:               65536 kB\nAnonHugePages:     49152 kB\n\
7f0010000000-7f0010002000 r--p 00000000 fe:00 12 /bin/nestling\n\
Rss:                   8 kB\nAnonHugePages:         0 kB\ngarbage\n\n-\n";
        let facts = measure(smaps, &(0x7f00_0000_0000..0x7f00_0800_0000));
        assert_eq!(facts.size_bytes, 128 << 20);
        assert_eq!(facts.resident_bytes, 64 << 20);
        assert_eq!(facts.huge_bytes, 48 << 20);
        assert_eq!(facts.overhead_bytes, 8 << 10);
        assert!((facts.huge_share - 0.75).abs() < 1e-9);
        assert_eq!(measure("", &(0..4096)).resident_bytes, 0);
    }

    #[test]
    fn huge_pages_of_shared_ram_are_counted_by_their_own_names() {
        let of = |lines: &str| {
            let facts = measure(&format!("1000-5000 rw-s 0 00:01 9 /memfd:x\n{lines}"), &(0x1000..0x5000));
            (facts.resident_bytes >> 10, facts.huge_bytes >> 10)
        };
        assert_eq!(of("Rss: 8192 kB\nAnonHugePages: 0 kB\nShmemPmdMapped: 4096 kB\n"), (8192, 4096));
        assert_eq!(of("Rss: 0 kB\nShared_Hugetlb: 2048 kB\nPrivate_Hugetlb: 4096 kB\n"), (6144, 6144));
    }
}
