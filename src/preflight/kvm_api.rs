//! What the opened `/dev/kvm` answers, up to running a guest.

use super::finding::{CheckId, Finding, Findings, Layer};
use super::guest_mode::GuestMode;
use super::host::{Host, KvmAnswers};
use super::text::{errno_name, printable};

/// The only version there ever was (KVM API §4.1).
const API_VERSION: i32 = 12;

/// A capability, asked with KVM_CHECK_EXTENSION (KVM API §4.4).
pub(super) struct Capability {
    /// Without `KVM_CAP_`.
    pub(super) name: &'static str,
    pub(super) number: u32,
    /// What is missing without it; required when it has no such words.
    without: Option<&'static str>,
}

const fn required(name: &'static str, number: u32) -> Capability {
    Capability { name, number, without: None }
}

const fn useful(name: &'static str, number: u32, without: &'static str) -> Capability {
    Capability { name, number, without: Some(without) }
}

/// What Nestling's machine is built from.
pub(super) const CAPABILITIES: &[Capability] = &[
    required("USER_MEMORY", kvm_bindings::KVM_CAP_USER_MEMORY),
    required("SET_TSS_ADDR", kvm_bindings::KVM_CAP_SET_TSS_ADDR),
    required("EXT_CPUID", kvm_bindings::KVM_CAP_EXT_CPUID),
    required("IRQCHIP", kvm_bindings::KVM_CAP_IRQCHIP),
    required("IRQ_ROUTING", kvm_bindings::KVM_CAP_IRQ_ROUTING),
    required("IRQFD", kvm_bindings::KVM_CAP_IRQFD),
    required("IOEVENTFD", kvm_bindings::KVM_CAP_IOEVENTFD),
    required("SIGNAL_MSI", kvm_bindings::KVM_CAP_SIGNAL_MSI),
    required("MP_STATE", kvm_bindings::KVM_CAP_MP_STATE),
    required("VCPU_EVENTS", kvm_bindings::KVM_CAP_VCPU_EVENTS),
    required("IMMEDIATE_EXIT", kvm_bindings::KVM_CAP_IMMEDIATE_EXIT),
    useful("READONLY_MEM", kvm_bindings::KVM_CAP_READONLY_MEM, "reads of device registers are exits"),
    useful(
        "IOEVENTFD_ANY_LENGTH",
        kvm_bindings::KVM_CAP_IOEVENTFD_ANY_LENGTH,
        "a queue notification takes KVM's slow path",
    ),
    useful(
        "TSC_DEADLINE_TIMER",
        kvm_bindings::KVM_CAP_TSC_DEADLINE_TIMER,
        "the guest's timer is the slower LAPIC counter",
    ),
    useful("ADJUST_CLOCK", kvm_bindings::KVM_CAP_ADJUST_CLOCK, "kvmclock cannot be set after a pause"),
    useful("KVMCLOCK_CTRL", kvm_bindings::KVM_CAP_KVMCLOCK_CTRL, "the guest's watchdog fires after a pause"),
    useful("XSAVE", kvm_bindings::KVM_CAP_XSAVE, "vector registers cannot be saved"),
    useful("XCRS", kvm_bindings::KVM_CAP_XCRS, "vector registers cannot be saved"),
    useful("X2APIC_API", kvm_bindings::KVM_CAP_X2APIC_API, "APIC ids above 255 are not to be had"),
    useful(
        "BINARY_STATS_FD",
        kvm_bindings::KVM_CAP_BINARY_STATS_FD,
        "exits that KVM handles itself are not counted",
    ),
];

/// Judges what KVM answers, unless an earlier finding says that it cannot be asked.
pub(super) fn check(host: &dyn Host, opened: Result<(), CheckId>, findings: &mut Findings) {
    if let Err(cause) = opened {
        findings.skip(CheckId::KvmApiVersion, Layer::KvmApi, cause);
        findings.skip(CheckId::KvmCapabilities, Layer::KvmApi, cause);
        findings.skip(CheckId::KvmGuestMode, Layer::GuestMode, cause);
        return;
    }
    let answers = host.kvm();
    findings.add(api_version(answers.api_version));
    if answers.api_version == API_VERSION {
        findings.add(capabilities(&answers));
        findings.add(guest_mode(&answers.guest_mode));
    } else {
        findings.skip(CheckId::KvmCapabilities, Layer::KvmApi, CheckId::KvmApiVersion);
        findings.skip(CheckId::KvmGuestMode, Layer::GuestMode, CheckId::KvmApiVersion);
    }
}

fn api_version(version: i32) -> Finding {
    let id = CheckId::KvmApiVersion;
    let saw = format!("KVM_GET_API_VERSION: {version}");
    match version {
        API_VERSION => Finding::ok(id, Layer::KvmApi, saw),
        ..0 => Finding::error(id, Layer::KvmApi, saw)
            .means(
                "the device opened, but the question was refused: a system call filter, or not KVM \
                behind the device",
            )
            .fix(
                "in the pod spec: `securityContext: {seccompProfile: {type: RuntimeDefault}}` allows \
                ioctl; a profile of your own must, too",
            ),
        _ => Finding::error(id, Layer::KvmApi, saw)
            .means(format!("not the KVM that Linux has had since 2.6.22, which says {API_VERSION}"))
            .fix("use a node with Linux' own KVM"),
    }
}

