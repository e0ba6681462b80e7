//! Guest buffers as one stream of bytes that the kernel reads or writes a frame in.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestMemoryMmap, VolatileSlice};

use crate::devices::virtio::Fault;
use crate::devices::virtio::queue::runs;

/// A chain in more pieces than this is no frame: a driver's own have at most 19 or so.
pub(super) const MAX_PIECES: usize = 256;

/// Buffers in order. They stay valid between calls, for the memory they are in stays mapped.
pub(super) struct Scatter {
    /// Keeps mapped what `pieces` point to.
    memory: GuestMemoryMmap,
    pieces: Vec<libc::iovec>,
    /// Where the stream begins; what is before has been dropped.
    first: usize,
    bytes: usize,
    /// What the last call passed to the kernel, kept for its memory.
    call: Vec<libc::iovec>,
}

// SAFETY: the pointers are to guest memory, which `memory` keeps mapped and which any thread may use.
unsafe impl Send for Scatter {}

impl Scatter {
    pub(super) fn new(memory: GuestMemoryMmap) -> Self {
        Self { memory, pieces: Vec::new(), first: 0, bytes: 0, call: Vec::new() }
    }

    /// Bytes in the stream.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Pieces it is in.
    pub(super) fn pieces(&self) -> usize {
        self.pieces.len().saturating_sub(self.first)
    }

    pub(super) fn clear(&mut self) {
        self.pieces.clear();
        (self.first, self.bytes) = (0, 0);
    }

    /// Adds a buffer.
    pub(super) fn push(&mut self, buffer: &Descriptor) -> Result<(), Fault> {
        let (pieces, bytes) = (&mut self.pieces, &mut self.bytes);
        runs(&self.memory, buffer, |slice| {
            if slice.is_empty() {
                return;
            }
            let start = slice.ptr_guard_mut().as_ptr();
            pieces.push(libc::iovec { iov_base: start.cast(), iov_len: slice.len() });
            *bytes = bytes.saturating_add(slice.len());
        })
    }

    /// Drops the first `pieces` pieces.
    pub(super) fn drop_pieces(&mut self, pieces: usize) {
        let dropped = self.stream().get(..pieces).unwrap_or_default();
        let bytes: usize = dropped.iter().map(|piece| piece.iov_len).sum();
        self.bytes = self.bytes.saturating_sub(bytes);
        self.first = self.first.saturating_add(pieces).min(self.pieces.len());
        // Moving the rest now and then keeps the list short.
        if self.first >= MAX_PIECES || self.first == self.pieces.len() {
            self.pieces.drain(..self.first);
            self.first = 0;
        }
    }

    fn stream(&self) -> &[libc::iovec] {
        self.pieces.get(self.first..).unwrap_or_default()
    }

    /// The parts of the stream from byte `offset` on, `len` bytes in all if there are as many.
    fn parts(&self, offset: usize, len: usize) -> impl Iterator<Item = VolatileSlice<'_>> {
        let (mut skip, mut left) = (offset, len);
        self.stream().iter().map_while(move |piece| {
            if left == 0 {
                return None;
            }
            let skipped = skip.min(piece.iov_len);
            let here = piece.iov_len.saturating_sub(skipped).min(left);
            skip = skip.saturating_sub(skipped);
            left = left.saturating_sub(here);
            let start = piece.iov_base.cast::<u8>().wrapping_add(skipped);
            // SAFETY: `here` bytes from `start` lie in this piece, guest memory that `self.memory` keeps mapped.
            Some(unsafe { VolatileSlice::new(start, here) })
        })
    }

    /// Fills `to` from byte `offset` on; `false` when the stream is too short.
    pub(super) fn read_at(&self, offset: usize, to: &mut [u8]) -> bool {
        let mut rest = &mut *to;
        let len = rest.len();
        for part in self.parts(offset, len) {
            let done = part.read(rest, 0).unwrap_or(0);
            rest = rest.get_mut(done..).unwrap_or_default();
        }
        rest.is_empty()
    }

    /// Writes `from` at byte `offset`; `false` when the stream is too short.
    pub(super) fn write_at(&self, offset: usize, from: &[u8]) -> bool {
        let mut rest = from;
        for part in self.parts(offset, from.len()) {
            let done = part.write(rest, 0).unwrap_or(0);
            rest = rest.get(done..).unwrap_or_default();
        }
        rest.is_empty()
    }

    /// Reads one frame into the stream's first pieces, as many as have `bytes` bytes, and what is beyond them into `spill`.
    /// Returns the frame's length and how much of it is in the stream.
    pub(super) fn read_frame(
        &mut self,
        from: &impl AsFd,
        bytes: usize,
        spill: &mut [u8],
    ) -> io::Result<(usize, usize)> {
        let mut pieces = std::mem::take(&mut self.call);
        pieces.clear();
        let mut room = 0_usize;
        for piece in self.stream() {
            if room >= bytes {
                break;
            }
            room = room.saturating_add(piece.iov_len);
            pieces.push(*piece);
        }
        pieces.push(libc::iovec { iov_base: spill.as_mut_ptr().cast(), iov_len: spill.len() });
        // SAFETY: each piece is guest memory that stays mapped and that no reference of ours is to, or `spill`, borrowed
        // for this call.
        let read =
            unsafe { libc::readv(from.as_fd().as_raw_fd(), pieces.as_ptr(), pieces.len() as libc::c_int) };
        let result = usize::try_from(read).map_err(|_| io::Error::last_os_error());
        self.call = pieces;
        result.map(|len| (len, len.min(room)))
    }

    /// Writes one frame: `header`, and the stream after as many bytes.
    pub(super) fn write_frame(&mut self, to: &impl AsFd, header: &[u8]) -> io::Result<()> {
        let mut pieces = std::mem::take(&mut self.call);
        pieces.clear();
        let base = header.as_ptr().cast_mut().cast();
        pieces.push(libc::iovec { iov_base: base, iov_len: header.len() });
        let rest = self.bytes.saturating_sub(header.len());
        for part in self.parts(header.len(), rest).filter(|part| !part.is_empty()) {
            pieces.push(libc::iovec { iov_base: part.ptr_guard_mut().as_ptr().cast(), iov_len: part.len() });
        }
        // SAFETY: each piece is guest memory that stays mapped, or `header`, which the call only reads.
        let written =
            unsafe { libc::writev(to.as_fd().as_raw_fd(), pieces.as_ptr(), pieces.len() as libc::c_int) };
        let result = if written < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
        self.call = pieces;
        result
    }
}

impl std::fmt::Debug for Scatter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scatter").field("bytes", &self.bytes).field("pieces", &self.pieces()).finish()
    }
}
