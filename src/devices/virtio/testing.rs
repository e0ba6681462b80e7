//! What tests, fuzz targets and benchmarks of the virtio layers share: guest RAM, a driver's end of a ring, interrupts that
//! can be counted, a hostile driver's script. Part of the library only with the feature `test-utils`.

#![allow(
    missing_debug_implementations,
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    reason = "a test that cannot go on fails"
)]

pub mod registers;
pub mod script;

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueT};
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use super::queue::{DeviceQueue, ISR_QUEUE, Interrupt};
use crate::devices::pci::msix::Msix;
use crate::devices::registers::RegisterPages;
use crate::devices::wiring::Wiring;
use crate::devices::wiring::mock::MockWiring;

/// Bytes of RAM a test guest has, in two runs with a hole between them.
pub const RAM_BYTES: u64 = 2 << 20;
/// First address that is not RAM.
pub const HOLE: u64 = RAM_BYTES;
/// Where RAM goes on after the hole.
pub const HIGH_RAM: u64 = 4 << 20;
/// First address no ring uses.
pub const DATA: u64 = 0x10_0000;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// A test guest's RAM.
pub fn guest_ram() -> GuestMemoryMmap {
    let low = (GuestAddress(0), RAM_BYTES as usize);
    let high = (GuestAddress(HIGH_RAM), RAM_BYTES as usize);
    GuestMemoryMmap::from_ranges(&[low, high]).unwrap()
}

/// MSI-X with `vectors` vectors, all of them open; the mock counts what is raised.
pub fn open_msix(vectors: u16) -> (Arc<MockWiring>, Arc<Msix>) {
    let wiring = Arc::new(MockWiring::default());
    let page = RegisterPages::new(1).unwrap();
    let msix = Msix::new(page, vectors, Arc::clone(&wiring) as Arc<dyn Wiring>).unwrap();
    msix.set_control(0x8000);
    for vector in 0..usize::from(vectors) {
        msix.write_table(vector * 16 + 12, &[0; 4]);
    }
    (wiring, Arc::new(msix))
}

/// One buffer of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    /// Guest physical address.
    pub address: u64,
    /// Bytes.
    pub len: u32,
    /// Whether the device may write it, and not read.
    pub writable: bool,
}

/// A buffer the device may read.
pub fn readable(address: u64, len: u32) -> Buffer {
    Buffer { address, len, writable: false }
}

/// A buffer the device may write.
pub fn writable(address: u64, len: u32) -> Buffer {
    Buffer { address, len, writable: true }
}

/// A driver's end of one ring.
#[derive(Debug)]
pub struct Driver {
    memory: GuestMemoryMmap,
    index: u16,
    size: u16,
    next_descriptor: u16,
}

impl Driver {
    /// A driver with an empty ring for queue `index`.
    pub fn new(memory: &GuestMemoryMmap, index: u16, size: u16) -> Self {
        Self { memory: memory.clone(), index, size, next_descriptor: 0 }
    }

    /// The device's end; it interrupts through the vector of the queue's number.
    pub fn device(&self, event_idx: bool, msix: &Arc<Msix>) -> DeviceQueue {
        let [table, available, used] = self.addresses();
        let mut queue = Queue::new(self.size).unwrap();
        queue.set_desc_table_address(Some(table as u32), None);
        queue.set_avail_ring_address(Some(available as u32), None);
        queue.set_used_ring_address(Some(used as u32), None);
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        let interrupt = Interrupt {
            msix: Arc::clone(msix),
            vector: self.index,
            isr: Arc::new(AtomicU8::new(0)),
            cause: ISR_QUEUE,
        };
        let bell = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        DeviceQueue::new(queue, self.memory.clone(), interrupt, bell).unwrap()
    }

    /// Descriptor table, available ring, used ring (virtio 1.2 §2.7).
    pub fn addresses(&self) -> [u64; 3] {
        let (table, size) = (0x1000 + 0x2000 * u64::from(self.index), u64::from(self.size));
        let available = table + 16 * size;
        [table, available, (available + 6 + 2 * size).next_multiple_of(4)]
    }

    /// Makes a chain available.
    pub fn offer(&mut self, chain: &[Buffer]) {
        let head = self.next_descriptor;
        for (position, buffer) in chain.iter().enumerate() {
            let next = (self.next_descriptor + 1) % self.size;
            let more = position + 1 < chain.len();
            self.put(
                self.addresses()[0] + 16 * u64::from(self.next_descriptor),
                descriptor(*buffer, more, next),
            );
            self.next_descriptor = next;
        }
        self.offer_head(head);
    }

