//! What is where in a function's BAR, and the capabilities that say so (virtio 1.2 §4.1.4).

#![allow(clippy::arithmetic_side_effects, reason = "a device's own layout: no guest's number is here")]

use crate::devices::pci::config::{ConfigSpace, Identity};
use crate::devices::registers::PAGE;
use crate::devices::virtio::{Kind, common};

/// Size of BAR 0 in bytes.
pub const BAR_SIZE: u32 = 4 * PAGE as u32;
pub(super) const MSIX_PAGE: usize = 1;
pub(super) const ISR_PAGE: usize = 2;
pub(super) const DOORBELL_PAGE: usize = 3;
/// Pages from the start of the BAR that a guest may read from memory.
pub(super) const READABLE_PAGES: usize = 2;
/// Where the device configuration starts.
pub(super) const DEVICE_CONFIG: usize = PAGE / 2;
/// Distance of two queues' doorbells.
pub(super) const DOORBELL_STRIDE: usize = 4;

const VENDOR: u16 = 0x1af4;
/// PCI device id of virtio device type 0 (virtio 1.2 §4.1.2).
const DEVICE_BASE: u16 = 0x1040;
const VENDOR_CAPABILITY: u8 = 0x09;
const CAP_COMMON: u8 = 1;
const CAP_NOTIFY: u8 = 2;
const CAP_ISR: u8 = 3;
const CAP_DEVICE: u8 = 4;
const CAP_PCI_ACCESS: u8 = 5;

/// Where in the BAR the doorbell of queue `index` is.
pub(super) fn doorbell(index: usize) -> u64 {
    (DOORBELL_PAGE * PAGE + index * DOORBELL_STRIDE) as u64
}

/// What the function says it is.
pub(super) fn identity(kind: Kind) -> Identity {
    let [base, sub] = kind.class;
    Identity {
        vendor: VENDOR,
        device: DEVICE_BASE + kind.id,
        revision: 1,
        class: [base, sub, 0],
        subsystem: DEVICE_BASE + kind.id,
    }
}

/// Adds the five virtio capabilities (virtio 1.2 §4.1.4) and returns where the PCI access one is.
pub(super) fn add_virtio_capabilities(config: &mut ConfigSpace, queues: usize) -> usize {
    // Body after id and next: length, type, bar, id, two bytes of padding, offset, length, and what a type adds.
    let body = |kind: u8, offset: usize, len: usize, extra: &[u8]| {
        let mut body = vec![16 + extra.len() as u8, kind, 0, 0, 0, 0];
        body.extend_from_slice(&(offset as u32).to_le_bytes());
        body.extend_from_slice(&(len as u32).to_le_bytes());
        body.extend_from_slice(extra);
        body
    };
    let doorbells = body(
        CAP_NOTIFY,
        DOORBELL_PAGE * PAGE,
        queues * DOORBELL_STRIDE,
        &(DOORBELL_STRIDE as u32).to_le_bytes(),
    );
    config.add_capability(VENDOR_CAPABILITY, &body(CAP_COMMON, 0, common::LENGTH, &[]), &[]);
    config.add_capability(VENDOR_CAPABILITY, &doorbells, &[]);
    config.add_capability(VENDOR_CAPABILITY, &body(CAP_ISR, ISR_PAGE * PAGE, 1, &[]), &[]);
    config.add_capability(
        VENDOR_CAPABILITY,
        &body(CAP_DEVICE, DEVICE_CONFIG, PAGE - DEVICE_CONFIG, &[]),
        &[],
    );
    let access = body(CAP_PCI_ACCESS, 0, 0, &[0; 4]);
    let writable = [&[0, 0, 0xff, 0, 0, 0][..], &[0xff; 12]].concat();
    config.add_capability(VENDOR_CAPABILITY, &access, &writable)
}
