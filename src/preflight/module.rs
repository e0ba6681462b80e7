//! The KVM module: which one is there, and did it start?

use super::cpu::{CpuFacts, Extension};
use super::finding::{CheckId, Finding, Findings, Layer};
use super::host::{Device, Host};

const MODULES: &str = "/sys/module";
/// Lists `kvm` with its minor number once a KVM module has started.
const MISC: &str = "/proc/misc";
const ID: CheckId = CheckId::KvmModule;

/// What the later checks need to know.
#[derive(Debug, Clone, Default)]
pub(super) struct ModuleFacts {
    /// The module that drives `/dev/kvm`, as far as /sys shows one.
    pub(super) name: Option<String>,
    /// Whether the kernel has KVM registered as a device; `None` when it does not say.
    pub(super) registered: Option<bool>,
}

/// Judges which module drives `device`, which is `/dev/kvm`.
pub(super) fn check(
    host: &dyn Host,
    cpu: &CpuFacts,
    device: &Device,
    findings: &mut Findings,
) -> ModuleFacts {
    let listing = host.list(MODULES, "kvm");
    let readable = listing.is_ok();
    let present: Vec<String> =
        listing.unwrap_or_default().into_iter().filter(|name| is_kvm_module(name)).collect();
    let facts = ModuleFacts { name: choose(&present, cpu.extension), registered: registered(host, device) };
    match (&facts.name, cpu.extension) {
        (Some(name), _) if is_hardware(name) => hardware_module(name, &facts, cpu, findings),
        (Some(name), extension) => findings.add(other_backend(name, extension)),
        (None, _) if facts.registered == Some(true) || !readable => {
            findings.add(Finding::info(ID, Layer::Module, unknown(readable, &facts)).means(
                "which module drives /dev/kvm cannot be told from here; what the device itself answers \
                    counts",
            ));
        }
        (None, Some(extension)) => findings.add(missing(extension)),
        (None, None) => {
            let finding = Finding::info(ID, Layer::Module, format!("no kvm_* in {MODULES}"));
            findings.add_consequence(
                CheckId::CpuVmx,
                finding.means("no KVM module starts on a CPU without vmx or svm"),
            );
        }
    }
    facts
}

/// The kernel's names of modules are words; anything else under that directory is not repeated to a terminal.
fn is_kvm_module(name: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    name.starts_with("kvm_") && name.bytes().all(is_word)
}

fn is_hardware(name: &str) -> bool {
    matches!(name, "kvm_intel" | "kvm_amd")
}

/// The module of this CPU if it is there, otherwise one that needs no hardware, otherwise any.
fn choose(present: &[String], extension: Option<Extension>) -> Option<String> {
    let wanted = extension.map(Extension::module);
    let of_this_cpu = present.iter().find(|name| Some(name.as_str()) == wanted);
    of_this_cpu
        .or_else(|| present.iter().find(|name| !is_hardware(name)))
        .or_else(|| present.first())
        .cloned()
}

/// Whether the kernel has KVM: a device that opens proves it, otherwise `/proc/misc` tells with a line `232 kvm`.
fn registered(host: &dyn Host, device: &Device) -> Option<bool> {
    if matches!(device, Device::Opened { node } if node.is_kvm()) {
        return Some(true);
    }
    let misc = host.read(MISC).ok()?;
    let text = String::from_utf8_lossy(&misc);
    let mut names = Vec::new();
    for line in text.lines() {
        let (number, name) = line.trim().split_once(' ')?;
        number.parse::<u32>().ok()?;
        names.push(name.trim());
    }
    // A sandbox that shows an empty file says nothing.
    (!names.is_empty()).then(|| names.contains(&"kvm"))
}

fn unknown(readable: bool, facts: &ModuleFacts) -> String {
    match (readable, facts.registered) {
        (false, Some(true)) => format!("{MODULES} cannot be read, but the kernel has KVM"),
        (false, _) => format!("{MODULES} cannot be read"),
        (true, _) => format!("no kvm_* in {MODULES}, yet the kernel has KVM"),
    }
}

fn missing(extension: Extension) -> Finding {
    let (flag, module) = (extension.flag(), extension.module());
    Finding::error(ID, Layer::Module, format!("no {module} in {MODULES}, though the CPU has {flag}"))
        .means("the kernel of this node has not loaded KVM, so there is no /dev/kvm on it")
        .fix(format!(
            "on the node (or in a privileged init container with /lib/modules of the node): modprobe {module}"
        ))
}

fn hardware_module(name: &str, facts: &ModuleFacts, cpu: &CpuFacts, findings: &mut Findings) {
    let path = format!("{MODULES}/{name}");
    if facts.registered != Some(false) {
        findings.add(Finding::ok(ID, Layer::Module, path));
        return;
    }
    let finding = Finding::error(
        ID,
        Layer::Module,
        format!("{path} is there, but {MISC} has no kvm: it did not start"),
    );
    if cpu.extension.is_none() {
        findings.add_consequence(
            CheckId::CpuVmx,
            finding.means(format!("{name} found no vmx or svm to work with")),
        );
    } else {
        findings.add(
            finding
                .means(
                    "the module refused this machine: usually the firmware switched virtualization off \
                    (\"kvm: disabled by bios\")",
                )
                .fix("dmesg | grep -i kvm; switch on VT-x or SVM in the firmware setup, or use another node"),
        );
    }
}

fn other_backend(name: &str, extension: Option<Extension>) -> Finding {
    let path = format!("{MODULES}/{name}");
    match extension {
        None => Finding::info(ID, Layer::Module, path).means(format!(
            "/dev/kvm is driven by {name}, a KVM without hardware virtualization: small guests run, most \
                stock kernels do not"
        )),
        Some(extension) => {
            let module = extension.module();
            Finding::error(
                ID,
                Layer::Module,
                format!("{path}, and no {module}, though the CPU has {}", extension.flag()),
            )
            .means(format!("/dev/kvm is driven by {name}, which does not use the CPU's virtualization"))
            .fix(format!("on the node: modprobe -r {name} && modprobe {module}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_no_module_has_is_left_out() {
        assert!(is_kvm_module("kvm_intel") && is_kvm_module("kvm_pvm2"));
        for name in ["kvm", "kvm_\u{7f}", "kvm_\n", "kvm_ä", "kvm_/x"] {
            assert!(!is_kvm_module(name), "{name:?}");
        }
    }

    fn chosen(present: &[&str], extension: Option<Extension>) -> Option<String> {
        choose(&present.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>(), extension)
    }

    #[test]
    fn the_module_of_the_cpu_comes_first() {
        assert_eq!(chosen(&["kvm_amd", "kvm_intel"], Some(Extension::Vmx)).as_deref(), Some("kvm_intel"));
        assert_eq!(chosen(&["kvm_amd", "kvm_intel"], Some(Extension::Svm)).as_deref(), Some("kvm_amd"));
    }

    #[test]
    fn without_hardware_a_module_that_needs_none_comes_first() {
        assert_eq!(chosen(&["kvm_intel", "kvm_pvm"], None).as_deref(), Some("kvm_pvm"));
        assert_eq!(chosen(&["kvm_intel"], None).as_deref(), Some("kvm_intel"));
        assert_eq!(chosen(&[], None), None);
    }
}
