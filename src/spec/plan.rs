//! The machine plan: what a spec means once every default is filled in and every value is checked.
//!
//! Nothing below this room checks these values again.

use std::path::PathBuf;

/// One `nestling run`: the machine, and what is around it.
#[derive(Debug, Clone)]
pub struct RunPlan {
    /// The machine itself.
    pub machine: MachinePlan,
    /// The status socket's path, at most 107 bytes.
    pub socket: PathBuf,
    /// Where the status is kept on disk, if anywhere.
    pub status_file: Option<PathBuf>,
    /// Which KVM will do.
    pub allow_backend: AllowBackend,
}

/// Which KVM a run is content with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AllowBackend {
    /// Only one on a CPU that offers VT-x or AMD-V.
    Hardware,
    /// Whatever answers on `/dev/kvm`.
    Any,
}

/// Everything the VMM needs to build one machine.
#[derive(Debug, Clone)]
pub struct MachinePlan {
    /// Number of vCPUs, 1 to 32.
    pub cpus: u8,
    /// Guest RAM in bytes, a multiple of 2 MiB.
    pub memory_bytes: u64,
    /// Kernel image: an ELF `vmlinux` or a bzImage.
    pub kernel: PathBuf,
    /// Initial RAM disk, loaded as it is.
    pub initrd: Option<PathBuf>,
    /// The guest's kernel command line.
    pub cmdline: CmdlinePlan,
    /// Block devices in the order they were written: the first is the guest's `vda`.
    pub disks: Vec<DiskPlan>,
    /// Network interfaces in the order they were written: the first is the guest's `eth0`.
    pub nets: Vec<NetPlan>,
    /// Which console the guest gets.
    pub console: ConsoleKind,
}

/// How the kernel command line is put together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CmdlinePlan {
    /// What Nestling computes (console, root, boot hints), then this text.
    Append(String),
    /// This text alone.
    Replace(String),
}

/// One virtio-blk device.
#[derive(Debug, Clone)]
pub struct DiskPlan {
    /// The image file or block device.
    pub path: PathBuf,
    /// The guest may not write; the image is opened read-only and its lock is shared.
    pub readonly: bool,
}

/// One virtio-net device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetPlan {
    /// The host's end.
    pub tap: TapPlan,
    /// The guest's address: of one machine, not a group.
    pub mac: [u8; 6],
    /// The MTU to set; `None` takes the tap's.
    pub mtu: Option<u16>,
    /// Queue pairs, 1 to 32.
    pub queues: u16,
    /// What the guest may receive.
    pub receive: DirectionPlan,
    /// What it may transmit.
    pub transmit: DirectionPlan,
}

/// Which tap an interface is connected to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TapPlan {
    /// A new one.
    New,
    /// The one of this name, which is made if it is not there.
    Named(String),
    /// An inherited descriptor.
    Descriptor(i32),
}

/// How much may pass in one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DirectionPlan {
    /// Bytes of frames.
    pub bytes: Option<RatePlan>,
    /// Frames.
    pub packets: Option<RatePlan>,
}

/// A rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RatePlan {
    /// In a second, at least 1.
    pub per_second: u64,
    /// At once after a quiet time, at least 1.
    pub burst: u64,
}

/// The guest's console device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConsoleKind {
    /// virtio-console, `hvc0` in the guest: no exit per character.
    Virtio,
    /// A 16550 UART, `ttyS0` in the guest: one exit per character, but it works before any driver is loaded.
    Serial,
}
