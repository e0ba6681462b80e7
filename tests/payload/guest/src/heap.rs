//! Memory for rings and buffers: handed out upwards from 8 MiB, never taken back.

use core::sync::atomic::{AtomicU64, Ordering};

const START: u64 = 8 << 20;

static NEXT: AtomicU64 = AtomicU64::new(START);

/// `bytes` of zeroed RAM at a multiple of `align` (a power of two).
#[must_use]
pub fn take(bytes: u64, align: u64) -> u64 {
    let mut start = 0;
    let _ = NEXT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| {
        start = next.next_multiple_of(align);
        Some(start + bytes)
    });
    start
}
