//! The CPU: does it offer hardware virtualization, and do the kernel and the CPU agree on that?

use super::cloud;
use super::cpuinfo::{self, Cpu};
use super::finding::{CheckId, Finding, Findings, Layer};
use super::host::{CpuidLeaves, Host};
use super::platform::{self, Platform};
use super::text::errno_name;

const CPUINFO: &str = "/proc/cpuinfo";

/// A hardware virtualization extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extension {
    /// Intel VT-x.
    Vmx,
    /// AMD-V.
    Svm,
}

impl Extension {
    /// The flag's name in `/proc/cpuinfo`.
    pub(super) fn flag(self) -> &'static str {
        match self {
            Self::Vmx => "vmx",
            Self::Svm => "svm",
        }
    }

    /// The module that uses it.
    pub(super) fn module(self) -> &'static str {
        match self {
            Self::Vmx => "kvm_intel",
            Self::Svm => "kvm_amd",
        }
    }

    fn of_cpuinfo(cpu: &Cpu) -> Option<Self> {
        [Self::Vmx, Self::Svm].into_iter().find(|extension| cpu.has(extension.flag()))
    }

    fn of_cpuid(leaves: &CpuidLeaves) -> Option<Self> {
        match (leaves.vmx(), leaves.svm()) {
            (true, _) => Some(Self::Vmx),
            (false, true) => Some(Self::Svm),
            (false, false) => None,
        }
    }
}

/// What the later checks need to know.
#[derive(Debug, Clone)]
pub(super) struct CpuFacts {
    pub(super) vendor: String,
    /// The extension KVM can use; `None` when there is none, or the kernel switched it off.
    pub(super) extension: Option<Extension>,
    /// Whether the CPU lists EPT or NPT; `None` when it does not say.
    pub(super) two_stage_paging: Option<bool>,
    pub(super) hypervisor: Option<String>,
}

/// Both sources, side by side.
struct Sources {
    cpuinfo: Vec<Cpu>,
    cpuid: Vec<CpuidLeaves>,
}

impl Sources {
    fn vendor(&self) -> String {
        let cpuinfo = self.cpuinfo.first().map(|cpu| cpu.vendor.clone()).filter(|vendor| !vendor.is_empty());
        let cpuid = || self.cpuid.first().and_then(CpuidLeaves::vendor).filter(|vendor| !vendor.is_empty());
        cpuinfo.or_else(cpuid).unwrap_or_else(|| "unknown".to_owned())
    }

    fn of_kernel(&self) -> Option<Extension> {
        self.cpuinfo.first().and_then(Extension::of_cpuinfo)
    }

    fn of_cpuid(&self) -> Option<Extension> {
        self.cpuid.first().and_then(Extension::of_cpuid)
    }

    /// The kernel's word counts, because KVM goes by it; CPUID's only where there is no kernel's word.
    fn extension(&self) -> Option<Extension> {
        if self.cpuinfo.is_empty() { self.of_cpuid() } else { self.of_kernel() }
    }

    fn two_stage_paging(&self) -> Option<bool> {
        let cpu = self.cpuinfo.first()?;
        match self.extension()? {
            Extension::Vmx => (cpu.lists_vmx_details() || cpu.has("ept")).then(|| cpu.has("ept")),
            Extension::Svm => Some(cpu.has("npt")),
        }
    }
}

/// Judges the CPU, and tells what is underneath.
pub(super) fn check(host: &dyn Host, findings: &mut Findings) -> CpuFacts {
    let content = host.read(CPUINFO);
    let sources =
        Sources { cpuinfo: content.as_deref().map(cpuinfo::parse).unwrap_or_default(), cpuid: host.cpuid() };
    let kernel_flag = sources.cpuinfo.first().is_some_and(|cpu| cpu.has("hypervisor"));
    let platform = platform::look(host, &sources.cpuid, kernel_flag);

    findings.add(cpu_info(&sources, content.err()));
    findings.add(extension(&sources, &platform));
    findings.add(agreement(&sources));
    findings.add(uniformity(&sources));
    platform::tell(&platform, findings);

    CpuFacts {
        vendor: sources.vendor(),
        extension: sources.extension(),
        two_stage_paging: sources.two_stage_paging(),
        hypervisor: platform.hypervisor,
    }
}

fn cpu_info(sources: &Sources, unreadable: Option<nix::errno::Errno>) -> Finding {
    let id = CheckId::CpuInfo;
    match (sources.cpuinfo.as_slice(), unreadable) {
        ([first, ..], _) => {
            let (count, vendor) = (sources.cpuinfo.len(), sources.vendor());
            Finding::ok(id, Layer::Cpu, format!("{CPUINFO}: {count} × {vendor}, {}", first.model))
        }
        ([], Some(errno)) => {
            Finding::warning(id, Layer::Cpu, format!("{CPUINFO}: {}", errno_name(errno as i32)))
                .means("the kernel's view of the CPU is not to be had; only the CPUID instruction is asked")
                .fix("mount procfs: mount -t proc proc /proc")
        }
        ([], None) => Finding::warning(id, Layer::Cpu, format!("{CPUINFO}: no line `flags : …` in it"))
            .means("the file is not what Linux on x86 writes; only the CPUID instruction is asked")
            .fix("see what is mounted over it: findmnt /proc /proc/cpuinfo"),
    }
}

