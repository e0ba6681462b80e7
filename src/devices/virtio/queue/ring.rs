//! A split virtqueue (virtio 1.2 §2.7) in memory. Its three parts are looked up in guest memory once, so that each access is
//! a check of bounds and one load or store, and not a search.

use std::sync::atomic::{Ordering, fence};

use virtio_queue::{Queue, QueueT};
use vm_memory::{AtomicAccess, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, VolatileSlice};

use super::Chain;
use crate::devices::virtio::Fault;

/// Bytes of a descriptor, and of an element of each ring (§2.7.5, §2.7.6, §2.7.8).
pub(super) const DESCRIPTOR: usize = 16;
const AVAILABLE: usize = 2;
const USED: usize = 8;
/// Where the elements of a ring begin: behind its flags and its index.
const ELEMENTS: usize = 4;
const INDEX: usize = 2;
/// VIRTQ_AVAIL_F_NO_INTERRUPT (§2.7.7).
const NO_INTERRUPT: u16 = 1;
/// VIRTQ_USED_F_NO_NOTIFY (§2.7.10).
const NO_NOTIFY: u16 = 1;

/// A part of the queue: a run of guest memory.
#[derive(Debug)]
struct Part {
    start: *mut u8,
    bytes: usize,
}

impl Part {
    fn find(memory: &GuestMemoryMmap, address: u64, bytes: usize) -> Result<Self, Fault> {
        let slice = memory.get_slice(GuestAddress(address), bytes).map_err(outside)?;
        Ok(Self { start: slice.ptr_guard_mut().as_ptr(), bytes })
    }
}

fn outside<E>(_: E) -> Fault {
    Fault::Chain("a ring lies outside guest memory")
}

/// The rings, and how far the device is in them.
#[derive(Debug)]
pub(super) struct Ring {
    /// Keeps mapped what the parts point to.
    memory: GuestMemoryMmap,
    table: Part,
    available: Part,
    used: Part,
    size: u16,
    event_idx: bool,
    /// What we take next.
    next_available: u16,
    /// The driver's index, as far as we have looked.
    seen_available: u16,
    /// What we give back next; the driver sees what is before it.
    next_used: u16,
}

// SAFETY: the pointers are to guest memory, which `memory` keeps mapped and which any thread may use.
unsafe impl Send for Ring {}

impl Ring {
    /// The parts of `queue`, each of which lies in one run of `memory`.
    pub(super) fn new(queue: &Queue, memory: GuestMemoryMmap) -> Result<Self, Fault> {
        let entries = usize::from(queue.size());
        let bytes = |element: usize| entries.saturating_mul(element);
        // A ring ends with the other side's event (§2.7.6, §2.7.8).
        let ring = |element| bytes(element).saturating_add(ELEMENTS).saturating_add(2);
        Ok(Self {
            table: Part::find(&memory, queue.desc_table(), bytes(DESCRIPTOR))?,
            available: Part::find(&memory, queue.avail_ring(), ring(AVAILABLE))?,
            used: Part::find(&memory, queue.used_ring(), ring(USED))?,
            size: queue.size(),
            event_idx: queue.event_idx_enabled(),
            next_available: queue.next_avail(),
            seen_available: queue.next_avail(),
            next_used: queue.next_used(),
            memory,
        })
    }

    pub(super) fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    pub(super) fn size(&self) -> u16 {
        self.size
    }

