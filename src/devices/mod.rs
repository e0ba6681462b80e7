//! The machine's devices: the bus, PCI, virtio, and the few platform devices.
//!
//! Every virtio device is three layers in the same order: queue logic (guest memory in, guest memory out, no fd), a
//! worker (eventfds, a thread), the PCI transport. Nothing here knows KVM: what a device needs of it (an interrupt from
//! an eventfd, a doorbell to an eventfd, pages the guest may read without an exit) is the [`wiring::Wiring`] trait.

// A guest chooses the numbers here: nothing may panic or wrap by accident.
#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

pub mod bus;
pub mod complaints;
pub mod eventfd;
pub mod pci;
pub mod platform;
pub mod rate_limit;
pub mod registers;
pub mod virtio;
pub mod wiring;