    /// Makes a chain available whose descriptors are in a table of their own at `table`.
    pub fn offer_indirect(&mut self, table: u64, chain: &[Buffer]) {
        for (position, buffer) in chain.iter().enumerate() {
            let more = position + 1 < chain.len();
            self.put(table + 16 * position as u64, descriptor(*buffer, more, position as u16 + 1));
        }
        self.store(self.next_descriptor, table, 16 * chain.len() as u32, INDIRECT, 0);
        self.offer_head(self.next_descriptor);
        self.next_descriptor = (self.next_descriptor + 1) % self.size;
    }

    /// Makes whatever descriptor `head` holds available.
    pub fn offer_head(&self, head: u16) {
        let idx = self.available();
        self.put(self.addresses()[1] + 4 + 2 * u64::from(idx % self.size), head);
        self.set_available(idx.wrapping_add(1));
    }

    /// Writes one descriptor as it is.
    pub fn store(&self, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let descriptor = RawDescriptor::from(Descriptor::new(address, len, flags, next));
        self.put(self.addresses()[0] + 16 * u64::from(index), descriptor);
    }

    /// Forgets every chain, as a driver does after a reset.
    pub fn clear(&self) {
        let [table, _, used] = self.addresses();
        let end = used + 6 + 8 * u64::from(self.size);
        self.memory.write_slice(&vec![0; (end - table) as usize], GuestAddress(table)).unwrap();
    }

    /// The available index.
    pub fn available(&self) -> u16 {
        self.get(self.addresses()[1] + 2)
    }

    /// Claims that chains up to `idx` are available.
    pub fn set_available(&self, idx: u16) {
        self.put(self.addresses()[1] + 2, idx);
    }

    /// With EVENT_IDX: interrupt when the used index passes `idx`.
    pub fn set_used_event(&self, idx: u16) {
        self.put(self.addresses()[1] + 4 + 2 * u64::from(self.size), idx);
    }

    /// With EVENT_IDX: the device wants its doorbell rung when the available index passes this.
    pub fn avail_event(&self) -> u16 {
        self.get(self.addresses()[2] + 4 + 8 * u64::from(self.size))
    }

    /// Without EVENT_IDX: sets VIRTQ_AVAIL_F_NO_INTERRUPT.
    pub fn forbid_interrupts(&self) {
        self.put(self.addresses()[1], 1_u16);
    }

    /// Without EVENT_IDX: whether the device set VIRTQ_USED_F_NO_NOTIFY.
    pub fn forbids_doorbells(&self) -> bool {
        self.get::<u16>(self.addresses()[2]) & 1 != 0
    }

    /// Heads and lengths the device gave back since the ring was new; at most a ring's worth is still there.
    pub fn used(&self) -> Vec<(u32, u32)> {
        let used = self.addresses()[2];
        let element = |idx: u16| used + 4 + 8 * u64::from(idx % self.size);
        (0..self.get::<u16>(used + 2))
            .map(|idx| (self.get(element(idx)), self.get(element(idx) + 4)))
            .collect()
    }

    /// How many chains the device gave back, modulo 2^16.
    pub fn used_index(&self) -> u16 {
        let index = self.memory.load::<u16>(GuestAddress(self.addresses()[2] + 2), Ordering::Acquire);
        index.unwrap()
    }

    /// Head and length of the chain that was given back as number `index`, at most a ring's worth ago.
    pub fn used_element(&self, index: u16) -> (u32, u32) {
        let element = self.addresses()[2] + 4 + 8 * u64::from(index % self.size);
        (self.get(element), self.get(element + 4))
    }

    fn get<T: ByteValued>(&self, address: u64) -> T {
        self.memory.read_obj(GuestAddress(address)).unwrap()
    }

    fn put<T: ByteValued>(&self, address: u64, value: T) {
        self.memory.write_obj(value, GuestAddress(address)).unwrap();
    }
}

fn descriptor(buffer: Buffer, more: bool, next: u16) -> RawDescriptor {
    let flags = if more { NEXT } else { 0 } | if buffer.writable { WRITE } else { 0 };
    Descriptor::new(buffer.address, buffer.len, flags, if more { next } else { 0 }).into()
}

#[cfg(test)]
mod tests;
