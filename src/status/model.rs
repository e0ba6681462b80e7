//! The facts Nestling reports about its one VM, as plain data. Everything here is what `/v1/status` prints.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// How a machine ended. The exit code for each is in `agent::exit`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum EndReason {
    /// The guest asked ACPI to power off (S5).
    PowerOff,
    /// The guest powered off after the program it is for had ended.
    WorkloadExited {
        /// Its exit status.
        status: i32,
    },
    /// The guest powered off after the program it is for had been killed.
    WorkloadKilled {
        /// By this signal.
        signal: i32,
    },
    /// The guest wrote the reset register without a panic before it.
    Reset,
    /// The guest kernel panicked.
    GuestPanic {
        /// The kernel's own words, when they could be found on the console or in guest memory.
        message: Option<String>,
    },
    /// A vCPU triple-faulted (KVM_EXIT_SHUTDOWN).
    TripleFault,
    /// The guest had started its watchdog and did not feed it in time.
    Watchdog {
        /// How long it was silent: the timeout it had set, in milliseconds.
        silent_ms: u64,
    },
    /// KVM could not go on: KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_FAIL_ENTRY or a failing KVM_RUN.
    KvmError {
        /// Which exit, with its sub-error or hardware reason in words.
        detail: String,
    },
    /// The VM was stopped from outside: a signal or a socket request.
    Stopped {
        /// Who asked, for example `SIGTERM`.
        by: String,
    },
    /// The machine was to end, and something of it did not: a disk that does not answer, say.
    Killed {
        /// Who wished the end, and what did not come to it.
        detail: String,
    },
    /// Preflight found that this node or this pod cannot run the machine.
    PreflightFailed {
        /// The finding that stands in the way, with its mend.
        detail: String,
    },
    /// What the user asked for cannot be had: a spec, flag, kernel, initrd, disk or socket path.
    BadInput {
        /// Which value, and its mend.
        detail: String,
    },
    /// Nestling itself failed while the machine was running.
    Internal {
        /// What failed.
        detail: String,
    },
}

/// The boot stages a guest passes, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BootStage {
    /// The first vCPU entered the guest.
    Entered,
    /// The guest kernel configured its first PCI device.
    Kernel,
    /// The guest's init is running (a line on the console says so).
    Init,
    /// The guest's agent has connected.
    Agent,
}

impl BootStage {
    /// The stage's name, as the status writes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Entered => "entered",
            Self::Kernel => "kernel",
            Self::Init => "init",
            Self::Agent => "agent",
        }
    }
}

/// What a running machine tells its owner. Each variant is sent at most once, so the channel is bounded by design.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MachineEvent {
    /// A boot stage was reached.
    Stage(BootStage),
    /// The machine ended; every vCPU is leaving or has left the guest.
    Ended(EndReason),
}

/// Facts read from the live machine whenever somebody asks.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct MachineFacts {
    /// One entry per vCPU.
    pub vcpus: Vec<VcpuFacts>,
    /// Guest memory and what backs it.
    pub memory: MemoryFacts,
    /// Every device, in bus order.
    pub devices: Vec<DeviceFacts>,
    /// Exits to user space by reason, all vCPUs together.
    pub exits: BTreeMap<String, u64>,
    /// Sum of `exits`.
    pub exits_total: u64,
}

/// One vCPU.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct VcpuFacts {
    /// Index, which is also the APIC id.
    pub id: u8,
    /// `running` or `stopped`.
    pub state: String,
    /// Exits to user space by reason.
    pub exits: BTreeMap<String, u64>,
    /// Every VM exit KVM counted for this vCPU, those it handled itself included (KVM_GET_STATS_FD); absent on old kernels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kvm_exits_total: Option<u64>,
    /// The last exit to user space, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_exit: Option<String>,
}

/// Guest memory.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct MemoryFacts {
    /// Configured guest RAM.
    pub size_bytes: u64,
    /// `anonymous`, `memfd` or `hugetlb memfd`: the latter two when another process serves a device.
    #[serde(default)]
    pub backing: String,
    /// What that backing costs and what mends it, when it has no huge pages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backing_cost: Option<String>,
    /// Guest RAM that the pod holds now: touched, and not given back.
    pub resident_bytes: u64,
    /// The part of it that is backed by huge pages.
    pub huge_bytes: u64,
    /// `huge_bytes / resident_bytes`, 0 to 1.
    pub huge_share: f64,
    /// Resident memory of the whole process that is not guest RAM.
    pub overhead_bytes: u64,
    /// The balloon, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balloon: Option<BalloonFacts>,
}

/// Guest memory that the host has back, and what the guest says of the rest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonFacts {
    /// RAM the guest should do with.
    pub target_bytes: u64,
    /// What is in the balloon, by the driver's word. `size_bytes - target_bytes` when it has come to the target.
    pub balloon_bytes: u64,
    /// Free memory the guest reported and the host took, all reports together.
    pub reported_bytes: u64,
    /// The guest's own numbers; absent until its driver sent some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<GuestMemoryFacts>,
}

/// Memory as the guest sees it. Whoever asks gets the last answer, and with that has asked for another.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestMemoryFacts {
    /// How old the answer is.
    pub age_ms: u64,
    /// `free_bytes`, `available_bytes`, `total_bytes`, `cached_bytes`, `major_faults`, …: what the driver knows.
    #[serde(flatten)]
    pub values: BTreeMap<String, u64>,
}

/// One device.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct DeviceFacts {
    /// What it is, for example `virtio-blk`.
    pub kind: String,
    /// Its PCI address (`00:02.0`) or I/O port range.
    pub address: String,
    /// What is behind it on the host, for example a disk's path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// `inactive`, `active` or `needs-reset`; a watchdog is active while it counts down.
    pub state: String,
    /// Accesses to its registers that exited to user space.
    pub trapped_reads: u64,
    /// The same for writes; a queue notification taken by ioeventfd is not among them.
    pub trapped_writes: u64,
    /// Device-specific counters (`reads`, `writes`, `bytes_read`, `interrupts`, …).
    pub counters: BTreeMap<String, u64>,
}

/// Which KVM is underneath.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct HostBackend {
    /// `kvm_intel`, `kvm_amd`, another module's name, or `unknown`.
    pub kvm_module: String,
    /// `GenuineIntel`, `AuthenticAMD`, ….
    pub cpu_vendor: String,
    /// Whether the CPU offers VT-x or AMD-V to this machine.
    pub hardware_virtualization: bool,
    /// The hypervisor under this machine (`KVM`, `Hyper-V`, …), if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hypervisor: Option<String>,
}
