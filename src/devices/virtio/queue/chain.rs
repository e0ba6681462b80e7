//! Descriptor chains (virtio 1.2 §2.7.5), and their buffers as bytes.

use std::io;

use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryMmap, VolatileMemory, VolatileSlice};

use super::ring::DESCRIPTOR;
use crate::devices::virtio::Fault;

/// One descriptor chain, borrowed from guest memory: an iterator over its descriptors. It ends early where the chain is
/// broken: then the last descriptor says that there is a next one, or there is none at all.
#[derive(Debug, Clone)]
pub struct Chain<'m> {
    memory: &'m GuestMemoryMmap,
    /// The queue's own, or the chain's (§2.7.5.3).
    table: VolatileSlice<'m>,
    head: u16,
    next: u16,
    /// No chain is longer than its table.
    left: u16,
    indirect: bool,
    /// A chain has less than 4 GiB (§2.7.5.2).
    bytes: u32,
}

impl<'m> Chain<'m> {
    /// The chain that begins with descriptor `head` of a table of `size` descriptors.
    pub(super) fn new(memory: &'m GuestMemoryMmap, table: VolatileSlice<'m>, size: u16, head: u16) -> Self {
        Self { memory, table, head, next: head, left: size, indirect: false, bytes: 0 }
    }

    /// The number of its first descriptor, which is how the driver knows it.
    #[must_use]
    pub fn head_index(&self) -> u16 {
        self.head
    }

    /// What the driver wrote for the device.
    ///
    /// # Errors
    /// A buffer outside guest memory.
    pub fn reader(self) -> Result<Reader<'m>, Fault> {
        Ok(Reader(Cursor::new(self, false)?))
    }

    /// What the device may write.
    ///
    /// # Errors
    /// A buffer outside guest memory.
    pub fn writer(self) -> Result<Writer<'m>, Fault> {
        Ok(Writer { cursor: Cursor::new(self, true)?, written: 0 })
    }

    fn step(&mut self) -> Option<Descriptor> {
        self.left = self.left.checked_sub(1)?;
        let at = usize::from(self.next).saturating_mul(DESCRIPTOR);
        let descriptor: Descriptor = self.table.get_ref(at).ok()?.load();
        if descriptor.refers_to_indirect_table() {
            self.enter(&descriptor)?;
            return self.step();
        }
        self.bytes = self.bytes.checked_add(descriptor.len())?;
        if descriptor.has_next() {
            self.next = descriptor.next();
        } else {
            self.left = 0;
        }
        Some(descriptor)
    }

    /// Goes on in a table of the chain's own. There is none in such a table.
    fn enter(&mut self, descriptor: &Descriptor) -> Option<()> {
        let bytes = descriptor.len() as usize;
        if self.indirect || !bytes.is_multiple_of(DESCRIPTOR) {
            return None;
        }
        self.left = u16::try_from(bytes / DESCRIPTOR).ok()?;
        self.table = self.memory.get_slice(descriptor.addr(), bytes).ok()?;
        (self.next, self.indirect) = (0, true);
        Some(())
    }
}

impl Iterator for Chain<'_> {
    type Item = Descriptor;

    fn next(&mut self) -> Option<Descriptor> {
        let descriptor = self.step();
        if descriptor.is_none() {
            self.left = 0;
        }
        descriptor
    }
}

/// Tells `each` the memory of a buffer: one run of it nearly always, more where it lies in several regions.
///
/// # Errors
/// A buffer outside guest memory.
pub fn runs<'m>(
    memory: &'m GuestMemoryMmap,
    buffer: &Descriptor,
    mut each: impl FnMut(VolatileSlice<'m>),
) -> Result<(), Fault> {
    let (address, len) = (buffer.addr(), buffer.len() as usize);
    if let Ok(slice) = memory.get_slice(address, len) {
        each(slice);
        return Ok(());
    }
    for slice in memory.get_slices(address, len) {
        each(slice.map_err(|_| Fault::Chain("a buffer lies outside guest memory"))?);
    }
    Ok(())
}

/// Buffers of one direction, and how far they are used.
#[derive(Debug)]
struct Cursor<'m> {
    slices: Vec<VolatileSlice<'m>>,
    /// The slice that is next, and what of it is done.
    at: (usize, usize),
    left: usize,
}

impl<'m> Cursor<'m> {
    fn new(chain: Chain<'m>, writable: bool) -> Result<Self, Fault> {
        let (memory, mut slices) = (chain.memory, Vec::new());
        for buffer in chain.filter(|buffer| buffer.is_write_only() == writable) {
            runs(memory, &buffer, |slice| slices.push(slice))?;
        }
        let left = slices.iter().map(VolatileSlice::len).fold(0, usize::saturating_add);
        Ok(Self { slices, at: (0, 0), left })
    }

    /// Has `transfer` move bytes between the memory from here on and what is behind its first `done` bytes, piece by piece,
    /// until it moves none. Returns how many there were.
    fn advance(&mut self, mut transfer: impl FnMut(&VolatileSlice<'m>, usize, usize) -> usize) -> usize {
        let mut done = 0_usize;
        while let Some(slice) = self.slices.get(self.at.0) {
            if self.at.1 >= slice.len() {
                self.at = (self.at.0.saturating_add(1), 0);
                continue;
            }
            let count = transfer(slice, self.at.1, done);
            if count == 0 {
                break;
            }
            self.at.1 = self.at.1.saturating_add(count);
            done = done.saturating_add(count);
        }
        self.left = self.left.saturating_sub(done);
        done
    }
}

/// Reads a chain's readable buffers.
#[derive(Debug)]
pub struct Reader<'m>(Cursor<'m>);

impl Reader<'_> {
    /// Bytes that are left.
    #[must_use]
    pub fn available_bytes(&self) -> usize {
        self.0.left
    }
}

impl io::Read for Reader<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        Ok(self
            .0
            .advance(|slice, at, done| slice.read(into.get_mut(done..).unwrap_or_default(), at).unwrap_or(0)))
    }
}

/// Writes a chain's writable buffers.
#[derive(Debug)]
pub struct Writer<'m> {
    cursor: Cursor<'m>,
    written: usize,
}

impl Writer<'_> {
    /// Bytes there is room for.
    #[must_use]
    pub fn available_bytes(&self) -> usize {
        self.cursor.left
    }

    /// Bytes written so far.
    #[must_use]
    pub fn bytes_written(&self) -> usize {
        self.written
    }
}

impl io::Write for Writer<'_> {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        let count = self
            .cursor
            .advance(|slice, at, done| slice.write(from.get(done..).unwrap_or_default(), at).unwrap_or(0));
        self.written = self.written.saturating_add(count);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
