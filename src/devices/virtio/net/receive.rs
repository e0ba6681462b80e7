//! The receive queue (virtio 1.2 §5.1.6.3, §5.1.6.4): frames are read straight into the guest's buffers.
//!
//! How long a frame is, is known only when it is read. So buffers for the longest one are taken from the ring beforehand,
//! as far as the driver gave them, and kept for the next frame where one did not need them. What a frame has beyond them
//! goes into memory of ours until the driver gives more. While no frame is longer than the MTU, the kernel gets only the
//! buffers for such a one: a list of buffers for 64 KiB costs it more than a small frame does.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;

use virtio_queue::QueueT;
use vm_memory::GuestMemoryMmap;

use super::Shared;
use super::features::{GUEST_CSUM, MRG_RXBUF, guest_offloads};
use super::filter::{DECIDING_BYTES, Filter};
use super::header::{ETHERNET_BYTES, MAX_FRAME, NUM_BUFFERS_AT};
use super::scatter::{MAX_PIECES, Scatter};
use crate::backend::tap::HEADER_BYTES;
use crate::devices::rate_limit::{Admission, RateLimit};
use crate::devices::virtio::queue::DeviceQueue;
use crate::devices::virtio::{Fault, Listen};

/// Frames per wake, so that a lane's other queues get their turn.
const BATCH: usize = 256;
/// After so many frames in a row that are no longer than the MTU, the next one is expected to be so too. When it is not, the
/// rest of it is copied once.
const SMALL_IN_A_ROW: u32 = 64;
/// Bytes of a VLAN tag, which the MTU does not count.
const TAG_BYTES: usize = 4;

/// A chain taken from the ring.
#[derive(Debug)]
struct Taken {
    head: u16,
    pieces: usize,
    bytes: usize,
}

/// A frame that is longer than the buffers it was read into.
#[derive(Debug, Clone, Copy)]
struct Held {
    len: usize,
    /// How much of it is in the buffers; the rest is in the spill.
    stored: usize,
}

/// What became of the rest of a frame that is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rest {
    /// It is in the buffers.
    Stored,
    /// There is no room for it yet.
    Waits,
    /// There never will be.
    Hopeless,
}

/// Receives for one lane.
#[derive(Debug)]
pub(super) struct Receiver {
    scatter: Scatter,
    taken: VecDeque<Taken>,
    spill: Box<[u8]>,
    held: Option<Held>,
    /// Bytes the longest frame needs, its header included.
    wanted: usize,
    /// Bytes a frame of the MTU needs, and how many in a row have needed no more.
    small: usize,
    small_in_a_row: u32,
    mergeable: bool,
    /// The driver takes frames with unfinished checksums, so it knows the flags about them.
    checksum: bool,
    /// Heads and lengths of one frame, kept for its memory.
    used: Vec<(u16, u32)>,
}

impl Receiver {
    pub(super) fn new(memory: GuestMemoryMmap, features: u64, mtu: u16) -> Self {
        let small = usize::from(mtu).saturating_add(ETHERNET_BYTES.saturating_add(TAG_BYTES));
        let frame = if guest_offloads(features).large_frames() { MAX_FRAME } else { small };
        Self {
            scatter: Scatter::new(memory),
            taken: VecDeque::new(),
            spill: vec![0; HEADER_BYTES.saturating_add(MAX_FRAME)].into(),
            held: None,
            wanted: frame.saturating_add(HEADER_BYTES),
            small: small.saturating_add(HEADER_BYTES),
            small_in_a_row: 0,
            mergeable: features & MRG_RXBUF != 0,
            checksum: features & GUEST_CSUM != 0,
            used: Vec::new(),
        }
    }

    /// Moves frames from the host to the guest while there are both frames and buffers.
    pub(super) fn receive(
        &mut self,
        queue: &mut DeviceQueue,
        host: &OwnedFd,
        shared: &Shared,
        limit: &mut Option<RateLimit>,
    ) -> Result<Listen, Fault> {
        let listen = self.receive_batch(queue, host, shared, limit);
        queue.announce()?;
        listen
    }

    fn receive_batch(
        &mut self,
        queue: &mut DeviceQueue,
        host: &OwnedFd,
        shared: &Shared,
        limit: &mut Option<RateLimit>,
    ) -> Result<Listen, Fault> {
        let filter = shared.filter();
        for _ in 0..BATCH {
            let grew = self.take_buffers(queue)?;
            if self.taken.is_empty() {
                return Ok(Listen::Later);
            }
            let len = match self.held {
                Some(held) => match self.complete(held, queue)? {
                    Rest::Stored => held.len,
                    Rest::Waits if grew => continue,
                    Rest::Waits => return Ok(Listen::Later),
                    Rest::Hopeless => {
                        self.held = None;
                        shared.counters.rx_dropped.add(1);
                        continue;
                    }
                },
                None => {
                    if limit.as_mut().is_some_and(|limit| limit.ready() == Admission::Wait) {
                        shared.counters.rx_waits.add(1);
                        return Ok(Listen::Later);
                    }
                    let (len, stored) = match self.read_frame(host) {
                        Ok((0, _)) => return Ok(Listen::No),
                        Ok(read) => read,
                        Err(error) => match error.kind() {
                            io::ErrorKind::WouldBlock => return Ok(Listen::Yes),
                            io::ErrorKind::Interrupted => continue,
                            _ => return Ok(shared.lost_host(&error)),
                        },
                    };
                    if let Some(limit) = limit {
                        limit.spend(len.saturating_sub(HEADER_BYTES) as u64);
                    }
                    if len > stored {
                        self.held = Some(Held { len, stored });
                        continue;
                    }
                    len
                }
            };
            self.held = None;
            if !shared.link_is_up() {
                shared.counters.rx_dropped.add(1);
            } else if self.passes(&filter) {
                self.deliver(queue, len)?;
                shared.counters.rx_packets.add(1);
                shared.counters.rx_bytes.add(len.saturating_sub(HEADER_BYTES) as u64);
            } else {
                shared.counters.rx_filtered.add(1);
            }
        }
        Ok(Listen::Yes)
    }

