use super::*;

const RECORDED: &str = include_str!("recorded/kvm_pvm.txt");

/// What an AMD host with the kvm_pvm backend reports (`KVM_GET_SUPPORTED_CPUID`).
fn recorded() -> Vec<kvm_cpuid_entry2> {
    RECORDED.lines().filter(|line| !line.starts_with('#')).map(parse).collect()
}

fn parse(line: &str) -> kvm_cpuid_entry2 {
    let words: Vec<u32> = line.split(' ').map(|word| u32::from_str_radix(word, 16).unwrap()).collect();
    let [function, index, flags, eax, ebx, ecx, edx] = words[..] else { panic!("bad line {line:?}") };
    kvm_cpuid_entry2 { function, index, flags, eax, ebx, ecx, edx, ..Default::default() }
}

/// What kvm_intel reports on a Haswell-like host, as far as it matters here.
fn intel() -> Vec<kvm_cpuid_entry2> {
    let leaf = |function, [eax, ebx, ecx, edx]: [u32; 4]| kvm_cpuid_entry2 {
        function,
        eax,
        ebx,
        ecx,
        edx,
        ..Default::default()
    };
    vec![
        leaf(0, [0x1f, 0x756e_6547, 0x6c65_746e, 0x4965_6e69]),
        leaf(1, [0x306c3, 0x0710_0800, VMX | MONITOR | PDCM | 0x7ef8_0000, 0xbfeb_fbff]),
        subleaf(4, 0, [0x1c00_4121, 0x01c0_003f, 0x3f, 0]),
        subleaf(4, 1, [0x1c00_4122, 0x01c0_003f, 0x3f, 0]),
        subleaf(4, 2, [0x1c00_4143, 0x01c0_003f, 0x1ff, 0]),
        subleaf(4, 3, [0x1c03_c163, 0x03c0_003f, 0x1fff, 6]),
        subleaf(4, 4, [0, 0, 0, 0]),
        leaf(5, [0x40, 0x40, 3, 0x42120]),
        leaf(0xa, [0x0730_0803, 0, 0, 0x603]),
        subleaf(0xb, 0, [1, 2, 0x100, 7]),
        subleaf(0xb, 1, [4, 8, 0x201, 7]),
        leaf(0x15, [2, 168, 0, 0]),
        leaf(0x16, [3400, 3900, 100, 0]),
        leaf(0x4000_0000, [0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d]),
        leaf(0x4000_0001, [0x0100_7efb, 0, 0, 0]),
        leaf(0x8000_0001, [0, 0, 0x21, 0x2c10_0800]),
        leaf(0x8000_0008, [0x3027, 0, 0x1234, 0]),
    ]
}

fn vcpu(id: u8, cpus: u8) -> VcpuFacts {
    VcpuFacts { id, cpus, tsc_deadline: true, tsc_khz: Some(3_400_000), quirks: Quirks::default() }
}

fn find(table: &[kvm_cpuid_entry2], function: u32, index: u32) -> kvm_cpuid_entry2 {
    *table.iter().find(|entry| (entry.function, entry.index) == (function, index)).unwrap()
}

fn registers(table: &[kvm_cpuid_entry2], function: u32, index: u32) -> [u32; 4] {
    let entry = find(table, function, index);
    [entry.eax, entry.ebx, entry.ecx, entry.edx]
}

#[test]
fn no_nested_virtualization_no_mwait_no_performance_counters() {
    let table = for_vcpu(&intel(), &vcpu(0, 1));
    assert_eq!(find(&table, 1, 0).ecx & (VMX | MONITOR | PDCM), 0);
    assert_eq!(find(&table, 1, 0).edx & DEBUG_STORE, 0);
    assert_eq!(registers(&table, 5, 0), [0; 4]);
    assert_eq!(registers(&table, 0xa, 0), [0; 4]);
    let mut amd = recorded();
    amd.iter_mut().filter(|entry| entry.function == 0x8000_0001).for_each(|entry| entry.ecx |= SVM);
    assert_eq!(find(&for_vcpu(&amd, &vcpu(0, 1)), 0x8000_0001, 0).ecx & SVM, 0);
}

#[test]
fn hypervisor_and_x2apic_are_always_there_and_the_deadline_timer_when_kvm_has_it() {
    for supported in [intel(), recorded()] {
        let with = find(&for_vcpu(&supported, &vcpu(0, 1)), 1, 0).ecx;
        assert_eq!(with & (HYPERVISOR | X2APIC | TSC_DEADLINE), HYPERVISOR | X2APIC | TSC_DEADLINE);
        let facts = VcpuFacts { tsc_deadline: false, ..vcpu(0, 1) };
        assert_eq!(find(&for_vcpu(&supported, &facts), 1, 0).ecx & TSC_DEADLINE, 0);
    }
}

#[test]
fn the_kvm_signature_stays_and_only_hypercalls_are_masked_on_request() {
    let table = for_vcpu(&intel(), &vcpu(0, 1));
    assert_eq!(registers(&table, 0x4000_0000, 0), [0x4000_0010, 0x4b4d_564b, 0x564b_4d56, 0x4d]);
    assert_eq!(find(&table, 0x4000_0001, 0).eax, 0x0100_7efb);
    assert_eq!(registers(&table, 0x4000_0010, 0), [3_400_000, 1_000_000, 0, 0]);

    let quirks = Quirks { no_hypercalls: true };
    let masked = find(&for_vcpu(&intel(), &VcpuFacts { quirks, ..vcpu(0, 1) }), 0x4000_0001, 0).eax;
    assert_eq!(masked, 0x0100_7efb & !(1 << 7 | 1 << 11 | 1 << 13));
}

