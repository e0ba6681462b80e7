//! virtio-rng (virtio 1.2 §5.4): the host's random bytes.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::queue::{Chain, Fate, Queues, Writer};
use super::{Counters, Fault, HostSource, Kind, Lane, Listen, QueueHandler, Start, VirtioDevice};
use crate::backend::random;
use crate::devices::rate_limit::{Admission, Rate, RateLimit};

/// The most bytes one request gets. A driver asks again for more (virtio 1.2 §5.4.6.1 lets a device return fewer).
const MAX_REQUEST_BYTES: usize = 64 << 10;

/// The entropy device.
#[derive(Debug, Default)]
pub struct Rng(Arc<Shared>);

/// What outlives a reset by the driver: the limit too, or a reset would fill its bucket.
#[derive(Debug, Default)]
struct Shared {
    bytes: AtomicU64,
    limit: Option<Mutex<RateLimit>>,
}

impl Rng {
    /// An entropy device; the guest gets at most so many bytes per second, and a second's worth at once.
    ///
    /// # Errors
    /// When the kernel has no timer for the limit.
    pub fn new(bytes_per_second: Option<u64>) -> io::Result<Self> {
        let limit = RateLimit::new(bytes_per_second.map(Rate::new), None)?.map(Mutex::new);
        Ok(Self(Arc::new(Shared { bytes: AtomicU64::new(0), limit })))
    }
}

impl Shared {
    fn limit(&self) -> Option<MutexGuard<'_, RateLimit>> {
        self.limit.as_ref().map(|limit| limit.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl VirtioDevice for Rng {
    fn kind(&self) -> Kind {
        Kind { id: 4, name: "virtio-rng", class: [0x00, 0xff] }
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![64]
    }

    fn start(&self, _start: Start<'_>) -> Result<Vec<Lane>, Fault> {
        Ok(Lane::all(1, RngHandler(Arc::clone(&self.0))))
    }

    fn counters(&self) -> Counters {
        let shared = Arc::clone(&self.0);
        Box::new(move || {
            let mut counters = BTreeMap::from([("bytes".into(), shared.bytes.load(Ordering::Relaxed))]);
            if let Some(limit) = shared.limit() {
                counters.insert("waits".into(), limit.waits());
            }
            counters
        })
    }
}

/// Fills the driver's buffers.
#[derive(Debug)]
struct RngHandler(Arc<Shared>);

impl RngHandler {
    /// Fills one chain, unless the limit has it wait.
    fn serve(&self, chain: Chain<'_>) -> Result<Fate, Fault> {
        let mut writer = chain.writer()?;
        let wanted = writer.available_bytes().min(MAX_REQUEST_BYTES);
        if let Some(mut limit) = self.0.limit()
            && limit.admit(wanted as u64) == Admission::Wait
        {
            return Ok(Fate::Later);
        }
        let written = fill(&mut writer, wanted);
        self.0.bytes.fetch_add(u64::from(written), Ordering::Relaxed);
        Ok(Fate::Used(written))
    }
}

impl QueueHandler for RngHandler {
    fn on_queue(&mut self, queues: &mut Queues, index: usize) -> Result<(), Fault> {
        let Some(queue) = queues.get(index) else { return Ok(()) };
        queue.serve(|_, chain| self.serve(chain))
    }

    fn host_sources(&self) -> Vec<HostSource> {
        self.0.limit().iter().map(|limit| HostSource::new(limit.fd())).collect()
    }

    /// The limit's timer: what had to wait is worth another look.
    fn on_host(&mut self, queues: &mut Queues, _source: usize) -> Result<Listen, Fault> {
        if let Some(mut limit) = self.0.limit() {
            limit.settle();
        }
        self.on_queue(queues, 0)?;
        Ok(Listen::Yes)
    }
}

/// Writes up to `wanted` random bytes; how many there were.
fn fill(writer: &mut Writer<'_>, wanted: usize) -> u32 {
    let mut random = [0; 1024];
    loop {
        let missing = wanted.saturating_sub(writer.bytes_written());
        let Some(part @ [_, ..]) = random.get_mut(..missing.min(1024)) else { break };
        if !random::fill(part).and_then(|()| writer.write(part)).is_ok_and(|len| len > 0) {
            break;
        }
    }
    writer.bytes_written() as u32
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
        let mut rng = RngHandler(Arc::clone(&device.0));
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
    fn a_request_beyond_the_limit_waits_for_the_timer_also_after_a_reset() {
        let (memory, (_, msix)) = (guest_ram(), open_msix(1));
        let mut driver = Driver::new(&memory, 0, 64);
        let device = Rng::new(Some(10_000)).unwrap();
        let mut queues = Queues(vec![Some(driver.device(true, &msix))]);
        let mut rng = RngHandler(Arc::clone(&device.0));
        for _ in 0..3 {
            driver.offer(&[writable(DATA, 10_500)]);
        }
        rng.on_queue(&mut queues, 0).unwrap();
        assert_eq!(driver.used(), [(0, 10_500)], "a burst of a second, and a debt");
        assert_eq!(device.counters()()["waits"], 1);
        // The driver resets the device and begins anew.
        driver.clear();
        let mut driver = Driver::new(&memory, 0, 64);
        let mut queues = Queues(vec![Some(driver.device(true, &msix))]);
        let mut rng = RngHandler(Arc::clone(&device.0));
        driver.offer(&[writable(DATA, 100)]);
        rng.on_queue(&mut queues, 0).unwrap();
        assert_eq!(driver.used(), [], "the debt is still there");
        let [HostSource { fd, pending: false }] = rng.host_sources()[..] else { panic!("a timer") };
        let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        // SAFETY: one pollfd of this stack frame.
        assert_eq!(unsafe { libc::poll(&raw mut poll, 1, 30_000) }, 1);
        assert_eq!(rng.on_host(&mut queues, 0).unwrap(), Listen::Yes);
        assert_eq!(driver.used(), [(0, 100)]);
    }

    #[test]
    fn a_buffer_outside_memory_is_a_fault() {
        let (memory, (_, msix)) = (guest_ram(), open_msix(1));
        let mut driver = Driver::new(&memory, 0, 64);
        let mut queues = Queues(vec![Some(driver.device(true, &msix))]);
        driver.offer(&[writable(HOLE - 8, 16)]);
        assert!(RngHandler(Arc::default()).on_queue(&mut queues, 0).is_err());
        assert_eq!(memory.read_obj::<u64>(GuestAddress(HOLE - 8)).unwrap(), 0);
    }
}
