//! A finding: what one check saw, what it means, and what mends it.

use std::fmt;

use serde::Serialize;

/// Declares the ids once: the enum, its stable name, and the list of all of them.
macro_rules! check_ids {
    ($($variant:ident = $name:literal, $doc:literal;)*) => {
        /// The stable id of a check. Scripts may rely on the names; they are listed in `docs/preflight.md`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        pub enum CheckId {
            $(#[doc = $doc] #[serde(rename = $name)] $variant,)*
        }

        impl CheckId {
            /// Every id, in the order of the checks.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The id as it is printed, for example `kvm-open`.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

check_ids! {
    CpuInfo = "cpu-info", "`/proc/cpuinfo` can be read and says which CPU this is.";
    CpuVmx = "cpu-vmx", "The CPU offers VT-x (`vmx`) or AMD-V (`svm`).";
    CpuFlagsAgree = "cpu-flags-agree", "The kernel and the CPUID instruction say the same.";
    CpuUniform = "cpu-uniform", "Every CPU says the same.";
    Hypervisor = "hypervisor", "The hypervisor and the cloud under this machine.";
    KvmModule = "kvm-module", "The KVM module that drives `/dev/kvm`.";
    KvmEpt = "kvm-ept", "`kvm_intel.ept`: two-stage address translation in hardware.";
    KvmUnrestrictedGuest = "kvm-unrestricted-guest", "`kvm_intel.unrestricted_guest`: real mode in hardware.";
    KvmVpid = "kvm-vpid", "`kvm_intel.vpid`: TLB entries survive an exit.";
    KvmApicv = "kvm-apicv", "`kvm_intel.enable_apicv`: interrupts without exits.";
    KvmNpt = "kvm-npt", "`kvm_amd.npt`: two-stage address translation in hardware.";
    KvmNested = "kvm-nested", "`nested`: whether the guest may itself run VMs.";
    KvmIgnoreMsrs = "kvm-ignore-msrs", "`kvm.ignore_msrs`: unknown MSRs are swallowed.";
    KvmHaltPoll = "kvm-halt-poll", "`kvm.halt_poll_ns`: busy waiting on an idle guest.";
    KvmDevice = "kvm-device", "`/dev/kvm` is there and is the right device.";
    KvmOpen = "kvm-open", "This process may open `/dev/kvm`.";
    KvmApiVersion = "kvm-api-version", "KVM speaks API version 12.";
    KvmCapabilities = "kvm-capabilities", "KVM has what Nestling's machine needs.";
    KvmGuestMode = "kvm-guest-mode", "A VM and a vCPU can be made and run instructions.";
    MemoryThp = "memory-thp", "Transparent huge pages for guest RAM.";
    MemoryShmemThp = "memory-shmem-thp", "Transparent huge pages for shared (memfd) RAM.";
    MemoryHugepages = "memory-hugepages", "The hugetlb pool.";
    MemoryOvercommit = "memory-overcommit", "Whether the kernel lets RAM be reserved before it is touched.";
    NetTun = "net-tun", "`/dev/net/tun`, for guest networking by tap.";
    VhostNet = "vhost-net", "`/dev/vhost-net`.";
    VhostVsock = "vhost-vsock", "`/dev/vhost-vsock`.";
    CgroupKind = "cgroup-kind", "Which cgroup version limits this process.";
    Container = "container", "Whether this is a pod, a container or a plain machine.";
    Seccomp = "seccomp", "The system call filter of this process.";
    Capabilities = "capabilities", "The Linux capabilities of this process.";
}

impl fmt::Display for CheckId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Where in the stack a finding belongs, from the silicon upwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layer {
    /// CPU features as this machine sees them.
    Cpu,
    /// What runs underneath this machine.
    Hypervisor,
    /// The KVM module of this machine's kernel.
    Module,
    /// `/dev/kvm` as a file.
    DeviceNode,
    /// File permissions and capabilities.
    Permission,
    /// The device cgroup of the container.
    Cgroup,
    /// What the opened device answers.
    KvmApi,
    /// Running instructions in a VM.
    GuestMode,
    /// Memory and what backs it.
    Memory,
    /// Devices a guest's network or sockets may use.
    Network,
    /// The pod or container around this process.
    Container,
    /// What this process may still ask of the kernel.
    Confinement,
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpu => "cpu",
            Self::Hypervisor => "hypervisor",
            Self::Module => "module",
            Self::DeviceNode => "device-node",
            Self::Permission => "permission",
            Self::Cgroup => "cgroup",
            Self::KvmApi => "kvm-api",
            Self::GuestMode => "guest-mode",
            Self::Memory => "memory",
            Self::Network => "network",
            Self::Container => "container",
            Self::Confinement => "confinement",
        })
    }
}

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// As it should be.
    Ok,
    /// Worth knowing; nothing to mend, or nothing that can be judged.
    Info,
    /// A VM runs, but slower or with something missing.
    Warning,
    /// A VM cannot run.
    Error,
}

/// What one check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Stable id.
    pub id: CheckId,
    /// The layer it belongs to.
    pub layer: Layer,
    /// How much it matters.
    pub severity: Severity,
    /// Exactly what was observed, with its path or value. Printable, one line.
    pub saw: String,
    /// What that means for a VM.
    pub means: Option<String>,
    /// The command or manifest line that mends it.
    pub fix: Option<String>,
    /// The earlier finding this one merely follows from, or because of which the check was skipped.
    pub follows_from: Option<CheckId>,
}

impl Finding {
    pub(super) fn new(id: CheckId, layer: Layer, severity: Severity, saw: impl Into<String>) -> Self {
        Self { id, layer, severity, saw: saw.into(), means: None, fix: None, follows_from: None }
    }

    pub(super) fn ok(id: CheckId, layer: Layer, saw: impl Into<String>) -> Self {
        Self::new(id, layer, Severity::Ok, saw)
    }

    pub(super) fn info(id: CheckId, layer: Layer, saw: impl Into<String>) -> Self {
        Self::new(id, layer, Severity::Info, saw)
    }

    pub(super) fn warning(id: CheckId, layer: Layer, saw: impl Into<String>) -> Self {
        Self::new(id, layer, Severity::Warning, saw)
    }

    pub(super) fn error(id: CheckId, layer: Layer, saw: impl Into<String>) -> Self {
        Self::new(id, layer, Severity::Error, saw)
    }

    pub(super) fn means(mut self, means: impl Into<String>) -> Self {
        self.means = Some(means.into());
        self
    }

    pub(super) fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }
}

/// The findings so far, in the order of the checks.
#[derive(Debug, Default)]
pub(super) struct Findings(Vec<Finding>);

impl Findings {
    /// Adds a finding as it is.
    pub(super) fn add(&mut self, finding: Finding) {
        self.0.push(finding);
    }

    /// Adds a failure that an earlier finding explains: told, but not as an alarm of its own.
    pub(super) fn add_consequence(&mut self, cause: CheckId, finding: Finding) {
        self.0.push(Finding { severity: Severity::Info, fix: None, follows_from: Some(cause), ..finding });
    }

    /// Adds a check that could not be made because of an earlier finding.
    pub(super) fn skip(&mut self, id: CheckId, layer: Layer, cause: CheckId) {
        self.add_consequence(cause, Finding::info(id, layer, "not checked"));
    }

    /// Whether `id` was found to be an error.
    pub(super) fn failed(&self, id: CheckId) -> bool {
        self.0.iter().any(|finding| finding.id == id && finding.severity == Severity::Error)
    }

    pub(super) fn into_vec(self) -> Vec<Finding> {
        self.0
    }
}
