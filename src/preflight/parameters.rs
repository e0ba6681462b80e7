//! KVM module parameters that change what a nested VM costs.

use super::cpu::CpuFacts;
use super::finding::{CheckId, Finding, Findings, Layer, Severity};
use super::host::Host;
use super::module::ModuleFacts;
use super::text::printable_bytes;

/// One parameter, and what to say when it has the wrong value.
struct Parameter {
    id: CheckId,
    module: &'static str,
    name: &'static str,
    /// The value that is as it should be.
    good: bool,
    /// How much the other value matters.
    otherwise: Severity,
    means: &'static str,
    fix: &'static str,
}

const PARAMETERS: &[Parameter] = &[
    Parameter {
        id: CheckId::KvmEpt,
        module: "kvm_intel",
        name: "ept",
        good: true,
        otherwise: Severity::Warning,
        means: "KVM shadows the guest's page tables: every change of one is an exit, and nested exits are dear; expect several times slower",
        fix: "modprobe -r kvm_intel && modprobe kvm_intel ept=1",
    },
    Parameter {
        id: CheckId::KvmUnrestrictedGuest,
        module: "kvm_intel",
        name: "unrestricted_guest",
        good: true,
        otherwise: Severity::Warning,
        means: "code without paging runs in KVM's emulator: booting is slower, the running guest is not",
        fix: "modprobe -r kvm_intel && modprobe kvm_intel unrestricted_guest=1 (needs ept=1)",
    },
    Parameter {
        id: CheckId::KvmVpid,
        module: "kvm_intel",
        name: "vpid",
        good: true,
        otherwise: Severity::Warning,
        means: "every exit flushes the TLB, so the guest walks its page tables again after each",
        fix: "modprobe -r kvm_intel && modprobe kvm_intel vpid=1",
    },
    Parameter {
        id: CheckId::KvmApicv,
        module: "kvm_intel",
        name: "enable_apicv",
        good: true,
        otherwise: Severity::Info,
        means: "interrupts and timer writes of the guest are exits; usual on cloud VMs, nothing to mend",
        fix: "",
    },
    Parameter {
        id: CheckId::KvmNpt,
        module: "kvm_amd",
        name: "npt",
        good: true,
        otherwise: Severity::Warning,
        means: "KVM shadows the guest's page tables: every change of one is an exit; expect several times slower",
        fix: "modprobe -r kvm_amd && modprobe kvm_amd npt=1",
    },
    Parameter {
        id: CheckId::KvmNested,
        module: "*",
        name: "nested",
        good: true,
        otherwise: Severity::Info,
        means: "the guest cannot run VMs of its own; it does not need to",
        fix: "",
    },
    Parameter {
        id: CheckId::KvmIgnoreMsrs,
        module: "kvm",
        name: "ignore_msrs",
        good: false,
        otherwise: Severity::Warning,
        means: "KVM swallows the guest's accesses to unknown MSRs, so a guest's mistake shows up somewhere \
            else",
        fix: "echo N > /sys/module/kvm/parameters/ignore_msrs",
    },
];

/// Judges the parameters of the module that is there; what it has not got is not mentioned.
pub(super) fn check(host: &dyn Host, cpu: &CpuFacts, module: &ModuleFacts, findings: &mut Findings) {
    let Some(backend) = &module.name else { return };
    for parameter in PARAMETERS {
        let owner = if parameter.module == "*" { backend } else { parameter.module };
        if owner == backend || owner == "kvm" {
            let path = format!("/sys/module/{owner}/parameters/{}", parameter.name);
            if let Ok(value) = host.read(&path) {
                findings.add(parameter.judge(&path, &printable_bytes(&value), cpu));
            }
        }
    }
    halt_poll(host, findings);
}

impl Parameter {
    fn judge(&self, path: &str, value: &str, cpu: &CpuFacts) -> Finding {
        let saw = format!("{path}: {value}");
        let on = match value {
            "Y" | "y" | "1" => true,
            "N" | "n" | "0" => false,
            _ => return Finding::info(self.id, Layer::Module, saw).means("not a value this check knows"),
        };
        if on == self.good {
            return Finding::ok(self.id, Layer::Module, saw);
        }
        let finding = Finding::new(self.id, Layer::Module, self.otherwise, saw).means(self.means);
        let paging = matches!(self.id, CheckId::KvmEpt | CheckId::KvmNpt | CheckId::KvmUnrestrictedGuest);
        match self.fix {
            "" => finding,
            _ if paging && cpu.two_stage_paging == Some(false) => finding.fix(
                "the CPU does not offer it to this machine: the hypervisor below must, or use another node",
            ),
            fix => finding.fix(format!("on the node: {fix}")),
        }
    }
}

/// Polling trades the pod's CPU time for latency; neither is wrong.
fn halt_poll(host: &dyn Host, findings: &mut Findings) {
    let path = "/sys/module/kvm/parameters/halt_poll_ns";
    let Ok(value) = host.read(path) else { return };
    let value = printable_bytes(&value);
    let saw = format!("{path}: {value}");
    let finding = Finding::info(CheckId::KvmHaltPoll, Layer::Module, saw);
    findings.add(match value.parse::<u64>() {
        Ok(0) => finding.means("an idle vCPU sleeps at once"),
        Ok(ns) => finding.means(format!(
            "an idle vCPU is waited for busily, up to {} µs each time, on the pod's CPU quota",
            ns / 1000
        )),
        Err(_) => finding.means("not a number"),
    });
}
