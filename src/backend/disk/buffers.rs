//! The memory of one request: where its bytes come from or go to.

use std::marker::PhantomData;

use vm_memory::{Bytes, VolatileSlice};

/// UIO_MAXIOV of Linux: the most vectors of one system call.
const MAX_VECTORS: usize = 1024;

/// Pieces of memory that a request reads or fills, in order. They are addresses and no references, because a guest may
/// write to its memory at any time, and may name one piece twice.
///
/// `'a` is how long the memory stays mapped.
#[derive(Debug, Default, Clone)]
pub struct Buffers<'a> {
    vectors: Vec<libc::iovec>,
    bytes: u64,
    memory: PhantomData<VolatileSlice<'a>>,
}

// SAFETY: these are addresses of memory that everybody uses through volatile accesses or the kernel; which thread does
// makes no difference.
unsafe impl Send for Buffers<'_> {}
// SAFETY: as above; nothing is changed through a shared reference but the memory, and that is volatile.
unsafe impl Sync for Buffers<'_> {}

impl<'a> Buffers<'a> {
    /// The memory of these slices, in their order.
    #[must_use]
    pub fn of(slices: &[VolatileSlice<'a>]) -> Self {
        let mut buffers = Self { vectors: Vec::with_capacity(slices.len()), ..Self::default() };
        slices.iter().for_each(|slice| buffers.add(slice));
        buffers
    }

    /// Adds the memory of one more slice at the end.
    pub fn add(&mut self, slice: &VolatileSlice<'a>) {
        if !slice.is_empty() {
            let guard = slice.ptr_guard_mut();
            self.bytes = self.bytes.saturating_add(guard.len() as u64);
            self.vectors.push(libc::iovec { iov_base: guard.as_ptr().cast(), iov_len: guard.len() });
        }
    }

    /// The memory of a slice that nobody else uses.
    #[must_use]
    pub fn of_slice(slice: &'a mut [u8]) -> Self {
        Self::of(&[VolatileSlice::from(slice)])
    }

    /// The same memory for a request that an engine works on after the borrow has ended.
    ///
    /// # Safety
    /// The memory stays mapped until the request has completed, or the engine it was submitted to has been dropped
    /// (which waits for it).
    #[must_use]
    pub unsafe fn outlive(self) -> Buffers<'static> {
        Buffers { vectors: self.vectors, bytes: self.bytes, memory: PhantomData }
    }

    /// Bytes in all.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.bytes
    }

    /// Runs of memory.
    #[must_use]
    pub fn pieces(&self) -> usize {
        self.vectors.len()
    }

    /// Whether there is no byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// What one vectored system call takes.
    pub(super) fn vectors(&self) -> &[libc::iovec] {
        self.vectors.get(..MAX_VECTORS).unwrap_or(&self.vectors)
    }

    /// Drops the first `bytes`: they are done.
    pub fn advance(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_sub(bytes);
        let mut left = usize::try_from(bytes).unwrap_or(usize::MAX);
        let mut whole = 0;
        for vector in &mut self.vectors {
            if left < vector.iov_len {
                vector.iov_base = vector.iov_base.cast::<u8>().wrapping_add(left).cast();
                vector.iov_len -= left;
                break;
            }
            left -= vector.iov_len;
            whole += 1;
        }
        self.vectors.drain(..whole);
    }

    /// The part of `bytes` bytes from `from` on, as far as there is one.
    pub(super) fn part(&self, from: u64, bytes: u64) -> Self {
        let mut part = self.clone();
        part.advance(from);
        part.truncate(bytes);
        part
    }

    /// Drops all but the first `bytes`.
    pub fn truncate(&mut self, bytes: u64) {
        let mut left = usize::try_from(bytes).unwrap_or(usize::MAX);
        self.vectors.retain_mut(|vector| {
            vector.iov_len = vector.iov_len.min(left);
            left -= vector.iov_len;
            vector.iov_len > 0
        });
        self.bytes = self.bytes.min(bytes);
    }

    /// Whether every piece begins and ends on a multiple of `alignment` bytes.
    pub(super) fn is_aligned(&self, alignment: u64) -> bool {
        let aligned = |number: usize| (number as u64).is_multiple_of(alignment.max(1));
        self.vectors.iter().all(|vector| aligned(vector.iov_base as usize) && aligned(vector.iov_len))
    }

    fn slices(&self) -> impl Iterator<Item = VolatileSlice<'a>> {
        self.vectors.iter().map(|vector| {
            // SAFETY: the memory is mapped for `'a`, as `of` found it or `outlive` was promised.
            unsafe { VolatileSlice::new(vector.iov_base.cast(), vector.iov_len) }
        })
    }

    /// Copies as much of `from` into the memory as there is room for.
    pub fn fill_from(&self, from: &[u8]) {
        let mut rest = from;
        for slice in self.slices() {
            let done = slice.write(rest, 0).unwrap_or(0);
            rest = rest.get(done..).unwrap_or_default();
            if rest.is_empty() {
                break;
            }
        }
    }

    /// Copies as much of the memory as fits to `to`.
    pub fn copy_to(&self, to: &mut [u8]) {
        let mut rest = to;
        for slice in self.slices() {
            let done = slice.read(rest, 0).unwrap_or(0);
            rest = rest.get_mut(done..).unwrap_or_default();
            if rest.is_empty() {
                break;
            }
        }
    }

    /// Makes all bytes zero.
    pub(super) fn zero(&self) {
        const ZEROES: [u8; 4096] = [0; 4096];
        for slice in self.slices() {
            let mut at = 0;
            while at < slice.len() {
                let count = (slice.len() - at).min(ZEROES.len());
                let zeroes = ZEROES.get(..count).unwrap_or_default();
                if slice.write_slice(zeroes, at).is_err() {
                    break;
                }
                at += count;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two<'a>(first: &'a mut [u8], second: &'a mut [u8]) -> Buffers<'a> {
        Buffers::of(&[VolatileSlice::from(first), VolatileSlice::from(second)])
    }

    #[test]
    fn parts_cross_the_pieces_they_are_cut_from() {
        let (mut first, mut second) = ([0; 10], [0; 10]);
        let buffers = two(&mut first, &mut second);
        buffers.part(8, 4).fill_from(&[1, 2, 3, 4, 5]);
        assert_eq!(buffers.part(8, 4).len(), 4);
        assert!(buffers.part(20, 4).is_empty());
        let mut all = [9; 20];
        buffers.copy_to(&mut all);
        assert_eq!(all[7..13], [0, 1, 2, 3, 4, 0]);
        buffers.part(9, 2).zero();
        buffers.copy_to(&mut all);
        assert_eq!(all[7..13], [0, 1, 0, 0, 4, 0]);
    }

    #[test]
    fn what_is_done_is_dropped_piece_by_piece() {
        let (mut first, mut second) = ([0; 10], [0; 10]);
        let mut buffers = two(&mut first, &mut second);
        buffers.advance(10);
        assert_eq!((buffers.len(), buffers.vectors().len()), (10, 1));
        buffers.advance(3);
        assert_eq!((buffers.len(), buffers.vectors()[0].iov_len), (7, 7));
        buffers.advance(7);
        assert!(buffers.is_empty() && buffers.vectors().is_empty());
    }
}