#[test]
fn without_kvms_leaves_or_a_known_frequency_no_timing_leaf_is_invented() {
    let unknown = VcpuFacts { tsc_khz: None, ..vcpu(0, 1) };
    assert!(for_vcpu(&intel(), &unknown).iter().all(|entry| entry.function != TIMING_LEAF));
    let bare: Vec<_> = intel().into_iter().filter(|entry| entry.function >> 30 != 1).collect();
    assert!(for_vcpu(&bare, &vcpu(0, 1)).iter().all(|entry| entry.function != TIMING_LEAF));
}

#[test]
fn frequencies_are_complete_or_absent() {
    let table = for_vcpu(&intel(), &vcpu(0, 1));
    assert_eq!(registers(&table, 0x15, 0), [0; 4]); // no crystal frequency: useless for computing the TSC's
    assert_eq!(registers(&table, 0x16, 0), [3400, 3900, 100, 0]);
}

#[test]
fn intel_topology_is_one_socket_of_single_threaded_cores() {
    for (cpus, bits) in [(1, 0), (2, 1), (3, 2), (4, 2), (32, 5)] {
        let id = cpus - 1;
        let (table, id, cpus) = (for_vcpu(&intel(), &vcpu(id, cpus)), u32::from(id), u32::from(cpus));
        let leaf1 = find(&table, 1, 0);
        assert_eq!((leaf1.ebx >> 24, (leaf1.ebx >> 16) & 0xff, leaf1.ebx & 0xffff), (id, 1 << bits, 0x0800));
        assert_eq!(leaf1.edx >> 28 & 1, u32::from(cpus > 1));
        for leaf in [0xb, 0x1f] {
            assert_eq!(registers(&table, leaf, 0), [0, 1, 0x100, id]);
            assert_eq!(registers(&table, leaf, 1), [bits, cpus, 0x201, id]);
            assert_eq!(registers(&table, leaf, 2), [0, 0, 2, id]);
        }
        for (index, sharing) in [(0, 1), (1, 1), (2, 1), (3, 1 << bits)] {
            let eax = find(&table, 4, index).eax;
            assert_eq!(((eax >> 14) & 0xfff, eax >> 26), (sharing - 1, (1 << bits) - 1), "cache {index}");
            assert_eq!(eax & 0x3fff, find(&intel(), 4, index).eax & 0x3fff);
        }
        assert_eq!(registers(&table, 4, 4), [0; 4]);
        assert_eq!(find(&table, 0x8000_0008, 0).ecx, 0x1234); // AMD's alone
    }
}

#[test]
fn amd_topology_is_one_socket_of_single_threaded_cores() {
    for (cpus, bits) in [(1u8, 0), (2, 1), (6, 3)] {
        let table = for_vcpu(&recorded(), &vcpu(cpus - 1, cpus));
        let (id, cpus) = (u32::from(cpus - 1), u32::from(cpus));
        assert_eq!(find(&table, 1, 0).ebx >> 24, id);
        assert_eq!(find(&table, 0x8000_0008, 0).ecx & 0xf0ff, (bits << 12) | (cpus - 1));
        assert_eq!((find(&table, 0x8000_0001, 0).ecx >> 1) & 1, u32::from(cpus > 1));
        assert_eq!(registers(&table, 0x8000_001e, 0), [id, id, 0, 0]);
        for (index, sharing) in [(0, 1), (1, 1), (2, 1), (3, cpus)] {
            assert_eq!((find(&table, 0x8000_001d, index).eax >> 14) & 0xfff, sharing - 1);
        }
        assert_eq!(registers(&table, 0xb, 1), [bits, cpus, 0x201, id]);
        assert!(table.iter().all(|entry| entry.function != 0x1f)); // past this host's highest leaf, 1Ch
    }
}

#[test]
fn amd_without_the_topology_leaf_does_not_promise_it() {
    let supported: Vec<_> = recorded().into_iter().filter(|entry| entry.function != 0x8000_001e).collect();
    assert_eq!(find(&for_vcpu(&supported, &vcpu(0, 1)), 0x8000_0001, 0).ecx >> 22 & 1, 0);
    assert_eq!(find(&for_vcpu(&recorded(), &vcpu(0, 1)), 0x8000_0001, 0).ecx >> 22 & 1, 1);
}

#[test]
fn no_leaf_appears_twice_and_kvm_takes_the_table() {
    for supported in [intel(), recorded(), Vec::new(), vec![find(&intel(), 1, 0); 300]] {
        let table = for_vcpu(&supported, &vcpu(3, 4));
        assert!(table.len() <= KVM_MAX_CPUID_ENTRIES);
        if supported.len() < 100 {
            let mut keys: Vec<_> = table.iter().map(|entry| (entry.function, entry.index)).collect();
            keys.sort_unstable();
            keys.dedup();
            assert_eq!(keys.len(), table.len());
        }
        assert!(kvm_bindings::CpuId::from_entries(&table).is_ok());
    }
}
