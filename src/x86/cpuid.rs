//! What the guest's CPUs say about themselves: from KVM's table of what this host supports to one vCPU's table.
//!
//! The guest sees one socket with as many cores as vCPUs and one thread each, APIC ids 0, 1, 2, … Everything KVM reports
//! is kept, except what costs exits without use here (performance counters), what would be untrue (the host's own
//! topology) and what nested guests do not get (VMX, SVM: a third level of guests is not offered).

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};

mod topology;

/// Leaf 1 ECX (SDM Vol. 2A, CPUID, table 3-10).
const MONITOR: u32 = 1 << 3;
const VMX: u32 = 1 << 5;
const PDCM: u32 = 1 << 15;
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1 ECX: x2APIC mode.
const X2APIC: u32 = 1 << 21;
/// Leaf 1 EDX: debug store, of the performance counters.
const DEBUG_STORE: u32 = 1 << 21;
/// Leaf 8000_0001h ECX (AMD APM Vol. 3, E.4.2).
const SVM: u32 = 1 << 2;
const AMD_PERFCTR_CORE: u32 = 1 << 23;

/// The leaves KVM itself defines (Documentation/virt/kvm/x86/cpuid.rst).
const KVM_SIGNATURE_LEAF: u32 = 0x4000_0000;
const KVM_FEATURES_LEAF: u32 = 0x4000_0001;
/// TSC and local APIC timer frequency in kHz, a convention several hypervisors share.
const TIMING_LEAF: u32 = 0x4000_0010;
/// KVM's virtual local APIC timer runs at 1 GHz (APIC_BUS_CYCLE_NS of 1).
const KVM_APIC_BUS_KHZ: u32 = 1_000_000;
/// KVM_FEATURE_PV_UNHALT, PV_SEND_IPI, PV_SCHED_YIELD and HC_MAP_GPA_RANGE: the features that make a guest use `vmcall`.
const HYPERCALL_FEATURES: u32 = (1 << 7) | (1 << 11) | (1 << 13) | (1 << 16);

/// What a KVM backend gets wrong and a guest must therefore not be offered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Quirks {
    /// `vmcall` in the guest's kernel mode does not return: hide every KVM feature that uses it (pv-unhalt, pv-ipi,
    /// sched-yield, map-gpa-range).
    pub no_hypercalls: bool,
}

/// What one vCPU's table depends on besides the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VcpuFacts {
    /// Index of the vCPU, which is its APIC id: 0 to `cpus` - 1.
    pub id: u8,
    /// Number of vCPUs, at least 1.
    pub cpus: u8,
    /// `KVM_CAP_TSC_DEADLINE_TIMER` is there, which alone decides; the bit in KVM's table does not (KVM API §4.46).
    pub tsc_deadline: bool,
    /// The guest's TSC frequency in kHz (`KVM_GET_TSC_KHZ`), if known.
    pub tsc_khz: Option<u32>,
    /// What this backend gets wrong.
    pub quirks: Quirks,
}

/// Turns KVM's table of supported features (`KVM_GET_SUPPORTED_CPUID`) into the one to set on a vCPU
/// (`KVM_SET_CPUID2`), of at most 256 entries.
///
/// A backend may rewrite the table it is given: read it back where a bit matters.
#[must_use]
pub fn for_vcpu(supported: &[kvm_cpuid_entry2], vcpu: &VcpuFacts) -> Vec<kvm_cpuid_entry2> {
    let mut table = supported.to_vec();
    for entry in &mut table {
        adjust(entry, vcpu);
    }
    topology::describe(&mut table, vcpu);
    if let Some(tsc_khz) = vcpu.tsc_khz {
        add_timing_leaf(&mut table, tsc_khz);
    }
    table.truncate(KVM_MAX_CPUID_ENTRIES);
    table
}

/// Changes what a single entry says, apart from topology.
fn adjust(entry: &mut kvm_cpuid_entry2, vcpu: &VcpuFacts) {
    match entry.function {
        1 => {
            entry.ecx |= HYPERVISOR | X2APIC;
            entry.ecx &= !(VMX | MONITOR | PDCM | TSC_DEADLINE);
            if vcpu.tsc_deadline {
                entry.ecx |= TSC_DEADLINE;
            }
            entry.edx &= !DEBUG_STORE;
        }
        // MONITOR/MWAIT: the guest idles by HLT, which KVM handles without leaving the kernel.
        5 => clear(entry),
        // Performance counters: probing and using them is an exit per MSR access, each a round trip through two
        // hypervisors, and no guest here is there to be profiled.
        0xa | 0x23 | 0x8000_0022 => clear(entry),
        // TSC and core frequency: a guest computes with these numbers, so it gets them complete or not at all.
        0x15 if entry.eax == 0 || entry.ebx == 0 || entry.ecx == 0 => clear(entry),
        0x16 if entry.eax == 0 => clear(entry),
        KVM_FEATURES_LEAF if vcpu.quirks.no_hypercalls => entry.eax &= !HYPERCALL_FEATURES,
        0x8000_0001 => entry.ecx &= !(SVM | AMD_PERFCTR_CORE),
        0x8000_000a => clear(entry),
        // AMD's newer topology leaf would contradict the ones described here; without it kernels use those.
        0x8000_0026 => clear(entry),
        _ => {}
    }
}

fn clear(entry: &mut kvm_cpuid_entry2) {
    (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
}

/// Tells the TSC and timer frequency to guests that ask this leaf, where KVM's own leaves are there to extend.
fn add_timing_leaf(table: &mut Vec<kvm_cpuid_entry2>, tsc_khz: u32) {
    let Some(signature) = table.iter_mut().find(|entry| entry.function == KVM_SIGNATURE_LEAF) else { return };
    signature.eax = signature.eax.max(TIMING_LEAF);
    table.retain(|entry| entry.function != TIMING_LEAF);
    table.push(kvm_cpuid_entry2 {
        function: TIMING_LEAF,
        eax: tsc_khz,
        ebx: KVM_APIC_BUS_KHZ,
        ..Default::default()
    });
}

/// An entry for one subleaf of `function`.
fn subleaf(function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
    let flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
    kvm_cpuid_entry2 { function, index, flags, eax, ebx, ecx, edx, ..Default::default() }
}

#[cfg(test)]
mod tests;
