//! A guest of sorts: RAM, a driver's end of a device's rings, and the device's own threads behind them.
//!
//! The driver's end is as cheap as one can be, for it is not what is measured: descriptors are written once, chains are
//! offered in batches, and doorbell and interrupt are used as EVENT_IDX says (virtio 1.2 §2.7.7, §2.7.10).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};

use nestling::devices::pci::msix::Msix;
use nestling::devices::registers::RegisterPages;
use nestling::devices::virtio::queue::Queues;
use nestling::devices::virtio::testing::{Buffer, Driver};
use nestling::devices::virtio::transport::ConfigChange;
use nestling::devices::virtio::worker::Workers;
use nestling::devices::virtio::{F_EVENT_IDX, F_VERSION_1, Start, VirtioDevice};
use nestling::devices::wiring::{Gsi, MsiMessage, Wiring};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, VolatileSlice};
use vmm_sys_util::eventfd::EventFd;

use super::Signals;
use crate::Result;

/// Entries of every ring.
pub(crate) const RING: u16 = 256;
/// Bytes of RAM.
const RAM_BYTES: usize = 64 << 20;
/// First address no ring uses.
pub(crate) const DATA: u64 = 1 << 20;
/// Longer than a device ever takes.
const PATIENCE_MS: u16 = 10_000;

/// VIRTQ_DESC_F_NEXT.
const NEXT: u16 = 1;
/// VIRTQ_DESC_F_WRITE.
const WRITE: u16 = 2;

/// RAM for guests, one after the other. It is never given back: there is one for each row of a table.
pub(crate) fn ram() -> Result<&'static GuestMemoryMmap> {
    Ok(Box::leak(Box::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM_BYTES)])?)))
}

/// Interrupts as descriptors that the driver waits for, as KVM would.
#[derive(Debug, Default)]
struct Interrupts(Mutex<Vec<EventFd>>);

impl Interrupts {
    fn get(&self, vector: usize) -> io::Result<EventFd> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(vector).ok_or(io::ErrorKind::NotFound)?.try_clone()
    }
}

impl Wiring for Interrupts {
    fn new_msi(&self) -> io::Result<(Gsi, EventFd)> {
        let event = EventFd::new(libc::EFD_NONBLOCK)?;
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.push(event.try_clone()?);
        Ok((all.len() as Gsi - 1, event))
    }

    fn detach_msi(&self, _gsi: Gsi, _event: &EventFd) -> io::Result<()> {
        Ok(())
    }

    fn attach_msi(&self, _gsi: Gsi, _event: &EventFd) -> io::Result<()> {
        Ok(())
    }

    fn route_msi(&self, _routes: &[(Gsi, Option<MsiMessage>)]) -> io::Result<()> {
        Ok(())
    }

    fn attach_doorbell(&self, _gpa: u64, _event: &EventFd) -> io::Result<()> {
        Ok(())
    }

    fn detach_doorbell(&self, _gpa: u64, _event: &EventFd) -> io::Result<()> {
        Ok(())
    }

    fn map_readable(&self, _slot: u32, _gpa: Option<u64>, _pages: &RegisterPages) -> io::Result<()> {
        Ok(())
    }
}

/// A device whose driver is ready.
pub(crate) struct Guest {
    pub(crate) rings: Vec<Ring>,
    workers: Workers,
    doorbells: Arc<AtomicU64>,
    device: Arc<dyn VirtioDevice>,
}

impl Guest {
    /// Starts `device` with these features of its own, as its driver would.
    pub(crate) fn start(
        device: Arc<dyn VirtioDevice>,
        features: u64,
        memory: &'static GuestMemoryMmap,
    ) -> Result<Self> {
        let count = device.queue_sizes().len() as u16;
        let interrupts = Arc::new(Interrupts::default());
        let wiring = Arc::clone(&interrupts) as Arc<dyn Wiring>;
        let msix = Arc::new(Msix::new(RegisterPages::new(1)?, count, wiring)?);
        msix.set_control(0x8000);
        (0..usize::from(count)).for_each(|vector| msix.write_table(vector * 16 + 12, &[0; 4]));
        let (mut rings, mut queues) = (Vec::new(), Vec::new());
        for index in 0..count {
            let driver = Driver::new(memory, index, RING);
            driver.clear();
            let queue = driver.device(true, &msix);
            let interrupt = interrupts.get(usize::from(index))?;
            rings.push(Ring::new(memory, driver.addresses(), queue.notify().try_clone()?, interrupt)?);
            queues.push(Some(queue));
        }
        let mut queues = Queues(queues);
        let features = features | F_EVENT_IDX | F_VERSION_1;
        let config = ConfigChange::unheard(&device);
        let lanes = device.start(Start { features, memory, queues: &mut queues, config })?;
        let doorbells = Arc::default();
        let on_fault = Box::new(|fault| eprintln!("nestling-bench: the device stopped: {fault}"));
        let workers = Workers::spawn(device.kind().name, lanes, queues, &doorbells, on_fault)?;
        Ok(Self { rings, workers, doorbells, device })
    }

