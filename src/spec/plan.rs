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
    /// Shared directories.
    pub shares: Vec<SharePlan>,
    /// Streams between programs of the guest and of the host, if any.
    pub vsock: Option<VsockPlan>,
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

/// One virtio-fs device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharePlan {
    /// What the guest mounts it by, 1 to 36 bytes.
    pub tag: String,
    /// Who serves it.
    pub server: ShareServer,
}

/// Who serves a share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ShareServer {
    /// A virtiofsd that Nestling starts.
    Directory {
        /// The host's directory.
        path: PathBuf,
        /// The guest may not write.
        readonly: bool,
        /// What the guest's kernel may keep.
        cache: ShareCache,
    },
    /// A virtiofsd that the user runs: its socket.
    Socket(PathBuf),
}

/// What the guest's kernel may keep of a share's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShareCache {
    /// For a second: others on the host may change files.
    Auto,
    /// Nothing but what is mapped.
    Never,
    /// Everything, for ever.
    Always,
}

impl MachinePlan {
    /// Whether guest RAM has to be memory that another process can map.
    #[must_use]
    pub fn needs_shared_memory(&self) -> bool {
        !self.shares.is_empty()
    }
}

/// The virtio-vsock device.
#[derive(Debug, Clone)]
pub struct VsockPlan {
    /// The guest's address, 3 to 2^32 - 2.
    pub cid: u32,
    /// What is at the other end.
    pub host: VsockHost,
}

/// What a guest's vsock leads to.
#[derive(Debug, Clone)]
pub enum VsockHost {
    /// Unix sockets.
    Sockets {
        /// The one the host's programs connect to, at most 96 bytes; those the guest reaches are at `<path>_<port>`.
        path: PathBuf,
        /// The most connections at the same time.
        connections: u32,
    },
    /// The node's own AF_VSOCK, through `/dev/vhost-vsock`.
    Kernel,
}

/// The guest's console device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConsoleKind {
    /// virtio-console, `hvc0` in the guest: no exit per character.
    Virtio,
    /// A 16550 UART, `ttyS0` in the guest: one exit per character, but it works before any driver is loaded.
    Serial,
}
