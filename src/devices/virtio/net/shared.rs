//! What the lanes of a network device share, and what outlives a reset by the driver.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::filter::{Filter, Mac};
use crate::backend::tap::Offloads;
use crate::devices::complaints::Complaints;
use crate::devices::virtio::Listen;
use crate::devices::virtio::transport::ConfigChange;

/// A number that only grows.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, by: u64) {
        self.0.fetch_add(by, Ordering::Relaxed);
    }
}

/// What was counted; `rx` is what the guest receives. Bytes are those of frames, without the virtio header.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) rx_packets: Counter,
    pub(super) rx_bytes: Counter,
    /// No buffer of the driver's could hold the frame, the link was down, or there was no driver.
    pub(super) rx_dropped: Counter,
    /// The driver did not want it.
    pub(super) rx_filtered: Counter,
    /// Receiving waited for the rate limit.
    pub(super) rx_waits: Counter,
    pub(super) tx_packets: Counter,
    pub(super) tx_bytes: Counter,
    /// The link was down, or the host did not take the frame.
    pub(super) tx_dropped: Counter,
    /// The frame or its header is impossible.
    pub(super) tx_malformed: Counter,
    /// Transmitting waited for the rate limit.
    pub(super) tx_waits: Counter,
    /// Commands on the control queue.
    pub(super) commands: Counter,
}

impl Counts {
    pub(super) fn by_name(&self) -> BTreeMap<String, u64> {
        let all = [
            ("rx_packets", &self.rx_packets),
            ("rx_bytes", &self.rx_bytes),
            ("rx_dropped", &self.rx_dropped),
            ("rx_filtered", &self.rx_filtered),
            ("rx_waits", &self.rx_waits),
            ("tx_packets", &self.tx_packets),
            ("tx_bytes", &self.tx_bytes),
            ("tx_dropped", &self.tx_dropped),
            ("tx_malformed", &self.tx_malformed),
            ("tx_waits", &self.tx_waits),
            ("commands", &self.commands),
        ];
        all.into_iter().map(|(name, counter)| (name.to_owned(), counter.0.load(Ordering::Relaxed))).collect()
    }

    /// What is counted while the kernel moves the frames. To be silent about frames is better than to say that there were
    /// none.
    pub(super) fn without_frames(&self) -> BTreeMap<String, u64> {
        let mut counted = self.by_name();
        counted.retain(|name, _| !name.starts_with("rx_") && !name.starts_with("tx_"));
        counted
    }
}

/// What the lanes share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) counters: Counts,
    complaints: Complaints,
    link_up: AtomicBool,
    /// Queue pairs in use.
    pairs: AtomicUsize,
    filter: Mutex<Arc<Filter>>,
    offloads: Mutex<Offloads>,
    config: Mutex<Option<ConfigChange>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(super) fn new(mac: Mac) -> Self {
        Self {
            counters: Counts::default(),
            complaints: Complaints::default(),
            link_up: AtomicBool::new(true),
            pairs: AtomicUsize::new(1),
            filter: Mutex::new(Arc::new(Filter::new(mac, false))),
            offloads: Mutex::default(),
            config: Mutex::default(),
        }
    }

    /// A driver begins with one queue pair and a filter that passes everything.
    pub(super) fn begin(&self, mac: Mac, vlans: bool, offloads: Offloads) {
        self.set_filter(Filter::new(mac, vlans));
        self.set_offloads(offloads);
        self.set_pairs(1);
    }

    /// The filter as it is now; a lane asks once per batch of frames.
    pub(super) fn filter(&self) -> Arc<Filter> {
        Arc::clone(&lock(&self.filter))
    }

    pub(super) fn set_filter(&self, filter: Filter) {
        *lock(&self.filter) = Arc::new(filter);
    }

    pub(super) fn set_offloads(&self, offloads: Offloads) {
        *lock(&self.offloads) = offloads;
    }

    pub(super) fn set_pairs(&self, pairs: usize) {
        self.pairs.store(pairs, Ordering::Relaxed);
    }

    pub(super) fn link_is_up(&self) -> bool {
        self.link_up.load(Ordering::Relaxed)
    }

    /// Changes the link, and tells the driver.
    pub(super) fn set_link(&self, up: bool) {
        self.link_up.store(up, Ordering::Relaxed);
        if let Some(config) = &*lock(&self.config) {
            config.announce();
        }
    }

    /// Whom to tell from now on.
    pub(super) fn listen(&self, config: ConfigChange) {
        *lock(&self.config) = Some(config);
    }

    /// The tap is gone: nothing more comes from it.
    pub(super) fn lost_host(&self, error: &io::Error) -> Listen {
        if self.complaints.may_speak() {
            tracing::warn!(%error, "a network device has lost its tap; the guest receives nothing from it any more");
        }
        Listen::No
    }

    /// Queue pairs that the driver uses of `all`, offloads and link in words.
    pub(super) fn describe(&self, all: usize) -> String {
        let pairs = match self.pairs.load(Ordering::Relaxed) {
            1 if all == 1 => "1 queue pair".to_owned(),
            used if used == all => format!("{all} queue pairs"),
            used => format!("{used} of {all} queue pairs in use"),
        };
        let link = if self.link_is_up() { "" } else { ", link down" };
        format!("{pairs}, offloads {}{link}", *lock(&self.offloads))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_that_the_kernel_moves_are_not_said_to_be_none() {
        let counts = Counts::default();
        counts.commands.add(3);
        assert_eq!(counts.without_frames(), BTreeMap::from([("commands".to_owned(), 3)]));
        assert_eq!(counts.by_name()["rx_packets"], 0);
    }
}
