//! What is under this machine: a hypervisor, a cloud, or nothing.

use super::finding::{CheckId, Finding, Findings, Layer};
use super::host::{CpuidLeaves, Host};
use super::text::printable_bytes;

/// The firmware's own words (SMBIOS), readable without privileges.
const DMI_VENDOR: &str = "/sys/class/dmi/id/sys_vendor";
const DMI_PRODUCT: &str = "/sys/class/dmi/id/product_name";

/// A cloud that needs words of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cloud {
    Google,
    Amazon,
}

/// What is under this machine.
#[derive(Debug, Clone, Default)]
pub(super) struct Platform {
    /// The hypervisor's name; `None` when nothing says that there is one.
    pub(super) hypervisor: Option<String>,
    pub(super) cloud: Option<Cloud>,
    /// Everything that was seen, for the finding.
    saw: String,
}

/// Looks at CPUID, the kernel's `hypervisor` flag and the firmware's tables.
pub(super) fn look(host: &dyn Host, cpuid: &[CpuidLeaves], kernel_flag: bool) -> Platform {
    let dmi = |path| host.read(path).map(|content| printable_bytes(&content)).unwrap_or_default();
    let (vendor, product) = (dmi(DMI_VENDOR), dmi(DMI_PRODUCT));
    let signature = cpuid.first().and_then(CpuidLeaves::hypervisor_signature);
    let flagged = kernel_flag || cpuid.first().is_some_and(CpuidLeaves::hypervisor);
    let hypervisor = match &signature {
        Some(signature) => Some(name(signature)),
        None => flagged.then(|| "unknown".to_owned()),
    };
    let cloud = match (vendor.as_str(), product.as_str()) {
        ("Google", _) | (_, "Google Compute Engine") => Some(Cloud::Google),
        ("Amazon EC2", _) => Some(Cloud::Amazon),
        _ => None,
    };
    let saw = [
        signature.map(|s| format!("CPUID leaf 0x40000000: {s:?}")),
        Some(if flagged { "hypervisor flag set" } else { "no hypervisor flag" }.to_owned()),
        (!vendor.is_empty()).then(|| format!("{DMI_VENDOR}: {vendor}")),
        (!product.is_empty()).then(|| format!("{DMI_PRODUCT}: {product}")),
    ];
    Platform { hypervisor, cloud, saw: saw.into_iter().flatten().collect::<Vec<_>>().join("; ") }
}

/// Adds the finding. What has to be mended here is said where it is missed: at the CPU.
pub(super) fn tell(platform: &Platform, findings: &mut Findings) {
    let means = match (&platform.hypervisor, platform.cloud) {
        (Some(_), Some(Cloud::Google)) => "a Google Compute Engine VM: a guest here is a nested one",
        (Some(_), Some(Cloud::Amazon)) => "an Amazon EC2 instance: a guest here is a nested one",
        (Some(_), None) => {
            "this machine is itself a VM: a guest here is a nested one, and each of its exits costs more"
        }
        (None, _) => "no hypervisor shows itself: a guest here is not nested",
    };
    let saw = match &platform.hypervisor {
        Some(name) => format!("{name} ({})", platform.saw),
        None => format!("none ({})", platform.saw),
    };
    findings.add(Finding::info(CheckId::Hypervisor, Layer::Hypervisor, saw).means(means));
}

/// The field's own name for a CPUID signature.
fn name(signature: &str) -> String {
    match signature {
        "KVMKVMKVM" => "KVM",
        "Microsoft Hv" => "Hyper-V",
        "VMwareVMware" => "VMware",
        "XenVMMXenVMM" => "Xen",
        "VBoxVBoxVBox" => "VirtualBox",
        "TCGTCGTCGTCG" => "QEMU TCG",
        "bhyve bhyve" => "bhyve",
        "ACRNACRNACRN" => "ACRN",
        "" => "unknown",
        other => other,
    }
    .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_have_names_and_strangers_keep_theirs() {
        assert_eq!(name("KVMKVMKVM"), "KVM");
        assert_eq!(name("Microsoft Hv"), "Hyper-V");
        assert_eq!(name("SomethingNew"), "SomethingNew");
    }
}
