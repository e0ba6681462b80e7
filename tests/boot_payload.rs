//! Enters small hand-made kernels on this machine's `/dev/kvm`: the registers, tables and boot parameters Nestling
//! prepares are what a CPU and a kernel accept. Works on any KVM backend, with or without VT-x.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test that cannot go on must say so and fail

use std::io::Write;

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use nestling::boot::{self, BootRequest, EntryPoint};
use nestling::x86::cpuid::{self, Quirks, VcpuFacts};
use nestling::x86::layout::KVM_TSS_START;
use nestling::x86::{msrs, registers};
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

#[path = "../src/boot/samples.rs"]
mod samples;

const MEMORY_BYTES: usize = 64 << 20;
/// The port the payloads print to.
const PRINT_PORT: u16 = 0xe9;
const CMDLINE: &str = "console=hvc0 -- hello";

/// `eax` to the port, byte by byte, then the string at `esi`, then `hlt`. Encoded alike in 32 and 64 bit mode, except
/// for where the string's address comes from, which goes in between.
fn print_and_halt(load_string_address: &[u8]) -> Vec<u8> {
    let mut code = vec![
        0x66, 0xba, 0xe9, 0x00, //       mov dx, 0xe9
        0xb9, 0x04, 0x00, 0x00, 0x00, // mov ecx, 4
        0xee, //                   next: out dx, al
        0xc1, 0xe8, 0x08, //             shr eax, 8
        0xe2, 0xfa, //                   loop next
    ];
    code.extend(load_string_address);
    code.extend([
        0xac, //              next: lodsb
        0x84, 0xc0, //              test al, al
        0x74, 0x03, //              jz end
        0xee, //                    out dx, al
        0xeb, 0xf8, //              jmp next
        0xf4, //               end: hlt
    ]);
    code
}

/// Reloads a data segment from the GDT, prints the magic of the start info and the command line.
fn pvh_payload() -> Vec<u8> {
    let mut code = vec![
        0x66, 0xb8, 0x18, 0x00, // mov ax, 0x18
        0x8e, 0xd8, //             mov ds, ax
        0x8b, 0x03, //             mov eax, [ebx]        (hvm_start_info.magic)
    ];
    code.extend(print_and_halt(&[0x8b, 0x73, 0x18])); // mov esi, [ebx + 24] (cmdline_paddr)
    code
}

/// Reloads a data segment, uses the stack, prints the magic of the setup header and the command line.
fn linux64_payload() -> Vec<u8> {
    let mut code = vec![
        0x66, 0xb8, 0x18, 0x00, //             mov ax, 0x18
        0x8e, 0xd8, //                         mov ds, ax
        0x50, 0x58, //                         push rax; pop rax
        0x8b, 0x86, 0x02, 0x02, 0x00, 0x00, // mov eax, [rsi + 0x202] (header)
    ];
    code.extend(print_and_halt(&[0x8b, 0xb6, 0x28, 0x02, 0x00, 0x00])); // mov esi, [rsi + 0x228] (cmd_line_ptr)
    code
}

#[test]
fn a_pvh_kernel_finds_its_start_info_and_command_line() {
    let (entry, printed) = boot(&samples::elf(&pvh_payload(), true));
    assert!(matches!(entry, EntryPoint::Pvh { .. }));
    assert_eq!(printed, [&0x336e_c578u32.to_le_bytes(), CMDLINE.as_bytes()].concat());
}

#[test]
fn a_64_bit_elf_kernel_finds_boot_params_and_command_line() {
    let (entry, printed) = boot(&samples::elf(&linux64_payload(), false));
    assert!(matches!(entry, EntryPoint::Linux64 { .. }));
    assert_eq!(printed, [b"HdrS", CMDLINE.as_bytes()].concat());
}

#[test]
fn a_bzimage_finds_boot_params_and_command_line() {
    let (entry, printed) = boot(&samples::bzimage(&linux64_payload()));
    assert!(matches!(entry, EntryPoint::Linux64 { .. }));
    assert_eq!(printed, [b"HdrS", CMDLINE.as_bytes()].concat());
}

/// Loads `image`, runs it until it halts, and returns what it printed.
fn boot(image: &[u8]) -> (EntryPoint, Vec<u8>) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(image).unwrap();
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)]).unwrap();
    let request = BootRequest {
        kernel: file.path(),
        initrd: None,
        cmdline: CMDLINE,
        cpus: 1,
        serial: false,
        watchdog: true,
    };
    let entry = boot::load(&memory, &request).unwrap();

    let kvm = Kvm::new().expect("this test needs /dev/kvm");
    let vm = create_vm(&kvm, &memory);
    let mut vcpu = create_vcpu(&kvm, &vm, &entry);
    (entry, run_until_halt(&mut vcpu))
}

fn create_vm(kvm: &Kvm, memory: &GuestMemoryMmap) -> VmFd {
    let vm = kvm.create_vm().expect("KVM_CREATE_VM");
    vm.set_tss_address(usize::try_from(KVM_TSS_START).unwrap()).expect("KVM_SET_TSS_ADDR");
    for (slot, region) in (0u32..).zip(memory.iter()) {
        let host = memory.get_host_address(region.start_addr()).unwrap();
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.start_addr().raw_value(),
            memory_size: region.len(),
            userspace_addr: host as u64,
        };
        // SAFETY: the region is mapped for as long as `memory` lives, which is longer than the VM runs.
        unsafe { vm.set_user_memory_region(region) }.expect("KVM_SET_USER_MEMORY_REGION");
    }
    vm
}

fn create_vcpu(kvm: &Kvm, vm: &VmFd, entry: &EntryPoint) -> VcpuFd {
    let vcpu = vm.create_vcpu(0).expect("KVM_CREATE_VCPU");
    let supported = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).expect("KVM_GET_SUPPORTED_CPUID");
    let quirks = Quirks { no_hypercalls: true };
    let facts = VcpuFacts { id: 0, cpus: 1, tsc_deadline: false, tsc_khz: vcpu.get_tsc_khz().ok(), quirks };
    let table = CpuId::from_entries(&cpuid::for_vcpu(supported.as_slice(), &facts)).unwrap();
    vcpu.set_cpuid2(&table).expect("KVM_SET_CPUID2");
    for msr in msrs::initial() {
        let set = vcpu.set_msrs(&Msrs::from_entries(&[msr.to_kvm()]).unwrap()).expect("KVM_SET_MSRS");
        assert!(set == 1 || !msr.required, "MSR {:#x} is required and was refused", msr.index);
    }
    let (regs, sregs) = registers::initial(entry, vcpu.get_sregs().expect("KVM_GET_SREGS"));
    vcpu.set_sregs(&sregs).expect("KVM_SET_SREGS");
    vcpu.set_regs(&regs).expect("KVM_SET_REGS");
    vcpu.set_fpu(&registers::fpu()).expect("KVM_SET_FPU");
    vcpu
}

fn run_until_halt(vcpu: &mut VcpuFd) -> Vec<u8> {
    let mut printed = Vec::new();
    loop {
        match vcpu.run().expect("KVM_RUN") {
            VcpuExit::IoOut(PRINT_PORT, bytes) => printed.extend_from_slice(bytes),
            VcpuExit::Hlt => return printed,
            exit => panic!("unexpected exit {exit:?} after {:?}", String::from_utf8_lossy(&printed)),
        }
    }
}
