//! virtio-rng (virtio 1.2 §5.4): the host's random bytes.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use virtio_queue::DescriptorChain;
use vm_memory::GuestMemoryMmap;

use super::queue::Queues;
use super::{Counters, Fault, Kind, Lane, QueueHandler, Start, VirtioDevice};

/// The most bytes one request gets. A driver asks again for more (virtio 1.2 §5.4.6.1 lets a device return fewer).
const MAX_REQUEST_BYTES: usize = 64 << 10;

/// The entropy device.
#[derive(Debug, Default)]
pub struct Rng {
    bytes: Arc<AtomicU64>,
}

impl VirtioDevice for Rng {
    fn kind(&self) -> Kind {
        Kind { id: 4, name: "virtio-rng", class: [0x00, 0xff] }
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![64]
    }

    fn start(&self, _start: Start<'_>) -> Result<Vec<Lane>, Fault> {
        Ok(Lane::all(1, RngHandler { bytes: Arc::clone(&self.bytes) }))
    }

    fn counters(&self) -> Counters {
        let bytes = Arc::clone(&self.bytes);
        Box::new(move || BTreeMap::from([("bytes".into(), bytes.load(Ordering::Relaxed))]))
    }
}

/// Fills the driver's buffers.
#[derive(Debug)]
struct RngHandler {
    bytes: Arc<AtomicU64>,
}

impl QueueHandler for RngHandler {
    fn on_queue(&mut self, queues: &mut Queues, index: usize) -> Result<(), Fault> {
        let Some(queue) = queues.get(index) else { return Ok(()) };
        queue.serve(|memory, chain| {
            let written = fill(memory, chain)?;
            self.bytes.fetch_add(u64::from(written), Ordering::Relaxed);
            Ok(written)
        })
    }
}

fn fill(memory: &GuestMemoryMmap, chain: DescriptorChain<&GuestMemoryMmap>) -> Result<u32, Fault> {
    let mut writer = chain.writer(memory)?;
    let wanted = writer.available_bytes().min(MAX_REQUEST_BYTES);
    let mut random = [0; 1024];
    loop {
        let missing = wanted.saturating_sub(writer.bytes_written());
        let Some(part @ [_, ..]) = random.get_mut(..missing.min(1024)) else { break };
        if !getrandom(part).and_then(|()| writer.write(part)).is_ok_and(|len| len > 0) {
            break;
        }
    }
    Ok(writer.bytes_written() as u32)
}

fn getrandom(buffer: &mut [u8]) -> io::Result<()> {
    // SAFETY: the pointer and length are those of `buffer`. Up to 256 bytes at once never come short (getrandom(2)).
    let fill = |part: &mut [u8]| unsafe { libc::getrandom(part.as_mut_ptr().cast(), part.len(), 0) };
    for part in buffer.chunks_mut(256) {
        if fill(part) != part.len() as isize {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::virtio::testing::{DATA, Driver, HOLE, guest_ram, open_msix, readable, writable};
    use vm_memory::{Bytes, GuestAddress};

    #[test]
    fn buffers_are_filled_with_different_bytes_and_no_more() {
        let (memory, (_, msix)) = (guest_ram(), open_msix(1));
        let mut driver = Driver::new(&memory, 0, 64);
        let mut queues = Queues(vec![Some(driver.device(true, &msix))]);
        let device = Rng::default();
        let mut rng = RngHandler { bytes: Arc::clone(&device.bytes) };
        driver.offer(&[writable(DATA, 32), readable(DATA + 100, 8), writable(DATA + 40, 1500)]);
        driver.offer(&[writable(DATA + 0x1000, 32)]);
        driver.offer(&[readable(DATA + 0x2000, 32)]);
        driver.offer(&[writable(DATA + 0x1_0000, (MAX_REQUEST_BYTES + 512) as u32)]);
        rng.on_queue(&mut queues, 0).unwrap();
        assert_eq!(driver.used(), [(0, 1532), (3, 32), (4, 0), (5, MAX_REQUEST_BYTES as u32)]);
        let bytes = |address: u64, len: usize| {
            let mut bytes = vec![0; len];
            memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
            bytes
        };
        assert_ne!(bytes(DATA, 32), bytes(DATA + 0x1000, 32));
        assert_eq!(bytes(DATA + 32, 8), [0; 8], "between two buffers");
        assert_ne!(bytes(DATA + 40 + 1468, 32), [0; 32], "to the very end");
        assert_eq!(bytes(DATA + 0x2000, 32), [0; 32], "a buffer to read from");
        assert_eq!(bytes(DATA + 0x1_0000 + MAX_REQUEST_BYTES as u64, 512), [0; 512], "bounded");
        assert_eq!(device.counters()()["bytes"], 1532 + 32 + MAX_REQUEST_BYTES as u64);
    }

    #[test]
    fn a_buffer_outside_memory_is_a_fault() {
        let (memory, (_, msix)) = (guest_ram(), open_msix(1));
        let mut driver = Driver::new(&memory, 0, 64);
        let mut queues = Queues(vec![Some(driver.device(true, &msix))]);
        driver.offer(&[writable(HOLE - 8, 16)]);
        assert!(RngHandler { bytes: Arc::default() }.on_queue(&mut queues, 0).is_err());
        assert_eq!(memory.read_obj::<u64>(GuestAddress(HOLE - 8)).unwrap(), 0);
    }
}
