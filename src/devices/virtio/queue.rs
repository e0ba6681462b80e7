//! A device's view of one virtqueue: take a chain, give it back, interrupt when the driver asked for it.

mod chain;
mod ring;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

pub use self::chain::{Chain, Reader, Writer, runs};
use self::ring::Ring;
use super::Fault;
use super::common::QueueSetup;
use crate::devices::eventfd;
use crate::devices::pci::msix::Msix;

/// ISR status: a queue was used (virtio 1.2 §4.1.4.5).
pub const ISR_QUEUE: u8 = 1;
/// ISR status: the configuration changed.
pub const ISR_CONFIG: u8 = 2;

/// Signals one of a function's interrupts.
#[derive(Debug, Clone)]
pub struct Interrupt {
    /// The function's vectors.
    pub msix: Arc<Msix>,
    /// The vector the driver chose, which may be none (0xffff).
    pub vector: u16,
    /// ISR status, for a driver without MSI-X.
    pub isr: Arc<AtomicU8>,
    /// The ISR bit to set.
    pub cause: u8,
}

impl Interrupt {
    /// Raises it.
    pub fn signal(&self) {
        self.isr.fetch_or(self.cause, Ordering::Relaxed);
        self.msix.signal(self.vector);
    }

    /// The eventfd that raises it, for the kernel or another process to write: see [`Msix::lend`]. A queue without a vector
    /// gets one that raises nothing.
    ///
    /// # Errors
    /// When there is no descriptor for it.
    pub fn lend(&self) -> io::Result<EventFd> {
        match self.msix.lend(self.vector)? {
            Some(event) => Ok(event),
            None => EventFd::new(libc::EFD_NONBLOCK),
        }
    }
}

/// What becomes of a chain that was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It goes back, with this many bytes written into it.
    Used(u32),
    /// The device keeps it, and gives it back later with [`DeviceQueue::complete`].
    Kept,
    /// It stays in the ring, and what comes after it too: the device has no room now.
    Later,
}

impl From<u32> for Fate {
    fn from(written: u32) -> Self {
        Self::Used(written)
    }
}

/// One virtqueue the driver enabled.
#[derive(Debug)]
pub struct DeviceQueue {
    /// Its place and size, as the driver set them.
    queue: Queue,
    ring: Ring,
    interrupt: Interrupt,
    notify: EventFd,
    /// How often the doorbell was rung by us.
    own_rings: u64,
    /// Chains the device keeps.
    kept: u16,
    /// Chains given back that no interrupt has announced, as the ring counts.
    unannounced: u16,
    leave: Leave,
}

/// Asks a worker to leave its queues; it looks between two chains.
#[derive(Debug, Clone, Default)]
pub struct Leave(Arc<AtomicBool>);

