//! virtio-rng (virtio 1.2 §5.4).

use super::queue::{Queue, WRITE};
use super::{Device, F_VERSION_1, NeedsReset};
use crate::heap;

/// Device type.
pub const KIND: u32 = 4;
const BUFFER_BYTES: u64 = 4096;

/// The entropy device.
#[derive(Debug)]
pub struct Rng {
    /// The function.
    pub device: Device,
    /// Its queue.
    pub queue: Queue,
    /// A page.
    pub buffer: u64,
}

impl Rng {
    /// Finds and starts it.
    #[must_use]
    pub fn open() -> Option<Self> {
        let device = Device::find(KIND, 0)?;
        assert!(device.negotiate(F_VERSION_1), "the entropy device refuses its only feature");
        let queue = device.set_up_queue(0, 8, 0);
        device.start();
        Some(Self { device, queue, buffer: heap::take(BUFFER_BYTES, 16) })
    }

    /// Asks for `len` bytes into `buffer`; returns how many came.
    ///
    /// # Errors
    /// When the device asks to be reset instead.
    pub fn fill(&mut self, len: u32) -> Result<u32, NeedsReset> {
        self.queue.chain(0, &[(self.buffer, len, WRITE)]);
        self.queue.offer(0);
        self.queue.notify();
        self.device.wait(&mut self.queue).map(|(_, written)| written)
    }
}