fn extension(sources: &Sources, platform: &Platform) -> Finding {
    let id = CheckId::CpuVmx;
    let source = if sources.cpuinfo.is_empty() { "CPUID" } else { CPUINFO };
    if let Some(extension) = sources.extension() {
        let name = if extension == Extension::Vmx { "Intel VT-x" } else { "AMD-V" };
        return Finding::ok(id, Layer::Cpu, format!("{} ({name}) in {source}", extension.flag()));
    }
    let vendor = sources.vendor();
    let intel = !matches!(vendor.as_str(), "AuthenticAMD" | "HygonGenuine");
    if let Some(hidden) = sources.of_cpuid() {
        let flag = hidden.flag();
        return Finding::error(
            id,
            Layer::Cpu,
            format!(
                "{flag} is in CPUID, but not in the flags of \
            {CPUINFO}"
            ),
        )
        .means(
            "the CPU has it and the kernel switched it off, so KVM will not use it: the firmware \
                locked it (dmesg says \"disabled by BIOS\"), or the kernel was booted with clearcpuid",
        )
        .fix(
            "switch on VT-x or SVM in the firmware setup, and see: dmesg | grep -i -e vmx -e svm -e \
                kvm",
        );
    }
    let wanted = if intel { "vmx" } else { "svm" };
    let below = match &platform.hypervisor {
        Some(name) => format!("the hypervisor below ({name}) does not pass {wanted} on to this machine"),
        None => format!("the CPU lacks {wanted}, or the firmware switched it off"),
    };
    Finding::error(id, Layer::Cpu, format!("neither vmx nor svm in {source} ({vendor})"))
        .means(format!("{below}; without hardware virtualization no nested VM runs at a usable speed"))
        .fix(cloud::offer_virtualization(platform, intel))
}

fn agreement(sources: &Sources) -> Finding {
    let id = CheckId::CpuFlagsAgree;
    let word = |extension: Option<Extension>| extension.map_or("neither vmx nor svm", Extension::flag);
    if sources.cpuinfo.is_empty() || sources.cpuid.is_empty() {
        return Finding::info(id, Layer::Cpu, "only one of /proc/cpuinfo and CPUID can be read");
    }
    let (kernel, cpuid) = (sources.of_kernel(), sources.of_cpuid());
    let saw = format!("{CPUINFO}: {}; CPUID: {}", word(kernel), word(cpuid));
    if kernel == cpuid {
        return Finding::ok(id, Layer::Cpu, saw);
    }
    let finding = Finding::warning(id, Layer::Cpu, saw);
    if kernel.is_none() {
        finding
            .means(
                "the CPU has the extension but the kernel switched it off; the kernel's word counts for KVM",
            )
            .fix("dmesg | grep -i -e vmx -e svm -e \"disabled by bios\"")
    } else {
        finding
            .means(
                "this process does not see the CPU that the kernel describes: CPUID is emulated or \
                filtered for it (a user-space sandbox, an emulator), or another machine's cpuinfo is \
                mounted here; the kernel's word counts",
            )
            .fix("findmnt /proc/cpuinfo; run without a sandboxing runtime class")
    }
}

fn uniformity(sources: &Sources) -> Finding {
    let id = CheckId::CpuUniform;
    let kernel: Vec<_> = sources.cpuinfo.iter().map(Extension::of_cpuinfo).collect();
    let cpuid: Vec<_> = sources.cpuid.iter().map(Extension::of_cpuid).collect();
    let odd_one = [("/proc/cpuinfo", &kernel), ("CPUID", &cpuid)].into_iter().find_map(|(source, all)| {
        all.iter().position(|one| Some(one) != all.first()).map(|odd| (source, odd))
    });
    match odd_one {
        None => {
            Finding::ok(id, Layer::Cpu, format!("CPUs that say the same: {}", kernel.len().max(cpuid.len())))
        }
        Some((source, odd)) => Finding::warning(
            id,
            Layer::Cpu,
            format!(
                "CPU {odd} of those seen in {source} differs from CPU \
                0 (vmx/svm)"
            ),
        )
        .means("KVM refuses CPUs that differ; a vCPU may fail when it moves there")
        .fix(
            "use a machine whose CPUs are all alike, or take the odd ones offline: echo 0 > \
                    /sys/devices/system/cpu/cpuN/online",
        ),
    }
}
