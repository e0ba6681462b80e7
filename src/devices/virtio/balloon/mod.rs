//! virtio-balloon (virtio 1.2 §5.5): guest memory the host can have back.
//!
//! Two ways. The host sets a target, and the driver puts pages into the balloon until that much is left to the guest. And
//! without being asked, the driver reports pages that are free (§5.5.6.7), which it may use again at any time.

mod handler;
mod held;
mod release;
mod statistics;

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use self::handler::BalloonHandler;
use self::release::{PAGE, is_kept};
use super::queue::Queues;
use super::transport::ConfigChange;
use super::{Counters, Fault, Kind, Lane, Start, VirtioDevice, counted};
use crate::status::model::{BalloonFacts, GuestMemoryFacts};

/// VIRTIO_BALLOON_F_MUST_TELL_HOST: the driver takes no page out of the balloon before we know.
const F_MUST_TELL_HOST: u64 = 1 << 0;
/// VIRTIO_BALLOON_F_STATS_VQ.
const F_STATS_VQ: u64 = 1 << 1;
/// VIRTIO_BALLOON_F_DEFLATE_ON_OOM.
const F_DEFLATE_ON_OOM: u64 = 1 << 2;
/// VIRTIO_BALLOON_F_PAGE_POISON.
const F_PAGE_POISON: u64 = 1 << 4;
/// VIRTIO_BALLOON_F_PAGE_REPORTING.
const F_REPORTING: u64 = 1 << 5;

/// Entries of each queue. Linux reports 32 ranges at a time, and refuses to with a shorter queue.
const QUEUE_SIZE: u16 = 128;
const QUEUES: usize = 5;
const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const STATISTICS: usize = 2;
/// The reporting queue by the specification (§5.5.2), whichever other queues there are.
const REPORTING: usize = 4;

/// `struct virtio_balloon_config` (§5.5.4): `num_pages`, `actual`, `free_page_hint_cmd_id`, `poison_val`.
const CONFIG_BYTES: usize = 16;
const ACTUAL: usize = 4;
const POISON: usize = 12;

/// A driver's statistics are asked for at most this often: each answer wakes the guest.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// What a balloon is told by the user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BalloonOptions {
    /// The guest takes pages out of the balloon rather than kill a process for want of memory.
    pub deflate_on_oom: bool,
    /// The guest reports free memory without being asked.
    pub free_page_reporting: bool,
}

/// Why a target cannot be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the guest's memory can be set from {} MiB to its size, {} MiB", least_bytes >> 20, size_bytes >> 20)]
pub struct TargetError {
    /// The least.
    pub least_bytes: u64,
    /// The guest's RAM.
    pub size_bytes: u64,
}

/// The least target: less than that, and no Linux lives on.
const LEAST_BYTES: u64 = 32 << 20;

/// The balloon device.
#[derive(Debug)]
pub struct Balloon(Arc<Shared>);

/// What outlives a reset by the driver.
#[derive(Debug)]
struct Shared {
    options: BalloonOptions,
    size_bytes: u64,
    /// The RAM is of a kind that the host does not take back: see [`release::is_kept`].
    keeps: bool,
    state: Mutex<State>,
    counts: Counts,
    /// Tells the handler that somebody wants statistics.
    ask: EventFd,
}

#[derive(Debug, Default)]
struct State {
    /// Pages that should be in the balloon.
    num_pages: u32,
    /// Pages the driver says are there.
    actual: u32,
    /// What the guest fills free pages with.
    poison: u32,
    /// The driver's last statistics.
    statistics: Option<(Instant, BTreeMap<String, u64>)>,
    asked: Option<Instant>,
    /// Tells the driver of a new target, while there is one.
    config: Option<ConfigChange>,
}

/// Bytes since the machine began.
#[derive(Debug, Default)]
struct Counts {
    inflated: AtomicU64,
    deflated: AtomicU64,
    reported: AtomicU64,
    released: AtomicU64,
    refused: AtomicU64,
    statistics: AtomicU64,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Which queue is which.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Layout {
    statistics: Option<usize>,
    reporting: Option<usize>,
}

impl Layout {
    /// Where the driver put its queues. By the specification the reporting queue is number 4; Linux counts only the queues
    /// it has (drivers/virtio: `find_vqs`), so that it comes after the statistics queue, or in its place. A queue 4 that is
    /// enabled tells the two apart, for no driver that counts so has as many.
    fn of(features: u64, queues: &Queues) -> Self {
        let has = |feature: u64| features & feature != 0;
        let by_the_book = queues.0.get(REPORTING).is_some_and(Option::is_some);
        let counted = if has(F_STATS_VQ) { STATISTICS.saturating_add(1) } else { STATISTICS };
        let reporting = if by_the_book { REPORTING } else { counted };
        Self {
            statistics: has(F_STATS_VQ).then_some(STATISTICS),
            reporting: has(F_REPORTING).then_some(reporting),
        }
    }
}

impl Balloon {
    /// An empty balloon for the RAM in `memory`.
    ///
    /// # Errors
    /// When the kernel has no descriptor for it.
    pub fn new(options: BalloonOptions, memory: &GuestMemoryMmap) -> io::Result<Self> {
        let size_bytes = memory.iter().map(GuestMemoryRegion::len).fold(0, u64::saturating_add);
        let (state, counts) = (Mutex::default(), Counts::default());
        let ask = EventFd::new(libc::EFD_NONBLOCK)?;
        let keeps = memory.iter().any(is_kept);
        Ok(Self(Arc::new(Shared { options, size_bytes, keeps, state, counts, ask })))
    }