    /// Reads the next frame: its length, and how much of it is in the buffers.
    fn read_frame(&mut self, host: &OwnedFd) -> io::Result<(usize, usize)> {
        let expected = if self.small_in_a_row < SMALL_IN_A_ROW { usize::MAX } else { self.small };
        let (len, stored) = self.scatter.read_frame(host, expected, &mut self.spill)?;
        self.small_in_a_row = if len <= self.small { self.small_in_a_row.saturating_add(1) } else { 0 };
        Ok((len, stored))
    }

    /// Takes buffers for the longest frame, as far as there are; whether there were new ones. When there is nothing to go
    /// on with, the driver is asked to ring.
    fn take_buffers(&mut self, queue: &mut DeviceQueue) -> Result<bool, Fault> {
        let before = self.taken.len();
        while !self.has_enough() {
            let stuck = self.taken.is_empty() || self.held.is_some() && self.taken.len() == before;
            let chain = if stuck { queue.pop()? } else { queue.pop_quietly()? };
            let Some(chain) = chain else { break };
            let head = chain.head_index();
            let (bytes, pieces) = (self.scatter.bytes(), self.scatter.pieces());
            let mut unfinished = false;
            for descriptor in chain {
                if !descriptor.is_write_only() {
                    return Err(Fault::Chain("a receive buffer is not writable"));
                }
                self.scatter.push(&descriptor)?;
                if self.scatter.pieces().saturating_sub(pieces) > MAX_PIECES {
                    return Err(Fault::Chain("a receive buffer is in too many pieces"));
                }
                unfinished = descriptor.has_next();
            }
            let taken = Taken {
                head,
                pieces: self.scatter.pieces().saturating_sub(pieces),
                bytes: self.scatter.bytes().saturating_sub(bytes),
            };
            // virtio 1.2 §5.1.6.3.1: each buffer has room for the header at least.
            if unfinished || taken.bytes < HEADER_BYTES {
                return Err(Fault::Chain("a receive buffer has no room for the header, or no end"));
            }
            self.taken.push_back(taken);
            if self.taken.len() > usize::from(queue.ring().size()) {
                return Err(Fault::Chain("a chain is offered twice"));
            }
        }
        Ok(self.taken.len() > before)
    }

    fn has_enough(&self) -> bool {
        let one = !self.mergeable && !self.taken.is_empty();
        one || self.scatter.bytes() >= self.wanted || self.scatter.pieces() >= MAX_PIECES
    }

    /// Puts the rest of a frame where buffers were added for it.
    fn complete(&self, held: Held, queue: &DeviceQueue) -> Result<Rest, Fault> {
        if self.scatter.bytes() < held.len {
            // When the whole ring cannot hold it, no frame behind it would ever come.
            let all = self.taken.len() >= usize::from(queue.ring().size());
            return Ok(if all || self.has_enough() { Rest::Hopeless } else { Rest::Waits });
        }
        let rest = self.spill.get(..held.len.saturating_sub(held.stored)).unwrap_or_default();
        if !self.scatter.write_at(held.stored, rest) {
            return Err(Fault::Chain("a receive buffer has become shorter"));
        }
        Ok(Rest::Stored)
    }

    fn passes(&self, filter: &Filter) -> bool {
        if filter.promiscuous {
            return true;
        }
        let mut start = [0; DECIDING_BYTES];
        self.scatter.read_at(HEADER_BYTES, &mut start);
        filter.passes(&start)
    }

    /// Gives the guest the frame of `len` bytes that is in the first buffers.
    fn deliver(&mut self, queue: &mut DeviceQueue, len: usize) -> Result<(), Fault> {
        let (mut left, mut pieces) = (len, 0_usize);
        self.used.clear();
        for taken in &self.taken {
            let here = left.min(taken.bytes);
            self.used.push((taken.head, here as u32));
            pieces = pieces.saturating_add(taken.pieces);
            left = left.saturating_sub(here);
            if left == 0 {
                break;
            }
        }
        let buffers = self.used.len();
        self.scatter.write_at(NUM_BUFFERS_AT, &(buffers as u16).to_le_bytes());
        if !self.checksum {
            // virtio 1.2 §5.1.6.4.1: without GUEST_CSUM no flag is set.
            self.scatter.write_at(0, &[0]);
        }
        queue.give_back_together(&self.used)?;
        self.scatter.drop_pieces(pieces);
        self.taken.drain(..buffers.min(self.taken.len()));
        Ok(())
    }

    /// Whether a frame is held that the guest has not got.
    pub(super) fn holds_a_frame(&self) -> bool {
        self.held.is_some()
    }

    /// Leaves the buffers that no frame has needed in the ring.
    pub(super) fn put_back(&mut self, queue: &mut DeviceQueue) {
        queue.put_back(self.taken.len() as u16);
        self.taken.clear();
        self.scatter.clear();
    }
}