fn capabilities(answers: &KvmAnswers) -> Finding {
    let id = CheckId::KvmCapabilities;
    let absent = |c: &&Capability| answers.capabilities.get(c.name).copied().unwrap_or(0) <= 0;
    let missing: Vec<&Capability> = CAPABILITIES.iter().filter(absent).collect();
    let fatal: Vec<&str> = missing.iter().filter(|c| c.without.is_none()).map(|c| c.name).collect();
    let losses: Vec<String> =
        missing.iter().filter_map(|c| c.without.map(|without| format!("{}: {without}", c.name))).collect();
    let count = CAPABILITIES.len();
    if !fatal.is_empty() {
        return Finding::error(id, Layer::KvmApi, format!("KVM_CHECK_EXTENSION: no {}", fatal.join(", ")))
            .means("Nestling's machine needs every one of them")
            .fix("use a node with a newer kernel, or with Linux' own KVM");
    }
    if losses.is_empty() {
        return Finding::ok(id, Layer::KvmApi, format!("all {count} that were asked for"));
    }
    let names: Vec<&str> = missing.iter().map(|c| c.name).collect();
    Finding::warning(
        id,
        Layer::KvmApi,
        format!("{} of {count}; no {}", count - missing.len(), names.join(", ")),
    )
    .means(losses.join("; "))
    .fix("use a node with a newer kernel")
}

fn guest_mode(outcome: &GuestMode) -> Finding {
    let id = CheckId::KvmGuestMode;
    let error = |saw: String| Finding::error(id, Layer::GuestMode, saw);
    match outcome {
        GuestMode::Ran { value } => Finding::ok(
            id,
            Layer::GuestMode,
            format!("a test guest (1 vCPU, 1 page) computed {value:#x} and it arrived by KVM_EXIT_IO"),
        ),
        GuestMode::WrongValue { value, expected } => error(format!(
            "the test guest said {value:#x} instead \
            of {expected:#x}"
        ))
        .means("instructions run wrong in guest mode; nothing in a VM can be trusted here")
        .fix("use another node, and report this one"),
        GuestMode::CallFailed { call, errno } => call_failed(error, call, *errno),
        GuestMode::EntryRefused { reason } => error(format!(
            "KVM_EXIT_FAIL_ENTRY, hardware reason \
            {reason:#x}"
        ))
        .means(
            "the CPU (or the hypervisor below) refused to enter guest mode; 0x80000021 is an \
                invalid guest state, 0x7 an entry with an unsupported control",
        )
        .fix(
            "on the node: dmesg | grep -i kvm; if APICv is named: modprobe -r kvm_intel && modprobe \
                kvm_intel enable_apicv=0",
        ),
        GuestMode::InternalError { suberror } => error(format!(
            "KVM_EXIT_INTERNAL_ERROR, suberror \
            {suberror}"
        ))
        .means(
            "KVM could not run the test guest; suberror 1 is an instruction its emulator does not \
                know",
        )
        .fix("on the node: dmesg | grep -i kvm; try a newer node kernel"),
        GuestMode::UnexpectedExit { exit } => error(format!("the test guest ended with {}", printable(exit)))
            .means("guest mode does something these few instructions cannot cause")
            .fix("use another node, and report this one with: nestling preflight --record DIR"),
        GuestMode::Hung { seconds } => error(format!("the test guest did not answer within {seconds} s"))
            .means("guest mode is entered and never left, or the node is stalled")
            .fix("look at the node's load and dmesg; use another node"),
    }
}

fn call_failed(error: impl Fn(String) -> Finding, call: &str, errno: i32) -> Finding {
    let finding = error(format!("{}: {}", printable(call), errno_name(errno)));
    match errno {
        libc::EBUSY => finding
            .means("another hypervisor (VirtualBox, VMware) holds the CPU's virtualization")
            .fix("stop the other hypervisor on the node: lsmod | grep -e vboxdrv -e vmmon"),
        libc::ENOMEM => finding
            .means("no memory for a VM: the pod's limit is reached, or the node's")
            .fix("raise `resources.limits.memory` of the pod"),
        libc::EPERM | libc::EACCES => finding
            .means("a system call filter or a security module refuses what a VM needs")
            .fix("`securityContext: {privileged: true}`, or a seccomp profile that allows KVM's ioctls"),
        libc::EIO | libc::EOPNOTSUPP => finding
            .means("KVM could not switch the CPU's virtualization on")
            .fix("on the node: dmesg | grep -i kvm"),
        _ => finding.means("a VM cannot be made on this node").fix("on the node: dmesg | grep -i kvm"),
    }
}
