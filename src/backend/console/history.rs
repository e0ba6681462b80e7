//! What the guest wrote, as far back as there is room: bytes numbered from the first one on, so that a reader can stop, come
//! back, and learn how much it missed. A reader never holds up the writer; one that is too slow is overtaken.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

/// The most bytes in one [`Piece`].
pub const PIECE_BYTES: usize = 16 << 10;

/// The last bytes of the console.
#[derive(Debug)]
pub struct History {
    ring: Mutex<Ring>,
    /// Told after each write and at the end.
    grown: watch::Sender<()>,
    /// Bytes that followers were too slow for, all together.
    missed: AtomicU64,
}

#[derive(Debug)]
struct Ring {
    bytes: VecDeque<u8>,
    capacity: usize,
    /// Number of the byte that comes next.
    total: u64,
    closed: bool,
}

/// Some bytes of the console, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The first byte's number; that of the console's first byte is 0.
    pub first: u64,
    /// Bytes that were wanted before these and are no longer there.
    pub missed: u64,
    /// The bytes.
    pub bytes: Vec<u8>,
}

impl History {
    /// An empty history that keeps at most `capacity` bytes.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        let ring = Ring { bytes: VecDeque::new(), capacity, total: 0, closed: false };
        Self { ring: Mutex::new(ring), grown: watch::Sender::new(()), missed: AtomicU64::new(0) }
    }

    /// Adds bytes; the oldest make room for them.
    pub fn push(&self, data: &[u8]) {
        self.lock().push(data);
        self.grown.send_replace(());
    }

    /// Nothing comes any more.
    pub fn close(&self) {
        self.lock().closed = true;
        self.grown.send_replace(());
    }

    /// Bytes the guest wrote so far: the number of the next one.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.lock().total
    }

    /// Bytes that followers were too slow for, all together.
    #[must_use]
    pub fn missed(&self) -> u64 {
        self.missed.load(Ordering::Relaxed)
    }

    /// Number of the first byte of the last `lines` lines, as far as they are kept. What comes after the last line's end
    /// is a line of its own.
    #[must_use]
    pub fn start_of_last(&self, lines: usize) -> u64 {
        let ring = self.lock();
        if lines == 0 {
            return ring.total;
        }
        // A line's end is where the next one starts; the very last byte starts none.
        let mut ends = ring.bytes.iter().enumerate().rev().skip(1).filter(|(_, byte)| **byte == b'\n');
        match ends.nth(lines.saturating_sub(1)) {
            Some((at, _)) => ring.first().saturating_add(at as u64).saturating_add(1),
            None => ring.first(),
        }
    }

    /// The oldest byte's number.
    #[must_use]
    pub fn start(&self) -> u64 {
        self.lock().first()
    }

    /// Reads from byte `since` on, and with `follow` what comes after it until the console's end.
    #[must_use]
    pub fn read(self: &Arc<Self>, since: u64, follow: bool) -> Reader {
        Reader {
            history: Arc::clone(self),
            next: since,
            until: if follow { u64::MAX } else { self.total() },
            grown: self.grown.subscribe(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ring {
    fn first(&self) -> u64 {
        self.total.saturating_sub(self.bytes.len() as u64)
    }

    fn push(&mut self, data: &[u8]) {
        self.total = self.total.saturating_add(data.len() as u64);
        let kept = data.get(data.len().saturating_sub(self.capacity)..).unwrap_or_default();
        let too_many = self.bytes.len().saturating_add(kept.len()).saturating_sub(self.capacity);
        self.bytes.drain(..too_many);
        self.bytes.extend(kept);
    }

    fn copy(&self, since: u64, until: u64) -> Piece {
        let first = since.max(self.first()).min(self.total);
        let skip = first.saturating_sub(self.first()) as usize;
        let most = until.saturating_sub(first).min(PIECE_BYTES as u64) as usize;
        let (front, back) = self.bytes.as_slices();
        let mut bytes = Vec::new();
        let front = front.get(skip..).unwrap_or_default();
        bytes.extend_from_slice(front.get(..most).unwrap_or(front));
        let back = back.get(skip.saturating_sub(self.bytes.as_slices().0.len())..).unwrap_or_default();
        let rest = most.saturating_sub(bytes.len());
        bytes.extend_from_slice(back.get(..rest).unwrap_or(back));
        Piece { first, missed: first.saturating_sub(since), bytes }
    }
}

/// One reader's place in the history.
#[derive(Debug)]
pub struct Reader {
    history: Arc<History>,
    next: u64,
    until: u64,
    grown: watch::Receiver<()>,
}

impl Reader {
    /// The next bytes; waits for them when it follows. `None` at the end.
    pub async fn next(&mut self) -> Option<Piece> {
        loop {
            self.grown.borrow_and_update();
            let (piece, is_closed) = {
                let ring = self.history.lock();
                (ring.copy(self.next, self.until), ring.closed)
            };
            if piece.missed > 0 || !piece.bytes.is_empty() {
                self.history.missed.fetch_add(piece.missed, Ordering::Relaxed);
                self.next = piece.first.saturating_add(piece.bytes.len() as u64);
                return Some(piece);
            }
            if is_closed || self.next >= self.until {
                return None;
            }
            // The history is ours: its end of the channel cannot be gone.
            let _ = self.grown.changed().await;
        }
    }
}

#[cfg(test)]
#[path = "history_tests.rs"]
mod tests;
