//! The model-specific registers a vCPU starts with, where KVM's own start value is not the one a guest wants.
//!
//! What is deliberately not here: the SYSENTER and SYSCALL registers and the TSC, because a new vCPU has them at zero
//! and KVM keeps the TSCs of vCPUs created together in step; IA32_ARCH_CAPABILITIES (0x10a), because KVM fills it with
//! what the host can promise and some backends refuse to have it written.

use kvm_bindings::kvm_msr_entry;

/// IA32_MISC_ENABLE (SDM Vol. 4 table 2-2).
const IA32_MISC_ENABLE: u32 = 0x1a0;
/// `rep movs` and `rep stos` are fast. Without this bit Linux drops X86_FEATURE_REP_GOOD and ERMS and copies word by word.
const MISC_ENABLE_FAST_STRING: u64 = 1;
/// No branch trace store and no precise event sampling: the CPUID table shows no performance counters either.
const MISC_ENABLE_NO_BTS_NO_PEBS: u64 = (1 << 11) | (1 << 12);
/// IA32_MTRR_DEF_TYPE (SDM Vol. 3A §11.11.2.1).
const IA32_MTRR_DEF_TYPE: u32 = 0x2ff;
/// MTRRs on, everything write-back. With MTRRs off Linux takes it that the firmware disabled them and gives up PAT.
const MTRR_ENABLED_WRITE_BACK: u64 = (1 << 11) | 6;

/// One register to set on every vCPU before it first runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InitialMsr {
    /// Register index as `rdmsr` takes it.
    pub index: u32,
    /// The value.
    pub value: u64,
    /// Whether the guest is broken without it. A backend that refuses an optional one is no error: the guest still
    /// runs, only less well.
    pub required: bool,
}

impl InitialMsr {
    /// The register in the form `KVM_SET_MSRS` takes.
    #[must_use]
    pub fn to_kvm(self) -> kvm_msr_entry {
        kvm_msr_entry { index: self.index, data: self.value, ..Default::default() }
    }
}

/// The registers to set, in order. Set them one `KVM_SET_MSRS` each: the ioctl stops at the first one it refuses.
#[must_use]
pub fn initial() -> &'static [InitialMsr] {
    &[
        InitialMsr {
            index: IA32_MISC_ENABLE,
            value: MISC_ENABLE_FAST_STRING | MISC_ENABLE_NO_BTS_NO_PEBS,
            required: false,
        },
        InitialMsr { index: IA32_MTRR_DEF_TYPE, value: MTRR_ENABLED_WRITE_BACK, required: false },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_write_back_and_nothing_that_a_backend_refuses_is_required() {
        let mtrr = initial().iter().find(|msr| msr.index == 0x2ff).unwrap();
        assert_eq!(mtrr.to_kvm().data, 0x806);
        assert!(initial().iter().all(|msr| msr.index != 0x10a && !msr.required));
    }
}
