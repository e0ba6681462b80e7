//! [`Wiring`] by KVM: irqfd, MSI routes, ioeventfd, read-only memory slots.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_MEM_READONLY, KvmIrqRouting,
    kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1, kvm_irq_routing_irqchip, kvm_irq_routing_msi,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::EventFd;

use crate::devices::registers::RegisterPages;
use crate::devices::wiring::{Gsi, MsiMessage, Wiring};
use crate::x86::layout::{IOAPIC_PINS, PCI_ECAM_SIZE, PCI_ECAM_START, PCI_MMIO_START};

/// The first memory slots belong to RAM.
const FIRST_READABLE_SLOT: u32 = 2;

/// Devices' connections into one VM.
#[derive(Debug)]
pub(super) struct KvmWiring {
    vm: Arc<VmFd>,
    routes: Mutex<Routes>,
    /// Registered memory slots keep their pages alive here.
    readable: Mutex<BTreeMap<u32, RegisterPages>>,
}

#[derive(Debug, Default)]
struct Routes {
    interrupts: u32,
    messages: BTreeMap<Gsi, MsiMessage>,
}

impl KvmWiring {
    pub(super) fn new(vm: Arc<VmFd>) -> Self {
        Self { vm, routes: Mutex::default(), readable: Mutex::default() }
    }

    /// An eventfd that pulses an IOAPIC pin.
    pub(super) fn pin(&self, gsi: Gsi) -> io::Result<EventFd> {
        let event = EventFd::new(libc::EFD_NONBLOCK)?;
        self.vm.register_irqfd(&event, gsi)?;
        Ok(event)
    }

    fn set_slot(&self, slot: u32, gpa: u64, pages: &RegisterPages, len: u64) -> io::Result<()> {
        let region = kvm_userspace_memory_region {
            slot: FIRST_READABLE_SLOT + slot,
            flags: KVM_MEM_READONLY,
            guest_phys_addr: gpa,
            memory_size: len,
            userspace_addr: pages.host_address(),
        };
        // SAFETY: `readable` keeps the pages mapped as long as the slot is set.
        unsafe { self.vm.set_user_memory_region(region) }.map_err(io::Error::from)
    }
}

impl Wiring for KvmWiring {
    fn new_msi(&self) -> io::Result<(Gsi, EventFd)> {
        let event = EventFd::new(libc::EFD_NONBLOCK)?;
        let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        let gsi = IOAPIC_PINS + routes.interrupts;
        self.vm.register_irqfd(&event, gsi)?;
        routes.interrupts += 1;
        Ok((gsi, event))
    }

    fn detach_msi(&self, gsi: Gsi, event: &EventFd) -> io::Result<()> {
        self.vm.unregister_irqfd(event, gsi).map_err(io::Error::from)
    }

    /// KVM looks whether the eventfd was written before it was attached.
    fn attach_msi(&self, gsi: Gsi, event: &EventFd) -> io::Result<()> {
        self.vm.register_irqfd(event, gsi).map_err(io::Error::from)
    }

    fn route_msi(&self, changes: &[(Gsi, Option<MsiMessage>)]) -> io::Result<()> {
        let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        for &(gsi, message) in changes {
            match message {
                Some(message) => routes.messages.insert(gsi, message),
                None => routes.messages.remove(&gsi),
            };
        }
        // KVM_SET_GSI_ROUTING (KVM API §4.52) replaces the whole table, the IOAPIC's pins included.
        let pins = (0..IOAPIC_PINS).map(pin_route);
        let messages = routes.messages.iter().map(|(&gsi, &message)| msi_route(gsi, message));
        let entries: Vec<_> = pins.chain(messages).collect();
        let table =
            KvmIrqRouting::from_entries(&entries).map_err(|error| io::Error::other(format!("{error:?}")))?;
        self.vm.set_gsi_routing(&table).map_err(io::Error::from)
    }

    fn attach_doorbell(&self, gpa: u64, event: &EventFd) -> io::Result<()> {
        // Without data match and length: KVM then need not decode the guest's instruction (KVM_CAP_IOEVENTFD_ANY_LENGTH).
        self.vm.register_ioevent(event, &IoEventAddress::Mmio(gpa), NoDatamatch).map_err(io::Error::from)
    }

    fn detach_doorbell(&self, gpa: u64, event: &EventFd) -> io::Result<()> {
        self.vm.unregister_ioevent(event, &IoEventAddress::Mmio(gpa), NoDatamatch).map_err(io::Error::from)
    }

    fn map_readable(&self, slot: u32, gpa: Option<u64>, pages: &RegisterPages) -> io::Result<()> {
        let mut readable = self.readable.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(old) = readable.get(&slot) {
            self.set_slot(slot, 0, old, 0)?;
            readable.remove(&slot);
        }
        let Some(gpa) = gpa else { return Ok(()) };
        let len = pages.len() as u64;
        if gpa < PCI_MMIO_START || gpa.saturating_add(len) > PCI_ECAM_START + PCI_ECAM_SIZE {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{gpa:#x} is outside the PCI windows"),
            ));
        }
        self.set_slot(slot, gpa, pages, len)?;
        readable.insert(slot, pages.clone());
        Ok(())
    }
}

fn pin_route(pin: u32) -> kvm_irq_routing_entry {
    let irqchip = kvm_irq_routing_irqchip { irqchip: KVM_IRQCHIP_IOAPIC, pin };
    kvm_irq_routing_entry {
        gsi: pin,
        type_: KVM_IRQ_ROUTING_IRQCHIP,
        u: kvm_irq_routing_entry__bindgen_ty_1 { irqchip },
        ..kvm_irq_routing_entry::default()
    }
}

fn msi_route(gsi: Gsi, message: MsiMessage) -> kvm_irq_routing_entry {
    let msi = kvm_irq_routing_msi {
        address_lo: message.address as u32,
        address_hi: (message.address >> 32) as u32,
        data: message.data,
        ..kvm_irq_routing_msi::default()
    };
    kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        u: kvm_irq_routing_entry__bindgen_ty_1 { msi },
        ..kvm_irq_routing_entry::default()
    }
}
