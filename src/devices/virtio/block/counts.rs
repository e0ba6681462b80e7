//! What a disk has done, for the status.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

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
        let load = |name: &str, counter: &AtomicU64| (name.to_owned(), counter.load(Ordering::Relaxed));
        BTreeMap::from([
            load("reads", &self.reads),
            load("writes", &self.writes),
            load("flushes", &self.flushes),
            load("discards", &self.discards),
            load("write_zeroes", &self.zeroes),
            load("bytes_read", &self.bytes_read),
            load("bytes_written", &self.bytes_written),
            load("errors", &self.errors),
            load("throttled", &self.throttled),
        ])
    }
}
