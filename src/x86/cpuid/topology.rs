//! The topology leaves: one socket, one core per vCPU, one thread per core.

use kvm_bindings::kvm_cpuid_entry2;

use super::{VcpuFacts, subleaf};

/// Leaf 1 EDX: the "maximum number of addressable ids" in `EBX[23:16]` is valid.
const HTT: u32 = 1 << 28;
/// Leaf 8000_0001h ECX: more than one core (AMD APM Vol. 3, E.4.2); topology extensions.
const CMP_LEGACY: u32 = 1 << 1;
const TOPOLOGY_EXTENSIONS: u32 = 1 << 22;
/// Level types of leaves 0Bh and 1Fh.
const LEVEL_SMT: u32 = 1;
const LEVEL_CORE: u32 = 2;
/// Extended topology leaf, and its version 2.
const EXTENDED_TOPOLOGY: [u32; 2] = [0xb, 0x1f];

/// Rewrites every leaf of `table` that tells where this vCPU stands among the others.
pub(super) fn describe(table: &mut Vec<kvm_cpuid_entry2>, vcpu: &VcpuFacts) {
    let cpus = u32::from(vcpu.cpus.max(1));
    let id = u32::from(vcpu.id);
    let amd = is_amd(table);
    for entry in table.iter_mut() {
        match entry.function {
            1 => initial_apic_id(entry, id, cpus),
            4 if cache_type(entry) != 0 => intel_cache(entry, cpus),
            0x8000_0001 if amd => set_bit(&mut entry.ecx, CMP_LEGACY, cpus > 1),
            0x8000_0008 if amd => entry.ecx = (entry.ecx & !0xf0ff) | (core_bits(cpus) << 12) | (cpus - 1),
            0x8000_001d if cache_type(entry) != 0 => amd_cache(entry, cpus),
            // Extended APIC id; one thread per core and this core's number; one node, number 0.
            0x8000_001e => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (id, id & 0xff, 0, 0),
            _ => {}
        }
    }
    if amd && !table.iter().any(|entry| entry.function == 0x8000_001e) {
        // The leaf that TOPOEXT promises is missing, so the bit must not promise it.
        for entry in table.iter_mut().filter(|entry| entry.function == 0x8000_0001) {
            entry.ecx &= !TOPOLOGY_EXTENSIONS;
        }
    }
    extended_topology(table, id, cpus);
}

fn is_amd(table: &[kvm_cpuid_entry2]) -> bool {
    let vendor = table.iter().find(|entry| entry.function == 0).map(|leaf| [leaf.ebx, leaf.edx, leaf.ecx]);
    let bytes = |name: &[u8; 12]| {
        [0, 4, 8].map(|i| u32::from_le_bytes([name[i], name[i + 1], name[i + 2], name[i + 3]]))
    };
    vendor == Some(bytes(b"AuthenticAMD")) || vendor == Some(bytes(b"HygonGenuine"))
}

/// Bits of an APIC id that number the cores: the least n with 2ⁿ ≥ `cpus`.
fn core_bits(cpus: u32) -> u32 {
    cpus.next_power_of_two().trailing_zeros()
}

/// Number of APIC ids set aside for `cpus` cores.
fn addressable_ids(cpus: u32) -> u32 {
    1 << core_bits(cpus)
}

fn set_bit(register: &mut u32, bit: u32, on: bool) {
    *register = if on { *register | bit } else { *register & !bit };
}

/// Leaf 1 EBX: initial APIC id in 31:24, addressable ids in 23:16 (SDM Vol. 2A, CPUID).
fn initial_apic_id(entry: &mut kvm_cpuid_entry2, id: u32, cpus: u32) {
    let ids = addressable_ids(cpus).min(0xff);
    entry.ebx = (entry.ebx & 0xffff) | (ids << 16) | ((id & 0xff) << 24);
    set_bit(&mut entry.edx, HTT, cpus > 1);
}

/// `EAX[4:0]` of the cache leaves: 0 = no more caches.
fn cache_type(entry: &kvm_cpuid_entry2) -> u32 {
    entry.eax & 0x1f
}

/// `EAX[7:5]` of the cache leaves: 1, 2 or 3.
fn cache_level(entry: &kvm_cpuid_entry2) -> u32 {
    (entry.eax >> 5) & 7
}

/// Leaf 4 EAX: ids sharing this cache - 1 in 25:14, core ids in the package - 1 in 31:26.
fn intel_cache(entry: &mut kvm_cpuid_entry2, cpus: u32) {
    let sharing = if cache_level(entry) >= 3 { addressable_ids(cpus) } else { 1 };
    let cores = addressable_ids(cpus).min(64);
    entry.eax = (entry.eax & 0x3fff) | ((sharing - 1) << 14) | ((cores - 1) << 26);
}

/// Leaf 8000_001Dh EAX: threads sharing this cache - 1 in 25:14.
fn amd_cache(entry: &mut kvm_cpuid_entry2, cpus: u32) {
    let sharing = if cache_level(entry) >= 3 { cpus } else { 1 };
    entry.eax = (entry.eax & !(0xfff << 14)) | ((sharing - 1) << 14);
}

/// Leaves 0Bh and 1Fh, as far as the table's highest leaf reaches: a thread level of 1, a core level of `cpus`, the end.
fn extended_topology(table: &mut Vec<kvm_cpuid_entry2>, id: u32, cpus: u32) {
    let highest = table.iter().find(|entry| entry.function == 0).map_or(0, |entry| entry.eax);
    table.retain(|entry| !EXTENDED_TOPOLOGY.contains(&entry.function));
    for leaf in EXTENDED_TOPOLOGY.into_iter().filter(|leaf| *leaf <= highest) {
        table.push(subleaf(leaf, 0, [0, 1, LEVEL_SMT << 8, id]));
        table.push(subleaf(leaf, 1, [core_bits(cpus), cpus, (LEVEL_CORE << 8) | 1, id]));
        table.push(subleaf(leaf, 2, [0, 0, 2, id]));
    }
}
