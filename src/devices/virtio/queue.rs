//! A device's view of one virtqueue: take a chain, give it back, interrupt when the driver asked for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use super::Fault;
use super::common::QueueSetup;
use crate::devices::pci::msix::Msix;

/// ISR status: a queue was used (virtio 1.2 §4.1.4.5).
pub const ISR_QUEUE: u8 = 1;
/// ISR status: the configuration changed.
pub const ISR_CONFIG: u8 = 2;

/// One descriptor chain, borrowed from guest memory.
pub type Chain<'m> = DescriptorChain<&'m GuestMemoryMmap>;

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
}

/// One virtqueue the driver enabled.
#[derive(Debug)]
pub struct DeviceQueue {
    queue: Queue,
    memory: GuestMemoryMmap,
    interrupt: Interrupt,
    notify: EventFd,
    /// Chains were given back that no interrupt has announced.
    unannounced: bool,
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

    fn is_asked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// VIRTQ_AVAIL_F_NO_INTERRUPT (virtio 1.2 §2.7.7).
const NO_INTERRUPT: u16 = 1;

impl DeviceQueue {
    /// A queue whose rings were checked to lie in `memory`. `notify` is its doorbell.
    #[must_use]
    pub fn new(queue: Queue, memory: GuestMemoryMmap, interrupt: Interrupt, notify: EventFd) -> Self {
        Self { queue, memory, interrupt, notify, unannounced: false, leave: Leave::default() }
    }

    /// The doorbell.
    #[must_use]
    pub fn notify(&self) -> &EventFd {
        &self.notify
    }

    /// Serves every chain that is available: `serve` returns how many bytes it wrote into the chain.
    ///
    /// A driver that adds chains as fast as they are served gets one ring's worth, then its doorbell rings again, so a
    /// worker always comes back to look at its other events. One that is asked to [`Leave`] gets the chain it is in.
    ///
    /// # Errors
    /// What `serve` returns, and a broken ring.
    pub fn serve(
        &mut self,
        mut serve: impl FnMut(&GuestMemoryMmap, Chain<'_>) -> Result<u32, Fault>,
    ) -> Result<(), Fault> {
        let mut budget = self.queue.size();
        loop {
            self.queue.disable_notification(&self.memory)?;
            while let Some(chain) = self.queue.iter(&self.memory)?.next() {
                let head = chain.head_index();
                let written = serve(&self.memory, chain)?;
                self.give_back(head, written)?;
                budget = budget.saturating_sub(1);
                if budget == 0 || self.leave.is_asked() {
                    break;
                }
            }
            self.interrupt_if_wanted()?;
            if !self.queue.enable_notification(&self.memory)? || self.leave.is_asked() {
                return Ok(());
            }
            if budget == 0 {
                // Fails only when the doorbell's counter is full, and then it rings anyway.
                let _ = self.notify.write(1);
                return Ok(());
            }
        }
    }

    /// Serves at most one chain; `false` when there is none.
    ///
    /// # Errors
    /// What `serve` returns, and a broken ring.
    pub fn serve_one(
        &mut self,
        serve: impl FnOnce(&GuestMemoryMmap, Chain<'_>) -> Result<u32, Fault>,
    ) -> Result<bool, Fault> {
        let mut next = self.queue.iter(&self.memory)?.next();
        // Nothing there: the driver is to ring when there is, and may have added a chain before it could know.
        if next.is_none() && self.queue.enable_notification(&self.memory)? {
            next = self.queue.iter(&self.memory)?.next();
        }
        let Some(chain) = next else { return Ok(false) };
        let head = chain.head_index();
        let written = serve(&self.memory, chain)?;
        self.give_back(head, written)?;
        self.interrupt_if_wanted()?;
        Ok(true)
    }

    fn give_back(&mut self, head: u16, written: u32) -> Result<(), Fault> {
        self.queue.add_used(&self.memory, head, written)?;
        self.unannounced = true;
        Ok(())
    }

    fn interrupt_if_wanted(&mut self) -> Result<(), Fault> {
        let unannounced = std::mem::take(&mut self.unannounced);
        // The queue decides by EVENT_IDX, and says yes without it; then the driver's flag counts.
        if unannounced && self.queue.needs_notification(&self.memory)? && !self.is_muted()? {
            self.interrupt.signal();
        }
        Ok(())
    }

    fn is_muted(&self) -> Result<bool, Fault> {
        if self.queue.event_idx_enabled() {
            return Ok(false);
        }
        let flags = self.memory.load(GuestAddress(self.queue.avail_ring()), Ordering::Relaxed);
        Ok(flags.map(u16::from_le).map_err(virtio_queue::Error::GuestMemory)? & NO_INTERRUPT != 0)
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

    /// From now on every queue listens to the same request to leave.
    #[must_use]
    pub fn listen(&mut self) -> Leave {
        let leave = Leave::default();
        for queue in self.0.iter_mut().flatten() {
            queue.leave = leave.clone();
        }
        leave
    }
}

#[cfg(test)]
mod tests;