    fn slice(&self, part: &Part) -> VolatileSlice<'_> {
        // SAFETY: `part` is a run of guest memory, which `self.memory` keeps mapped. No reference to it exists.
        unsafe { VolatileSlice::new(part.start, part.bytes) }
    }

    fn load<T: AtomicAccess>(&self, part: &Part, at: usize, order: Ordering) -> Result<T, Fault> {
        self.slice(part).load(at, order).map_err(outside)
    }

    fn store<T: AtomicAccess>(&self, part: &Part, at: usize, value: T, order: Ordering) -> Result<(), Fault> {
        self.slice(part).store(value, at, order).map_err(outside)
    }

    /// Where element `index` of a ring is. Sizes are powers of two (§2.7).
    fn element(&self, index: u16, bytes: usize) -> usize {
        let place = index & self.size.saturating_sub(1);
        usize::from(place).saturating_mul(bytes).saturating_add(ELEMENTS)
    }

    /// Where the other side's event is: behind the elements.
    fn event(&self, bytes: usize) -> usize {
        usize::from(self.size).saturating_mul(bytes).saturating_add(ELEMENTS)
    }

    // ---- what the driver makes available ---------------------------------------------------------------------------

    /// Takes the head of the next chain, if there is one.
    pub(super) fn take(&mut self) -> Result<Option<u16>, Fault> {
        if !self.has_more()? {
            return Ok(None);
        }
        let at = self.element(self.next_available, AVAILABLE);
        let head: u16 = self.load(&self.available, at, Ordering::Relaxed)?;
        self.next_available = self.next_available.wrapping_add(1);
        Ok(Some(u16::from_le(head)))
    }

    /// Whether there is a chain to take; looks at the driver's index when those seen before are taken.
    pub(super) fn has_more(&mut self) -> Result<bool, Fault> {
        if self.next_available == self.seen_available {
            // What the driver wrote before the index comes with it.
            let available = self.look(Ordering::Acquire)?;
            // It never offers a descriptor twice.
            if available.wrapping_sub(self.next_available) > self.size {
                return Err(virtio_queue::Error::InvalidAvailRingIndex.into());
            }
            self.seen_available = available;
        }
        Ok(self.next_available != self.seen_available)
    }

    fn look(&self, order: Ordering) -> Result<u16, Fault> {
        Ok(u16::from_le(self.load(&self.available, INDEX, order)?))
    }

    /// The last `count` chains are taken again later.
    pub(super) fn put_back(&mut self, count: u16) {
        self.next_available = self.next_available.wrapping_sub(count);
    }

    /// The chain that begins with descriptor `head`.
    pub(super) fn chain(&self, head: u16) -> Chain<'_> {
        Chain::new(&self.memory, self.slice(&self.table), self.size, head)
    }

    /// The driver need not ring. With EVENT_IDX it rings once for each time it was asked to, so there is nothing to do.
    pub(super) fn mute(&self) -> Result<(), Fault> {
        if self.event_idx { Ok(()) } else { self.store(&self.used, 0, NO_NOTIFY.to_le(), Ordering::Relaxed) }
    }

    /// Asks the driver to ring for the next chain (§2.7.10); `true` if it has made one available before it could know.
    pub(super) fn listen(&self) -> Result<bool, Fault> {
        if self.event_idx {
            self.store(&self.used, self.event(USED), self.next_available.to_le(), Ordering::Relaxed)?;
        } else {
            self.store(&self.used, 0, 0_u16, Ordering::Relaxed)?;
        }
        // The driver writes its index and then looks whether to ring; we have asked, and look at the index.
        fence(Ordering::SeqCst);
        Ok(self.look(Ordering::Relaxed)? != self.next_available)
    }

    // ---- what the device gives back --------------------------------------------------------------------------------

    /// Writes chains into the used ring; the driver sees all of them at once.
    pub(super) fn give_back(&mut self, used: &[(u16, u32)]) -> Result<(), Fault> {
        for &(head, written) in used {
            if head >= self.size {
                return Err(virtio_queue::Error::InvalidDescriptorIndex.into());
            }
            let at = self.element(self.next_used, USED);
            self.store(&self.used, at, u32::from(head).to_le(), Ordering::Relaxed)?;
            self.store(&self.used, at.saturating_add(4), written.to_le(), Ordering::Relaxed)?;
            self.next_used = self.next_used.wrapping_add(1);
        }
        self.store(&self.used, INDEX, self.next_used.to_le(), Ordering::Release)
    }

    /// Whether the driver wants to hear of the last `added` chains: with EVENT_IDX, when the one it named is among them
    /// (§2.7.7.2); without, unless its flag says no.
    pub(super) fn wants_interrupt(&self, added: u16) -> Result<bool, Fault> {
        // What the driver wrote before it looked at the index that we have moved.
        fence(Ordering::SeqCst);
        let load = |at| self.load(&self.available, at, Ordering::Relaxed).map(u16::from_le);
        if self.event_idx {
            let before_event = load(self.event(AVAILABLE))?.wrapping_add(1);
            return Ok(self.next_used.wrapping_sub(before_event) < added);
        }
        Ok(load(0)? & NO_INTERRUPT == 0)
    }
}
