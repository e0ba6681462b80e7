//! Figures about the guest, read from /proc.

use std::collections::BTreeSet;

use nestling_protocol::Stats;
use nestling_protocol::stats::{Cpu, Disk, Memory};
use nix::sys::statvfs::statvfs;
use nix::unistd::{SysconfVar, sysconf};

/// The most disks that are told of.
const MOST_DISKS: usize = 32;

/// Reads them all; what cannot be read is zero.
pub(super) fn now() -> Stats {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/{name}")).unwrap_or_default();
    let (load, tasks) = load(&read("loadavg"));
    Stats {
        uptime: read("uptime").split(' ').next().and_then(|word| word.parse().ok()).unwrap_or_default(),
        load,
        tasks,
        memory: memory(&read("meminfo")),
        cpu: cpu(&read("stat")),
        disks: disks(&read("self/mounts")),
    }
}

fn number(variable: SysconfVar) -> u64 {
    sysconf(variable).ok().flatten().and_then(|value| u64::try_from(value).ok()).unwrap_or(1).max(1)
}

/// `0.10 0.20 0.30 1/123 4567`: the load, and how many tasks there are.
fn load(text: &str) -> ([f64; 3], u64) {
    let mut words = text.split_whitespace();
    let mut next = || words.next().and_then(|word| word.parse().ok()).unwrap_or_default();
    let load = [next(), next(), next()];
    let tasks = words.next().and_then(|word| word.split_once('/')?.1.parse().ok());
    (load, tasks.unwrap_or_default())
}

fn memory(text: &str) -> Memory {
    let bytes = |name: &str| -> u64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let kib: Option<u64> = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
        kib.unwrap_or_default().saturating_mul(1024)
    };
    Memory {
        total: bytes("MemTotal"),
        free: bytes("MemFree"),
        available: bytes("MemAvailable"),
        cached: bytes("Cached"),
        swap_total: bytes("SwapTotal"),
        swap_free: bytes("SwapFree"),
    }
}

/// The first line: `cpu user nice system idle iowait irq softirq steal …`, in ticks.
fn cpu(text: &str) -> Cpu {
    let mut ticks = text.lines().next().unwrap_or_default().split_whitespace().skip(1);
    let per_second = number(SysconfVar::CLK_TCK) as f64;
    let mut next =
        || ticks.next().and_then(|word| word.parse::<u64>().ok()).unwrap_or_default() as f64 / per_second;
    let [user, nice, system, idle, iowait, irq, softirq, steal] = std::array::from_fn(|_| next());
    Cpu {
        online: number(SysconfVar::_NPROCESSORS_ONLN),
        user: user + nice,
        system: system + irq + softirq,
        idle: idle + iowait,
        steal,
    }
}

/// The mounted disks, each once, however often it is mounted.
fn disks(mounts: &str) -> Vec<Disk> {
    let mut seen = BTreeSet::new();
    let entries = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        let (device, path) = (fields.next()?, fields.next()?.replace("\\040", " "));
        // A filesystem over the network or in a process might not answer; a disk does.
        if !device.starts_with("/dev/") || !seen.insert(device.to_string()) {
            return None;
        }
        let figures = statvfs(path.as_str()).ok()?;
        let bytes = |blocks: u64| blocks.saturating_mul(figures.fragment_size());
        Some(Disk {
            device: device.into(),
            path,
            total: bytes(figures.blocks()),
            used: bytes(figures.blocks().saturating_sub(figures.blocks_free())),
            available: bytes(figures.blocks_available()),
        })
    });
    entries.take(MOST_DISKS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_as_the_kernel_writes_them() {
        assert_eq!(load("0.52 0.58 0.59 3/1234 56789\n"), ([0.52, 0.58, 0.59], 1234));
        let memory = memory(
            "MemTotal:  100 kB\nMemFree: 50 kB\nMemAvailable: 70 kB\nSwapCached: 9 kB\nCached: 3 kB\n",
        );
        assert_eq!(
            (memory.total, memory.free, memory.available, memory.cached),
            (102_400, 51_200, 71_680, 3072)
        );
        let cpu = cpu("cpu  100 20 30 4000 50 6 7 800 0 0\ncpu0 1 2 3\n");
        assert_eq!((cpu.user, cpu.system, cpu.idle, cpu.steal), (1.2, 0.43, 40.5, 8.0));
    }

    #[test]
    fn what_is_broken_is_zero() {
        assert_eq!((load(""), load("x y z q")), (([0.0; 3], 0), ([0.0; 3], 0)));
        assert_eq!(memory("MemTotal: lots\n"), Memory::default());
        assert_eq!(cpu("").user, 0.0);
        assert!(disks("/dev/nowhere /not/there ext4 rw 0 0\nbroken\n").is_empty());
    }

    #[test]
    fn this_machine_has_figures() {
        let stats = now();

        assert!(
            stats.uptime > 0.0 && stats.tasks > 0 && stats.cpu.online > 0 && stats.cpu.idle > 0.0,
            "{stats:?}"
        );
        assert!(stats.memory.available > 0 && stats.memory.available <= stats.memory.total, "{stats:?}");
    }
}