    /// The doorbells and interrupts so far.
    pub(crate) fn signals(&mut self) -> Signals {
        let interrupts = self.rings.iter_mut().map(Ring::interrupts).sum();
        Signals { doorbells: self.doorbells.load(Ordering::Relaxed), interrupts }
    }

    /// Ends the device's threads.
    pub(crate) fn stop(self) {
        self.workers.stop();
        self.device.stop();
    }
}

/// A driver's end of one ring. What a chain is made of stays as it is described first.
pub(crate) struct Ring {
    table: VolatileSlice<'static>,
    available: VolatileSlice<'static>,
    used: VolatileSlice<'static>,
    bell: EventFd,
    interrupt: EventFd,
    interrupts: u64,
    /// The available index, and what the device knows of it.
    offered: u16,
    published: u16,
    /// What was taken of the used ring.
    taken: u16,
}

impl Ring {
    fn new(
        memory: &'static GuestMemoryMmap,
        [table, available, used]: [u64; 3],
        bell: EventFd,
        interrupt: EventFd,
    ) -> Result<Self> {
        let slice = |at, bytes| memory.get_slice(GuestAddress(at), bytes);
        let size = usize::from(RING);
        Ok(Self {
            table: slice(table, 16 * size)?,
            available: slice(available, 6 + 2 * size)?,
            used: slice(used, 6 + 8 * size)?,
            bell,
            interrupt,
            interrupts: 0,
            offered: 0,
            published: 0,
            taken: 0,
        })
    }

    /// Says which buffers a chain has: descriptor `head` and those behind it.
    pub(crate) fn describe(&self, head: u16, chain: &[Buffer]) -> Result<()> {
        for (index, buffer) in (head..).zip(chain) {
            let more = usize::from(index - head) + 1 < chain.len();
            let flags = if buffer.writable { WRITE } else { 0 } | if more { NEXT } else { 0 };
            let at = 16 * usize::from(index);
            self.table.write_obj(buffer.address, at)?;
            self.table.write_obj(buffer.len, at + 8)?;
            self.table.write_obj(flags, at + 12)?;
            self.table.write_obj(index + 1, at + 14)?;
        }
        Ok(())
    }

    /// Offers the chain that begins with descriptor `head`; the device sees it when [`Ring::publish`] says so.
    pub(crate) fn offer(&mut self, head: u16) -> Result<()> {
        self.available.store(head, 4 + 2 * usize::from(self.offered % RING), Ordering::Relaxed)?;
        self.offered = self.offered.wrapping_add(1);
        Ok(())
    }

    /// Shows the device what was offered, and rings if it wants that.
    pub(crate) fn publish(&mut self) -> Result<()> {
        if self.offered == self.published {
            return Ok(());
        }
        self.available.store(self.offered, 2, Ordering::Release)?;
        fence(Ordering::SeqCst);
        let event: u16 = self.used.load(4 + 8 * usize::from(RING), Ordering::Relaxed)?;
        let fresh = self.offered.wrapping_sub(self.published);
        self.published = self.offered;
        if self.offered.wrapping_sub(event.wrapping_add(1)) < fresh {
            self.bell.write(1)?;
        }
        Ok(())
    }

    /// The descriptor whose turn it is when chains are given back in order.
    pub(crate) fn next_head(&self) -> u16 {
        self.offered % RING
    }

    /// Chains the device has and has not given back.
    pub(crate) fn pending(&self) -> u16 {
        self.offered.wrapping_sub(self.taken)
    }

    /// Head and length of the next chain that was given back, if there is one.
    pub(crate) fn take(&mut self) -> Result<Option<(u16, u32)>> {
        if self.used.load::<u16>(2, Ordering::Acquire)? == self.taken {
            return Ok(None);
        }
        let element: u64 = self.used.read_obj(4 + 8 * usize::from(self.taken % RING))?;
        self.taken = self.taken.wrapping_add(1);
        Ok(Some((element as u16, (element >> 32) as u32)))
    }

    /// Sleeps until `chains` more are given back, or already were.
    pub(crate) fn wait(&mut self, chains: u16) -> Result<()> {
        let chains = chains.max(1);
        loop {
            let wanted = self.taken.wrapping_add(chains - 1);
            self.available.store(wanted, 4 + 2 * usize::from(RING), Ordering::Relaxed)?;
            fence(Ordering::SeqCst);
            let used: u16 = self.used.load(2, Ordering::Acquire)?;
            if used.wrapping_sub(self.taken) >= chains {
                return Ok(());
            }
            let mut waits = [PollFd::new(self.interrupt_fd(), PollFlags::POLLIN)];
            if poll(&mut waits, PollTimeout::from(PATIENCE_MS))? == 0 {
                return Err(format!("the device gave nothing back for {PATIENCE_MS} ms").into());
            }
            self.interrupts += self.interrupt.read().unwrap_or(0);
        }
    }

    fn interrupt_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the eventfd lives as long as `self`, which the result borrows.
        unsafe { BorrowedFd::borrow_raw(self.interrupt.as_raw_fd()) }
    }

    fn interrupts(&mut self) -> u64 {
        self.interrupts += self.interrupt.read().unwrap_or(0);
        self.interrupts
    }
}
