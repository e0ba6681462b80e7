//! The receive queue, as far as one round of serving it may go.

use vm_memory::GuestMemoryMmap;

use super::chain::Room;
use super::header::Header;
use crate::devices::virtio::Fault;
use crate::devices::virtio::queue::DeviceQueue;

/// Room for packets to the guest.
#[derive(Debug)]
pub(super) struct Receive<'q, 'm> {
    queue: &'q mut DeviceQueue,
    memory: &'m GuestMemoryMmap,
    pub(super) guest_cid: u64,
    /// Buffers this round may still take: a driver that adds them as fast as they are filled must not hold the worker.
    budget: u16,
    filled: u32,
    /// Packets that are in their buffers, and that the driver does not see yet.
    unseen: Vec<(u16, u32)>,
}

impl<'q, 'm> Receive<'q, 'm> {
    /// One ring's worth of `queue`.
    pub(super) fn new(queue: &'q mut DeviceQueue, memory: &'m GuestMemoryMmap, guest_cid: u64) -> Self {
        Self { queue, memory, guest_cid, budget: super::QUEUE_SIZE, filled: 0, unseen: Vec::new() }
    }

    /// The next buffer, if there is one and this round may have it. What is not filled is put back.
    pub(super) fn room(&mut self) -> Result<Option<Room<'m>>, Fault> {
        let Some(budget) = self.budget.checked_sub(1) else { return Ok(None) };
        let room = Room::pop(self.memory, self.queue)?;
        if room.is_some() {
            self.budget = budget;
        }
        Ok(room)
    }

    /// Sends a packet whose data is in the buffer already. The driver sees it when [`Receive::show`] says so.
    pub(super) fn fill(&mut self, room: &Room<'m>, header: &Header) {
        self.filled = self.filled.saturating_add(1);
        self.unseen.push(room.fill(header));
    }

    /// Shows the driver what was sent, all at once.
    pub(super) fn show(&mut self) -> Result<(), Fault> {
        self.queue.give_back_together(&self.unseen)?;
        self.unseen.clear();
        Ok(())
    }

    /// The last `count` buffers were not filled.
    pub(super) fn put_back(&mut self, count: u16) {
        self.budget = self.budget.saturating_add(count);
        self.queue.put_back(count);
    }

    /// Packets sent in this round.
    pub(super) fn filled(&self) -> u32 {
        self.filled
    }

    /// Shows the driver the rest of them, and interrupts it. With `more` to send that this round had no budget for, there is another.
    pub(super) fn end(mut self, more: bool) -> Result<(), Fault> {
        self.show()?;
        self.queue.announce()?;
        if more && self.budget == 0 {
            self.queue.ring_again();
        }
        Ok(())
    }
}
