//! virtio-console (virtio 1.2 §5.3).

use core::fmt::{self, Write};

use super::queue::{Queue, WRITE};
use super::{Device, F_EVENT_IDX, F_VERSION_1, NeedsReset};
use crate::heap;
use crate::io::poke;

/// Device type.
pub const KIND: u32 = 3;
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
const QUEUE_SIZE: u16 = 16;
/// Bytes of the input buffer, and of the output buffer.
pub const RECEIVE_BYTES: u32 = 256;

/// The console with one output buffer and one input buffer.
#[derive(Debug)]
pub struct Console {
    /// The function.
    pub device: Device,
    /// Input.
    pub receive: Queue,
    /// Output.
    pub transmit: Queue,
    /// Input buffer.
    pub input: u64,
    output: u64,
}

impl Console {
    /// Finds and starts it. Interrupts go to `vector`, if given.
    #[must_use]
    pub fn open(vector: Option<u8>) -> Option<Self> {
        let mut device = Device::find(KIND, 0)?;
        if let Some(vector) = vector {
            device.use_interrupts(vector);
        }
        Some(Self::start(device))
    }

    /// Starts a device that was found before, from its reset on.
    #[must_use]
    pub fn start(device: Device) -> Self {
        let features = F_VERSION_1 | F_EVENT_IDX;
        assert!(device.negotiate(features), "the console refuses {features:#x}");
        let receive = device.set_up_queue(RECEIVE, QUEUE_SIZE, features);
        let transmit = device.set_up_queue(TRANSMIT, QUEUE_SIZE, features);
        device.start();
        let (input, output) = (heap::take(RECEIVE_BYTES.into(), 16), heap::take(RECEIVE_BYTES.into(), 16));
        Self { device, receive, transmit, input, output }
    }

    /// Offers the input buffer and waits for input; returns its length.
    ///
    /// # Errors
    /// When the device asks to be reset instead.
    pub fn read(&mut self, room: u32) -> Result<u32, NeedsReset> {
        self.receive.chain(0, &[(self.input, room.min(RECEIVE_BYTES), WRITE)]);
        self.receive.offer(0);
        self.receive.notify();
        self.device.wait(&mut self.receive).map(|(_, len)| len)
    }

    /// Writes bytes and waits until they are out.
    ///
    /// # Errors
    /// When the device asks to be reset instead.
    pub fn write_bytes(&mut self, bytes: &[u8]) -> Result<(), NeedsReset> {
        for part in bytes.chunks(RECEIVE_BYTES as usize) {
            (self.output..).zip(part).for_each(|(at, &byte)| poke(at, byte));
            self.transmit.chain(0, &[(self.output, part.len() as u32, 0)]);
            self.transmit.offer(0);
            self.transmit.notify();
            self.device.wait(&mut self.transmit)?;
        }
        Ok(())
    }
}

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.write_bytes(text.as_bytes()).map_err(|NeedsReset| fmt::Error)
    }
}
