//! What a disk has done, for the status.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::devices::virtio::counted;

/// Requests that were done, and their bytes.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) reads: AtomicU64,
    pub(super) writes: AtomicU64,
    pub(super) flushes: AtomicU64,
    pub(super) discards: AtomicU64,
    pub(super) zeroes: AtomicU64,
    pub(super) bytes_read: AtomicU64,
    pub(super) bytes_written: AtomicU64,
    pub(super) errors: AtomicU64,
    pub(super) throttled: AtomicU64,
}

impl Counts {
    pub(super) fn add(counter: &AtomicU64, by: u64) {
        counter.fetch_add(by, Ordering::Relaxed);
    }

    pub(super) fn by_name(&self) -> BTreeMap<String, u64> {
        BTreeMap::from([
            counted("reads", &self.reads),
            counted("writes", &self.writes),
            counted("flushes", &self.flushes),
            counted("discards", &self.discards),
            counted("write_zeroes", &self.zeroes),
            counted("bytes_read", &self.bytes_read),
            counted("bytes_written", &self.bytes_written),
            counted("errors", &self.errors),
            counted("throttled", &self.throttled),
        ])
    }
}
