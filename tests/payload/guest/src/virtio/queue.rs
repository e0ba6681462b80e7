//! The driver's side of a split virtqueue (virtio 1.2 §2.7).

use core::sync::atomic::{Ordering, fence};

use super::Rings;
use crate::io::{peek, poke};

/// The chain goes on.
pub const NEXT: u16 = 1;
/// The device writes.
pub const WRITE: u16 = 2;
/// The buffer is a table of descriptors.
pub const INDIRECT: u16 = 4;
/// VRING_USED_F_NO_NOTIFY.
const NO_NOTIFY: u16 = 1;

/// A queue and what the driver remembers of it. Which descriptors are free is the caller's business.
#[derive(Debug)]
pub struct Queue {
    /// Where it is.
    pub rings: Rings,
    /// Entries.
    pub size: u16,
    /// Its doorbell.
    pub doorbell: u64,
    event_idx: bool,
    /// Next available index.
    pub available: u16,
    rung: u16,
    used: u16,
}

/// One descriptor.
#[derive(Debug, Clone, Copy)]
pub struct Descriptor {
    /// Buffer.
    pub address: u64,
    /// Its bytes.
    pub len: u32,
    /// [`NEXT`], [`WRITE`], [`INDIRECT`].
    pub flags: u16,
    /// Index of the next one.
    pub next: u16,
}

/// Writes descriptor `index` of the table at `table`.
pub fn describe(table: u64, index: u16, descriptor: Descriptor) {
    let at = table + u64::from(index) * 16;
    poke(at, descriptor.address);
    poke(at + 8, descriptor.len);
    poke(at + 12, descriptor.flags);
    poke(at + 14, descriptor.next);
}

impl Queue {
    /// A queue in fresh (zeroed) rings.
    #[must_use]
    pub fn new(rings: Rings, size: u16, doorbell: u64, event_idx: bool) -> Self {
        Self { rings, size, doorbell, event_idx, available: 0, rung: 0, used: 0 }
    }

    /// Writes a descriptor.
    pub fn describe(&self, index: u16, descriptor: Descriptor) {
        describe(self.rings.desc, index, descriptor);
    }

    /// Writes the chain `parts` from descriptor `first` on, each linked to the next.
    pub fn chain(&self, first: u16, parts: &[(u64, u32, u16)]) {
        for (index, &(address, len, flags)) in (first..).zip(parts) {
            let last = usize::from(index - first) + 1 == parts.len();
            let flags = if last { flags } else { flags | NEXT };
            self.describe(index, Descriptor { address, len, flags, next: index + 1 });
        }
    }

    /// Makes the chain at `head` available.
    pub fn offer(&mut self, head: u16) {
        poke(self.rings.driver + 4 + u64::from(self.available % self.size) * 2, head);
        fence(Ordering::SeqCst);
        self.available = self.available.wrapping_add(1);
        poke(self.rings.driver + 2, self.available);
    }

    /// Asks for an interrupt for the next used chain, however fast the device is.
    pub fn want_interrupt(&self) {
        if self.event_idx {
            poke(self.rings.driver + 4 + u64::from(self.size) * 2, self.used);
        }
    }

    /// Rings the doorbell if the device asked for it.
    pub fn notify(&mut self) {
        fence(Ordering::SeqCst);
        let added = self.available.wrapping_sub(self.rung);
        let wanted = if self.event_idx {
            let event: u16 = peek(self.rings.device + 4 + u64::from(self.size) * 8);
            self.available.wrapping_sub(event).wrapping_sub(1) < added
        } else {
            peek::<u16>(self.rings.device) & NO_NOTIFY == 0
        };
        if wanted {
            self.ring();
        }
        self.rung = self.available;
    }

    /// Rings the doorbell.
    pub fn ring(&self) {
        poke(self.doorbell, 0_u16);
    }

    /// The next used chain: its head and the bytes written to it. Asks for an interrupt when there is none.
    pub fn take(&mut self) -> Option<(u32, u32)> {
        self.want_interrupt();
        fence(Ordering::SeqCst);
        if peek::<u16>(self.rings.device + 2) == self.used {
            return None;
        }
        let entry = self.rings.device + 4 + u64::from(self.used % self.size) * 8;
        self.used = self.used.wrapping_add(1);
        Some((peek(entry), peek(entry + 4)))
    }
}
