//! The machine plan: what a spec means once every default is filled in and every value is checked.
//!
//! Nothing below this room checks these values again.

use std::path::{Path, PathBuf};

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
    /// Bytes of console output that are kept for `nestling logs` and `nestling attach`.
    pub console_history: usize,
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
    /// Named character ports.
    pub ports: Vec<PortPlan>,
    /// Shared directories.
    pub shares: Vec<SharePlan>,
    /// Streams between programs of the guest and of the host, if any.
    pub vsock: Option<VsockPlan>,
    /// Whether an agent in the guest is listened to, through the vsock device or one made for it alone. The node's own
    /// AF_VSOCK does not lead to us.
    pub agent: bool,
    /// Network interfaces in the order they were written: the first is the guest's `eth0`.
    pub nets: Vec<NetPlan>,
    /// Which console the guest gets.
    pub console: ConsoleKind,
    /// Whether the guest gets a watchdog, whose expiry ends the machine.
    pub watchdog: bool,
    /// The balloon, if there is one.
    pub balloon: Option<BalloonPlan>,
    /// The entropy device.
    pub rng: RngPlan,
}

/// The balloon: guest memory the host can have back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BalloonPlan {
    /// The guest takes memory out of the balloon rather than kill a process for want of it.
    pub deflate_on_oom: bool,
    /// The guest reports free memory without being asked.
    pub free_page_reporting: bool,
}

impl Default for BalloonPlan {
    fn default() -> Self {
        Self { deflate_on_oom: true, free_page_reporting: true }
    }
}

/// The entropy device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RngPlan {
    /// Random bytes the guest gets per second; no limit when absent.
    pub bytes_per_second: Option<u64>,
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskPlan {
    /// Where its bytes are.
    pub source: DiskSource,
    /// The guest may not write; the image is opened read-only and its lock is shared.
    pub readonly: bool,
    /// The page cache is left out (`O_DIRECT`).
    pub direct: bool,
    /// When a write is done, as long as the driver does not choose.
    pub cache: CacheMode,
    /// Who does the I/O.
    pub io: DiskIo,
    /// The serial number, 1 to 20 bytes of ASCII; `None` is `nestling-` and the disk's number.
    pub serial: Option<String>,
    /// Request queues, 1 to 32; `None` is one for each vCPU.
    pub queues: Option<u16>,
    /// The limit of bytes.
    pub bytes: Option<RateLimit>,
    /// The limit of requests.
    pub ops: Option<RateLimit>,
}

/// Where a disk's bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskSource {
    /// In an image.
    Image {
        /// The image file or block device.
        path: PathBuf,
        /// Its format; `None` is told by its name, if its beginning agrees.
        format: Option<DiskFormat>,
        /// The backing file that a qcow2 image names is opened.
        follow_backing: bool,
    },
    /// In several raw images, which are the partitions of one disk.
    Partitions {
        /// The images, in order.
        partitions: Vec<PartitionPlan>,
        /// `format=raw` was said: they are raw images, whatever they begin with.
        said_raw: bool,
    },
}

/// One partition of a composite disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionPlan {
    /// Its name in the partition table, 1 to 36 characters.
    pub label: String,
    /// The raw image.
    pub path: PathBuf,
    /// The guest may not write.
    pub readonly: bool,
}

/// How the bytes of an image become those of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskFormat {
    /// As they are.
    Raw,
    /// QEMU's copy-on-write format.
    Qcow2,
}

/// When a write is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheMode {
    /// When it is in the page cache or the device's; a flush makes it stable.
    Writeback,
    /// When it is stable.
    Writethrough,
}

/// Who does a disk's I/O.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskIo {
    /// io_uring where it can be had, else threads.
    Auto,
    /// io_uring, or the VM does not start.
    Uring,
    /// Threads.
    Threads,
}

/// A token bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimit {
    /// Tokens that come in a second; at least 1.
    pub per_second: u64,
    /// Tokens beyond those of one second that may be saved up.
    pub burst: u64,
}

impl DiskPlan {
    /// An image of which nothing more is said.
    #[must_use]
    pub fn image(path: &Path, readonly: bool) -> Self {
        Self {
            source: DiskSource::Image { path: path.to_owned(), format: None, follow_backing: true },
            readonly,
            direct: false,
            cache: CacheMode::Writeback,
            io: DiskIo::Auto,
            serial: None,
            queues: None,
            bytes: None,
            ops: None,
        }
    }

    /// The serial number of disk number `index`.
    #[must_use]
    pub fn serial_of(&self, index: usize) -> String {
        self.serial.clone().unwrap_or_else(|| format!("nestling-{index}"))
    }
}

/// Linux's name of virtio disk number `index`: `vda` to `vdz`, `vdaa` and so on.
#[must_use]
pub fn linux_disk_name(mut index: usize) -> String {
    let mut name = String::new();
    loop {
        name.insert(0, char::from(b'a' + (index % 26) as u8));
        match (index / 26).checked_sub(1) {
            Some(rest) => index = rest,
            None => break,
        }
    }
    format!("vd{name}")
}

/// One named character port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortPlan {
    /// What the guest calls it.
    pub name: String,
    /// The Unix socket on the host, at most 107 bytes.
    pub path: PathBuf,
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
    /// Who moves the frames.
    pub vhost: VhostPlan,
}

/// Whether the kernel moves an interface's frames (vhost-net).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VhostPlan {
    /// If it can.
    Auto,
    /// It has to.
    On,
    /// It does not.
    Off,
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
    pub bytes: Option<RateLimit>,
    /// Frames.
    pub packets: Option<RateLimit>,
}

/// The guest's console device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConsoleKind {
    /// virtio-console, `hvc0` in the guest: no exit per character.
    Virtio,
    /// A 16550 UART, `ttyS0` in the guest: one exit per character, but it works before any driver is loaded.
    Serial,
}