    /// From now on the guest should do with `bytes` of its RAM, rounded up to a page. The driver inflates or deflates in its
    /// own time: [`Balloon::facts`] tells how far it is. Without a driver, the next one is told. Returns the target before.
    ///
    /// # Errors
    /// When that is more than the guest has, or too little for a guest.
    pub fn set_target(&self, bytes: u64) -> Result<u64, TargetError> {
        let size_bytes = self.0.size_bytes;
        let least_bytes = LEAST_BYTES.min(size_bytes);
        if !(least_bytes..=size_bytes).contains(&bytes) {
            return Err(TargetError { least_bytes, size_bytes });
        }
        let pages = size_bytes.saturating_sub(bytes) / PAGE;
        let (before, config) = {
            let mut state = self.0.lock();
            let before = std::mem::replace(&mut state.num_pages, u32::try_from(pages).unwrap_or(u32::MAX));
            (before, state.config.clone())
        };
        // Without our lock: it reads the configuration structure, which takes it.
        if let Some(config) = config {
            config.announce();
        }
        Ok(size_bytes.saturating_sub(u64::from(before).saturating_mul(PAGE)))
    }

    /// The balloon for the status. Asks the driver for new statistics when its last ones are not of this second; they are
    /// there the next time.
    #[must_use]
    pub fn facts(&self) -> BalloonFacts {
        let mut state = self.0.lock();
        let now = Instant::now();
        let due = |asked: Instant| now.saturating_duration_since(asked) >= ASK_EVERY;
        if state.config.is_some() && state.asked.is_none_or(due) {
            state.asked = Some(now);
            // Fails only when the counter is full, and then the handler is on its way.
            let _ = self.0.ask.write(1);
        }
        let bytes = |pages: u32| u64::from(pages).saturating_mul(PAGE);
        let guest = state.statistics.as_ref().map(|(at, values)| GuestMemoryFacts {
            age_ms: u64::try_from(now.saturating_duration_since(*at).as_millis()).unwrap_or(u64::MAX),
            values: values.clone(),
        });
        BalloonFacts {
            target_bytes: self.0.size_bytes.saturating_sub(bytes(state.num_pages)),
            balloon_bytes: bytes(state.actual),
            reported_bytes: self.0.counts.reported.load(Ordering::Relaxed),
            guest,
        }
    }
}

impl VirtioDevice for Balloon {
    fn kind(&self) -> Kind {
        Kind { id: 5, name: "virtio-balloon", class: [0x00, 0xff] }
    }

    fn features(&self) -> u64 {
        let BalloonOptions { deflate_on_oom, free_page_reporting } = self.0.options;
        let mut features = F_MUST_TELL_HOST | F_STATS_VQ;
        if deflate_on_oom {
            features |= F_DEFLATE_ON_OOM;
        }
        if free_page_reporting && !self.0.keeps {
            // A guest that clears or poisons free pages reports none unless it can say what it expects to find in them.
            features |= F_REPORTING | F_PAGE_POISON;
        }
        features
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; QUEUES]
    }

    fn config(&self) -> Vec<u8> {
        let state = self.0.lock();
        [state.num_pages, state.actual, 0, state.poison].iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    fn write_config(&self, offset: usize, data: &[u8]) {
        let mut state = self.0.lock();
        let (mut actual, mut poison) = (state.actual.to_le_bytes(), state.poison.to_le_bytes());
        for (at, byte) in (offset..CONFIG_BYTES).zip(data) {
            let field = match at {
                ACTUAL.. if at < ACTUAL.saturating_add(4) => actual.get_mut(at % 4),
                POISON.. => poison.get_mut(at % 4),
                _ => None,
            };
            if let Some(field) = field {
                *field = *byte;
            }
        }
        (state.actual, state.poison) = (u32::from_le_bytes(actual), u32::from_le_bytes(poison));
    }

    fn start(&self, start: Start<'_>) -> Result<Vec<Lane>, Fault> {
        let layout = Layout::of(start.features, start.queues);
        let handler =
            BalloonHandler::new(Arc::clone(&self.0), layout, start.features).map_err(Fault::Host)?;
        let num_pages = {
            let mut state = self.0.lock();
            state.config = Some(start.config.clone());
            state.num_pages
        };
        if num_pages != 0 {
            // A target that was set while there was no driver.
            start.config.announce();
        }
        Ok(Lane::all(QUEUES, handler))
    }

    fn stop(&self) {
        let mut state = self.0.lock();
        let num_pages = state.num_pages;
        *state = State { num_pages, ..State::default() };
    }

    fn backend(&self) -> Option<String> {
        let kept = "RAM of hugetlb pages, which the host does not take back";
        self.0.keeps.then(|| kept.to_owned())
    }

    fn counters(&self) -> Counters {
        let shared = Arc::clone(&self.0);
        Box::new(move || {
            let counts = &shared.counts;
            BTreeMap::from([
                counted("bytes_inflated", &counts.inflated),
                counted("bytes_deflated", &counts.deflated),
                counted("bytes_reported", &counts.reported),
                counted("bytes_released", &counts.released),
                counted("bytes_refused", &counts.refused),
                counted("statistics", &counts.statistics),
            ])
        })
    }
}

#[cfg(test)]
mod tests;
