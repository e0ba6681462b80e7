//! KVM: the VM file descriptor and what this host's KVM can do.

use std::path::Path;
use std::sync::Arc;

use kvm_bindings::{CpuId, KVM_API_VERSION, KVM_MAX_CPUID_ENTRIES, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, Kvm, VmFd};

use super::error::{MachineError, kvm};
use super::memory::GuestRam;
use crate::x86::cpuid::Quirks;
use crate::x86::layout::{KVM_IDENTITY_MAP_START, KVM_TSS_START};

/// An open KVM with one VM in it: interrupt controllers and RAM in place, no vCPU yet.
#[derive(Debug)]
pub(super) struct Hypervisor {
    kvm: Kvm,
    pub(super) vm: Arc<VmFd>,
}

impl Hypervisor {
    /// Opens `/dev/kvm` and makes a VM with the in-kernel interrupt controllers (KVM API §4.24): no PIT, no device the
    /// ACPI tables do not name.
    pub(super) fn new(ram: &GuestRam) -> Result<Self, MachineError> {
        let device = Kvm::new().map_err(kvm("/dev/kvm cannot be opened"))?;
        if device.get_api_version() != KVM_API_VERSION as i32 {
            let source = kvm_ioctls::Error::new(libc::ENOTSUP);
            return Err(MachineError::Kvm { doing: "this KVM does not speak API version 12", source });
        }
        let vm = device.create_vm().map_err(kvm("KVM cannot create a VM"))?;
        vm.set_identity_map_address(KVM_IDENTITY_MAP_START)
            .map_err(kvm("KVM cannot place its identity map"))?;
        vm.set_tss_address(KVM_TSS_START as usize).map_err(kvm("KVM cannot place its task state segment"))?;
        for (slot, region) in ram.regions().into_iter().enumerate() {
            let region = kvm_userspace_memory_region {
                slot: slot as u32,
                flags: 0,
                guest_phys_addr: region.gpa,
                memory_size: region.len,
                userspace_addr: region.host,
            };
            // SAFETY: the range is guest RAM, which outlives the VM: `Machine` drops the VM first.
            unsafe { vm.set_user_memory_region(region) }.map_err(kvm("KVM cannot map guest RAM"))?;
        }
        vm.create_irq_chip().map_err(kvm("KVM cannot create its interrupt controllers"))?;
        Ok(Self { kvm: device, vm: Arc::new(vm) })
    }

    /// The CPUID table KVM can offer a guest.
    pub(super) fn supported_cpuid(&self) -> Result<CpuId, MachineError> {
        self.kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(kvm("KVM does not tell its CPUID"))
    }

    /// Whether guests may use the APIC timer's TSC deadline mode, which spares a calibration and is cheaper to arm.
    pub(super) fn has_tsc_deadline(&self) -> bool {
        self.kvm.check_extension(Cap::TscDeadlineTimer)
    }

    /// The most vCPUs one VM can have.
    pub(super) fn max_vcpus(&self) -> usize {
        self.kvm.get_max_vcpus()
    }

    /// What this KVM backend gets wrong.
    pub(super) fn quirks() -> Quirks {
        Quirks { no_hypercalls: Path::new("/sys/module/kvm_pvm").exists() }
    }
}
