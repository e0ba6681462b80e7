//! A descriptor chain as a packet: the header, and the buffers of its data.
//!
//! The standard does not fix how these are cut into descriptors (§2.7.4), and drivers differ: Linux 6.1 keeps header and data apart,
//! later ones put both into one buffer, or the data into one buffer a page.

use vm_memory::{Bytes, GuestMemoryMmap, VolatileSlice};

use super::header::{HEADER_BYTES, Header};
use crate::devices::virtio::Fault;
use crate::devices::virtio::queue::{Chain, DeviceQueue, runs};

/// A run of guest memory in pieces. Nearly always it is one piece, which takes no memory of ours.
#[derive(Debug, Default)]
pub(super) struct Buffers<'m> {
    first: Option<VolatileSlice<'m>>,
    more: Vec<VolatileSlice<'m>>,
    len: usize,
}

impl<'m> Buffers<'m> {
    /// A chain's header, as far as there is one, and its data. All buffers must be for the device to write, or all to read.
    fn of(memory: &'m GuestMemoryMmap, chain: Chain<'_>, writable: bool) -> Result<(Self, Self), Fault> {
        let (mut header, mut data) = (Self::default(), Self::default());
        let mut ended = false;
        for descriptor in chain {
            if descriptor.is_write_only() != writable {
                return Err(Fault::Chain("a packet's buffer has the wrong direction"));
            }
            runs(memory, &descriptor, |slice| data.push(header.fill_up(HEADER_BYTES, slice)))?;
            if header.more.len().saturating_add(data.more.len()) > MOST_PIECES {
                return Err(Fault::Chain("a packet has more buffers than a queue"));
            }
            ended = !descriptor.has_next();
        }
        if ended { Ok((header, data)) } else { Err(Fault::Chain("a chain of descriptors does not end")) }
    }

    fn push(&mut self, slice: VolatileSlice<'m>) {
        if slice.is_empty() {
            return;
        }
        self.len = self.len.saturating_add(slice.len());
        if self.first.is_none() {
            self.first = Some(slice);
        } else {
            self.more.push(slice);
        }
    }

    /// Adds a slice, but no more than `most` bytes in all; returns the rest of it, which may be empty.
    fn fill_up(&mut self, most: usize, slice: VolatileSlice<'m>) -> VolatileSlice<'m> {
        let taken = most.saturating_sub(self.len).min(slice.len());
        let Ok((front, rest)) = slice.split_at(taken) else { return slice };
        self.push(front);
        rest
    }

    /// The pieces, none of them empty.
    pub(super) fn slices(&self) -> impl Iterator<Item = &VolatileSlice<'m>> {
        self.first.iter().chain(&self.more)
    }

    /// Bytes in all.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Cuts the run in two after `at` bytes; the first part is what is there of them.
    pub(super) fn split(self, at: usize) -> (Self, Self) {
        // Most packets are taken whole.
        if at >= self.len {
            return (self, Self::default());
        }
        let (mut front, mut back) = (Self::default(), Self::default());
        for &slice in self.slices() {
            back.push(front.fill_up(at, slice));
        }
        (front, back)
    }

    /// Copies the whole run.
    pub(super) fn read(&self, mut into: impl FnMut(&[u8])) {
        if self.len == 0 {
            return;
        }
        let mut buffer = [0; 4096];
        for slice in self.slices() {
            let mut done = 0_usize;
            while let Ok(count @ 1..) = slice.read(&mut buffer, done) {
                into(buffer.get(..count).unwrap_or_default());
                done = done.saturating_add(count);
            }
        }
    }

    /// Writes from the front on, as far as there is room.
    fn write(&self, mut bytes: &[u8]) {
        for slice in self.slices() {
            let count = slice.write(bytes, 0).unwrap_or(0);
            bytes = bytes.get(count..).unwrap_or_default();
        }
    }
}

/// A chain is no longer than its queue (virtio 1.2 §2.7.5.3.1), and ours have this size; a buffer may straddle two regions.
const MOST_PIECES: usize = super::QUEUE_SIZE as usize * 2;

/// A packet from the guest.
#[derive(Debug)]
pub(super) struct Packet<'m> {
    pub(super) header: Header,
    /// What is behind the header, which may be more or less than it says.
    pub(super) data: Buffers<'m>,
}

impl<'m> Packet<'m> {
    /// Takes a chain of the transmit queue apart.
    pub(super) fn parse(memory: &'m GuestMemoryMmap, chain: Chain<'_>) -> Result<Self, Fault> {
        let (front, data) = Buffers::of(memory, chain, false)?;
        if front.len() < HEADER_BYTES {
            return Err(Fault::Chain("a packet is shorter than its header"));
        }
        let (mut bytes, mut filled) = ([0; HEADER_BYTES], 0_usize);
        for slice in front.slices() {
            let rest = bytes.get_mut(filled..).unwrap_or_default();
            filled = filled.saturating_add(slice.read(rest, 0).unwrap_or(0));
        }
        Ok(Self { header: Header::decode(&bytes), data })
    }
}

/// Room for a packet to the guest.
#[derive(Debug)]
pub(super) struct Room<'m> {
    head: u16,
    header: Buffers<'m>,
    pub(super) data: Buffers<'m>,
}

impl<'m> Room<'m> {
    /// Takes the next chain of the receive queue, if there is one.
    pub(super) fn pop(memory: &'m GuestMemoryMmap, queue: &mut DeviceQueue) -> Result<Option<Self>, Fault> {
        let Some(chain) = queue.pop()? else { return Ok(None) };
        let head = chain.head_index();
        let (header, data) = Buffers::of(memory, chain, true)?;
        // A buffer that never has room for a byte would keep data waiting for ever.
        if header.len() < HEADER_BYTES || data.len() == 0 {
            return Err(Fault::Chain("a receive buffer has no room for a packet"));
        }
        Ok(Some(Self { head, header, data }))
    }

    /// Writes a header before `header.len` bytes of data. What it says is how the chain is to be given back.
    pub(super) fn fill(&self, header: &Header) -> (u16, u32) {
        self.header.write(&header.encode());
        (self.head, (HEADER_BYTES as u32).saturating_add(header.len))
    }
}
