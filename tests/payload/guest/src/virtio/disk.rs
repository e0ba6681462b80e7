//! virtio-blk (virtio 1.2 §5.2).

use super::queue::{INDIRECT, Queue, WRITE, describe};
use super::{Device, F_EVENT_IDX, F_INDIRECT, F_VERSION_1, NeedsReset};
use crate::heap;
use crate::io::{peek, poke};

/// Device type.
pub const KIND: u32 = 2;
/// VIRTIO_BLK_T_IN.
pub const READ: u32 = 0;
/// VIRTIO_BLK_T_OUT.
pub const WRITE_OUT: u32 = 1;
/// VIRTIO_BLK_T_FLUSH.
pub const FLUSH: u32 = 4;
/// VIRTIO_BLK_T_GET_ID.
pub const GET_ID: u32 = 8;
/// VIRTIO_BLK_F_FLUSH.
pub const F_FLUSH: u64 = 1 << 9;
/// Bytes of a sector.
pub const SECTOR: u32 = 512;

const QUEUE_SIZE: u16 = 16;
const HEADER_BYTES: u32 = 16;
const DATA_BYTES: u64 = 64 << 10;
/// What the status byte is before the device wrote it.
const UNWRITTEN: u8 = 0xee;

/// A disk with one request at a time.
#[derive(Debug)]
pub struct Disk {
    /// The function.
    pub device: Device,
    /// Its queue.
    pub queue: Queue,
    /// Request header.
    pub header: u64,
    /// Data buffer of 64 KiB.
    pub data: u64,
    /// Status byte.
    pub status: u64,
    table: u64,
    indirect: bool,
}

impl Disk {
    /// Finds the `nth` disk; starts it with all ring features. Interrupts go to `vector`, if given.
    #[must_use]
    pub fn open(nth: usize, vector: Option<u8>) -> Option<Self> {
        let mut device = Device::find(KIND, nth)?;
        if let Some(vector) = vector {
            device.use_interrupts(vector);
        }
        Some(Self::start(device))
    }

    /// Starts a device that was found before, from its reset on.
    #[must_use]
    pub fn start(device: Device) -> Self {
        let features = F_VERSION_1 | F_EVENT_IDX | F_INDIRECT;
        Self::start_with(device, features)
    }

    /// The same with other features.
    #[must_use]
    pub fn start_with(device: Device, features: u64) -> Self {
        assert!(device.negotiate(features), "the disk refuses {features:#x}");
        let queue = device.set_up_queue(0, QUEUE_SIZE, features);
        device.start();
        Self {
            device,
            queue,
            header: heap::take(HEADER_BYTES.into(), 16),
            data: heap::take(DATA_BYTES, 4096),
            status: heap::take(1, 1),
            table: heap::take(64, 16),
            indirect: features & F_INDIRECT != 0,
        }
    }

    /// Capacity in sectors.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        peek(self.device.config(0))
    }

    /// Fills the header.
    pub fn set_header(&self, kind: u32, sector: u64) {
        poke(self.header, kind);
        poke(self.header + 4, 0_u32);
        poke(self.header + 8, sector);
        poke(self.status, UNWRITTEN);
    }

    /// One request with `len` bytes of data: its status byte and the bytes the device says it wrote.
    ///
    /// # Errors
    /// When the device asks to be reset instead.
    pub fn request(&mut self, kind: u32, sector: u64, len: u32) -> Result<(u8, u32), NeedsReset> {
        self.set_header(kind, sector);
        let direction = if kind == WRITE_OUT { 0 } else { WRITE };
        let (header, status) = ((self.header, HEADER_BYTES, 0), (self.status, 1, WRITE));
        let with_data = [header, (self.data, len, direction), status];
        let parts: &[_] = if len == 0 { &[header, status] } else { &with_data };
        self.submit(parts)
    }

    /// Sends a chain, indirect where that was agreed on, and waits for it.
    ///
    /// # Errors
    /// When the device asks to be reset instead.
    pub fn submit(&mut self, parts: &[(u64, u32, u16)]) -> Result<(u8, u32), NeedsReset> {
        if self.indirect {
            let inner =
                Queue::new(super::Rings { desc: self.table, driver: 0, device: 0 }, QUEUE_SIZE, 0, false);
            inner.chain(0, parts);
            let (address, len) = (self.table, parts.len() as u32 * 16);
            let whole = super::queue::Descriptor { address, len, flags: INDIRECT, next: 0 };
            describe(self.queue.rings.desc, 0, whole);
        } else {
            self.queue.chain(0, parts);
        }
        self.queue.want_interrupt();
        self.queue.offer(0);
        self.queue.notify();
        let (_, written) = self.device.wait(&mut self.queue)?;
        Ok((peek(self.status), written))
    }
}
