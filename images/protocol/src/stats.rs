//! Figures about a guest, as its kernel gives them.

use serde::{Deserialize, Serialize};

/// One look at the guest. Sizes are bytes, times seconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Stats {
    /// Since the kernel started.
    pub uptime: f64,
    /// Load averages over one, five and fifteen minutes.
    pub load: [f64; 3],
    /// Processes and threads.
    pub tasks: u64,
    /// Memory.
    pub memory: Memory,
    /// What all CPUs have done since the kernel started.
    pub cpu: Cpu,
    /// Mounted disks; at most 32.
    pub disks: Vec<Disk>,
}

/// The guest's memory (`/proc/meminfo`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Memory {
    /// What the kernel has.
    pub total: u64,
    /// What nothing uses.
    pub free: u64,
    /// What programs could still get without swapping.
    pub available: u64,
    /// Cached file contents.
    pub cached: u64,
    /// Swap space.
    pub swap_total: u64,
    /// What of it is free.
    pub swap_free: u64,
}

/// CPU time (`/proc/stat`), summed over all CPUs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cpu {
    /// How many CPUs are online.
    pub online: u64,
    /// In programs.
    pub user: f64,
    /// In the kernel, interrupts included.
    pub system: f64,
    /// Idle, waiting for disks included.
    pub idle: f64,
    /// When a CPU wanted to run and the host did not let it.
    pub steal: f64,
}

/// A mounted disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Disk {
    /// Its device: `/dev/vda`.
    pub device: String,
    /// Where it is mounted.
    pub path: String,
    /// Its size.
    pub total: u64,
    /// What is in use.
    pub used: u64,
    /// What programs without privileges can still write.
    pub available: u64,
}
