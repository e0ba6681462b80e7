//! What /proc says about a running process, and about the machine.

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use crate::Result;

/// Memory of a process in KiB, its guest's RAM left out.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Overhead {
    /// Resident.
    pub(crate) rss_kib: u64,
    /// Resident, pages shared with other processes counted in proportion.
    pub(crate) pss_kib: u64,
}

/// Memory of process `pid` beyond guest RAM, which is its one writable mapping of exactly `guest_mib`.
pub(crate) fn overhead(pid: u32, guest_mib: u64) -> Result<Overhead> {
    let path = format!("/proc/{pid}/smaps");
    let smaps = fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
    let (overhead, guests) = measure(&smaps, guest_mib << 10);
    if guests == 1 {
        Ok(overhead)
    } else {
        Err(format!("{path}: {guests} mappings look like guest RAM").into())
    }
}

/// The sums over all mappings but guest RAM, and how many mappings looked like guest RAM.
fn measure(smaps: &str, guest_kib: u64) -> (Overhead, usize) {
    let mut sum = Overhead::default();
    let mut guests = 0;
    let mut writable = false;
    let mut is_guest = false;
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let (Some(name), Some(value)) = (words.next(), words.next()) else { continue };
        let kib = value.parse().unwrap_or(0);
        match name {
            "Size:" => {
                is_guest = writable && kib == guest_kib;
                guests += usize::from(is_guest);
            }
            "Rss:" if !is_guest => sum.rss_kib += kib,
            "Pss:" if !is_guest => sum.pss_kib += kib,
            _ if name.contains('-') => writable = value.starts_with("rw"),
            _ => {}
        }
    }
    (sum, guests)
}

/// How many threads process `pid` has.
pub(crate) fn threads(pid: u32) -> Result<u64> {
    Ok(fs::read_dir(format!("/proc/{pid}/task"))?.count() as u64)
}

/// The machine in a few words: its CPUs, its kernel, its KVM.
pub(crate) fn machine() -> String {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpus = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let thp = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
    let thp = thp.split(['[', ']']).nth(1).unwrap_or("off").to_owned();
    let modules = fs::read_dir("/sys/module").into_iter().flatten().flatten();
    let kvm = modules.filter_map(|entry| entry.file_name().into_string().ok());
    let kvm = kvm.filter(|name| name.starts_with("kvm_")).collect::<Vec<_>>().join(", ");
    let (model, kernel) = (model.unwrap_or("unknown CPU"), kernel.trim());
    let cpus = if cpus == 1 { "1 CPU".to_owned() } else { format!("{cpus} CPUs") };
    format!("{cpus} ({model}), Linux {kernel}, KVM by {kvm}, transparent huge pages: {thp}")
}

/// How busy the machine is with other things: its CPUs are watched for a second.
pub(crate) fn load() -> String {
    let before = cpu_times();
    sleep(Duration::from_secs(1));
    let after = cpu_times();
    let (busy, all) = (after.0.saturating_sub(before.0), after.1.saturating_sub(before.1));
    let percent = busy * 100 / all.max(1);
    let state = if percent < 10 { "idle" } else { "busy" };
    format!("{state} before it began: {percent} % of its CPU time was taken")
}

/// Busy and all time of all CPUs together, in ticks (proc(5), `/proc/stat`).
fn cpu_times() -> (u64, u64) {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = stat.lines().next().unwrap_or_default();
    // user nice system idle iowait irq softirq steal
    let ticks: Vec<u64> =
        line.split_whitespace().skip(1).take(8).filter_map(|word| word.parse().ok()).collect();
    let idle: u64 = ticks.iter().skip(3).take(2).sum();
    let all: u64 = ticks.iter().sum();
    (all - idle, all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_ram_is_left_out() {
        let smaps = "\
7f0000000000-7f0008000000 rw-p 00000000 00:00 0 \n\
Size:             131072 kB\nRss:               2048 kB\nPss:               2048 kB\nPss_Dirty:         2048 kB\n\
7f0018000000-7f0020000000 ---p 00000000 00:00 0 \n\
Size:             131072 kB\nRss:                  0 kB\nPss:                  0 kB\n\
7f0010000000-7f0010002000 r--p 00000000 fe:00 12 /bin/nestling\n\
Size:                  8 kB\nRss:                  8 kB\nPss:                  4 kB\nPss_Dirty:            0 kB\n";
        assert_eq!(measure(smaps, 131_072), (Overhead { rss_kib: 8, pss_kib: 4 }, 1));
        assert_eq!(measure(smaps, 65_536).1, 0);
    }
}