impl Leave {
    /// Asks.
    pub fn ask(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Takes the request back.
    pub fn stay(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    fn is_asked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl DeviceQueue {
    /// A queue whose rings lie in `memory`. `notify` is its doorbell.
    ///
    /// # Errors
    /// When they do not, each in one run.
    pub fn new(
        queue: Queue,
        memory: GuestMemoryMmap,
        interrupt: Interrupt,
        notify: EventFd,
    ) -> Result<Self, Fault> {
        Ok(Self {
            ring: Ring::new(&queue, memory)?,
            queue,
            interrupt,
            notify,
            own_rings: 0,
            kept: 0,
            unannounced: 0,
            leave: Leave::default(),
        })
    }

    /// The doorbell.
    #[must_use]
    pub fn notify(&self) -> &EventFd {
        &self.notify
    }

    /// Where the rings are and how large, for a device whose queues the kernel or another process serves.
    #[must_use]
    pub fn ring(&self) -> &Queue {
        &self.queue
    }

    /// The interrupt that announces used chains.
    #[must_use]
    pub fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    /// Takes the doorbell's count: how often the driver rang since the last call.
    pub fn take_rings(&mut self) -> u64 {
        let rings = self.notify.read().unwrap_or(0);
        let own = std::mem::take(&mut self.own_rings);
        rings.saturating_sub(own)
    }

    /// Rings the doorbell ourselves: the queue is to be served again.
    pub fn ring_again(&mut self) {
        // Fails only when the doorbell's counter is full, and then it rings anyway.
        if eventfd::ring(&self.notify) {
            self.own_rings = self.own_rings.saturating_add(1);
        }
    }

    /// Serves every chain that is available: `serve` says what becomes of each.
    ///
    /// A driver that adds chains as fast as they are served gets one ring's worth, then its doorbell rings again, so a
    /// worker always comes back to look at its other events. One that is asked to [`Leave`] gets the chain it is in. After
    /// [`Fate::Later`] the doorbell is not asked for: the device serves again when it has room.
    ///
    /// # Errors
    /// What `serve` returns, and a broken ring.
    pub fn serve<F: Into<Fate>>(
        &mut self,
        mut serve: impl FnMut(&GuestMemoryMmap, Chain<'_>) -> Result<F, Fault>,
    ) -> Result<(), Fault> {
        let mut budget = self.ring.size();
        loop {
            self.ring.mute()?;
            while let Some(head) = self.ring.take()? {
                match serve(self.ring.memory(), self.ring.chain(head))?.into() {
                    Fate::Used(written) => self.give_back(head, written)?,
                    Fate::Kept => self.keep()?,
                    Fate::Later => {
                        self.put_back(1);
                        return self.announce();
                    }
                }
                budget = budget.saturating_sub(1);
                if budget == 0 || self.leave.is_asked() {
                    break;
                }
            }
            self.announce()?;
            if !self.ring.listen()? || self.leave.is_asked() {
                return Ok(());
            }
            if budget == 0 {
                self.ring_again();
                return Ok(());
            }
        }
    }

    /// Takes the next chain, if there is one. It goes back by [`DeviceQueue::give_back`], or into the ring by
    /// [`DeviceQueue::put_back`]. When there is none, the driver is asked to ring.
    ///
    /// # Errors
    /// A broken ring.
    pub fn pop(&mut self) -> Result<Option<Chain<'_>>, Fault> {
        if !self.ring.has_more()? && !self.ring.listen()? {
            return Ok(None);
        }
        self.pop_quietly()
    }

    /// As [`DeviceQueue::pop`], for a device that has enough to go on with: the driver is not asked to ring.
    ///
    /// # Errors
    /// A broken ring.
    pub fn pop_quietly(&mut self) -> Result<Option<Chain<'_>>, Fault> {
        Ok(self.ring.take()?.map(|head| self.ring.chain(head)))
    }

    /// Leaves the last `count` popped chains in the ring after all.
    pub fn put_back(&mut self, count: u16) {
        self.ring.put_back(count);
    }

    /// Guest memory.
    #[must_use]
    pub fn memory(&self) -> &GuestMemoryMmap {
        self.ring.memory()
    }

    /// Serves at most one chain; `false` when there is none.
    ///
    /// # Errors
    /// What `serve` returns, and a broken ring.
    pub fn serve_one(
        &mut self,
        serve: impl FnOnce(&GuestMemoryMmap, Chain<'_>) -> Result<u32, Fault>,
    ) -> Result<bool, Fault> {
        // Nothing there: the driver is to ring when there is, and may have added a chain before it could know.
        if !self.ring.has_more()? && !self.ring.listen()? {
            return Ok(false);
        }
        let Some(head) = self.ring.take()? else { return Ok(false) };
        let written = serve(self.ring.memory(), self.ring.chain(head))?;
        self.give_back(head, written)?;
        self.announce()?;
        Ok(true)
    }

    /// A driver that makes more chains available than its ring has descriptors offers some of them twice.
    fn keep(&mut self) -> Result<(), Fault> {
        self.kept = self.kept.saturating_add(1);
        if self.kept <= self.ring.size() { Ok(()) } else { Err(Fault::Chain("a chain is offered twice")) }
    }

    /// Chains kept and not yet given back.
    #[must_use]
    pub fn kept(&self) -> u16 {
        self.kept
    }

    /// Gives back a chain that was kept ([`Fate::Kept`]). [`DeviceQueue::announce`] tells the driver.
    ///
    /// # Errors
    /// A broken ring.
    pub fn complete(&mut self, head: u16, written: u32) -> Result<(), Fault> {
        self.kept = self.kept.saturating_sub(1);
        self.give_back(head, written)
    }

    /// Gives a popped chain back, with `written` bytes written into it. [`DeviceQueue::announce`] tells the driver.
    ///
    /// # Errors
    /// A broken ring.
    pub fn give_back(&mut self, head: u16, written: u32) -> Result<(), Fault> {
        self.give_back_together(&[(head, written)])
    }

    /// Gives popped chains back that belong together: the driver sees all of them or none.
    ///
    /// # Errors
    /// A broken ring.
    pub fn give_back_together(&mut self, used: &[(u16, u32)]) -> Result<(), Fault> {
        self.ring.give_back(used)?;
        // Modulo 2^16, as the ring counts.
        self.unannounced = self.unannounced.wrapping_add(used.len() as u16);
        Ok(())
    }

    /// Interrupts the driver if chains were given back and it wants to know.
    ///
    /// # Errors
    /// A broken ring.
    pub fn announce(&mut self) -> Result<(), Fault> {
        let added = std::mem::take(&mut self.unannounced);
        if added != 0 && self.ring.wants_interrupt(added)? {
            self.interrupt.signal();
        }
        Ok(())
    }
}

/// The driver's ring, checked to be aligned and to lie in guest memory.
///
/// # Errors
/// When it is not.
pub fn ring(setup: &QueueSetup, event_idx: bool, memory: &GuestMemoryMmap) -> Result<Queue, Fault> {
    let mut queue = Queue::new(setup.max_size)?;
    queue.try_set_size(setup.size)?;
    queue.try_set_desc_table_address(GuestAddress(setup.desc))?;
    queue.try_set_avail_ring_address(GuestAddress(setup.driver))?;
    queue.try_set_used_ring_address(GuestAddress(setup.device))?;
    queue.set_event_idx(event_idx);
    queue.set_ready(true);
    if queue.is_valid(memory) { Ok(queue) } else { Err(Fault::Chain("a ring lies outside guest memory")) }
}

/// A device's queues by index; one the driver did not enable is not there.
#[derive(Debug, Default)]
pub struct Queues(pub Vec<Option<DeviceQueue>>);

impl Queues {
    /// Queue `index`, if the driver enabled it.
    pub fn get(&mut self, index: usize) -> Option<&mut DeviceQueue> {
        self.0.get_mut(index)?.as_mut()
    }

    /// Takes queue `index` out.
    pub fn take(&mut self, index: usize) -> Option<DeviceQueue> {
        self.0.get_mut(index)?.take()
    }

    /// The queues of these indices, taken out; the rest of the places are empty.
    #[must_use]
    pub fn split_off(&mut self, indices: &[usize]) -> Self {
        let taken = self
            .0
            .iter_mut()
            .enumerate()
            .map(|(index, queue)| if indices.contains(&index) { queue.take() } else { None });
        Self(taken.collect())
    }

    /// From now on every queue listens to the same request to leave.
    pub fn listen(&mut self, leave: &Leave) {
        for queue in self.0.iter_mut().flatten() {
            queue.leave = leave.clone();
        }
    }
}

#[cfg(test)]
mod tests;
