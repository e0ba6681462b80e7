//! The balloon's queues.

use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::timerfd::TimerFd;

use super::held::Held;
use super::release::{Outcome, PAGE, release};
use super::{DEFLATE, F_MUST_TELL_HOST, F_PAGE_POISON, INFLATE, Layout, Shared, statistics};
use crate::devices::virtio::queue::{Chain, Fate, Queues};
use crate::devices::virtio::{Fault, HostSource, Listen, QueueHandler};

/// The most page numbers in one chain. Drivers send at most a page full of them, 1024.
const MAX_PAGES: usize = 16 << 10;
/// How long pages wait for the rest of their huge page.
const STILL: Duration = Duration::from_secs(1);
/// How long between two goes, when a lot of pages waited in vain.
const SOON: Duration = Duration::from_millis(1);

/// The host sources.
const TIMER: usize = 0;
const ASK: usize = 1;

/// Serves all queues: they are seldom used, and what they do to the same page must not overlap.
#[derive(Debug)]
pub(super) struct BalloonHandler {
    shared: Arc<Shared>,
    layout: Layout,
    /// The driver tells before it uses a page of the balloon: pages may wait for the rest of their huge page.
    may_wait: bool,
    /// The driver may say that free pages are not zeros.
    has_poison: bool,
    held: Held,
    timer: TimerFd,
    timer_runs: bool,
    /// The statistics chain: given back when we want news.
    statistics: Option<u16>,
}

impl BalloonHandler {
    pub(super) fn new(shared: Arc<Shared>, layout: Layout, features: u64) -> io::Result<Self> {
        Ok(Self {
            shared,
            layout,
            may_wait: features & F_MUST_TELL_HOST != 0,
            has_poison: features & F_PAGE_POISON != 0,
            held: Held::default(),
            timer: TimerFd::new().map_err(io::Error::from)?,
            timer_runs: false,
            statistics: None,
        })
    }

    fn inflate(&mut self, memory: &GuestMemoryMmap, chain: Chain<'_>) -> Result<u32, Fault> {
        let mut whole = Vec::new();
        for page in page_numbers(memory, chain)? {
            if is_ram(memory, page) {
                whole.extend(self.held.insert(page));
                count(&self.shared.counts.inflated, PAGE);
            } else {
                count(&self.shared.counts.refused, PAGE);
            }
        }
        self.give(memory, &mut whole);
        if !self.may_wait {
            while self.held.is_waiting() {
                self.give_rest(memory);
            }
            // Nobody tells when such a page is used again.
            self.held = Held::default();
        } else if !self.timer_runs && self.held.is_waiting() && !self.start_timer(STILL) {
            // Without a timer they would wait for ever.
            self.give_rest(memory);
        }
        Ok(0)
    }

    fn deflate(&mut self, memory: &GuestMemoryMmap, chain: Chain<'_>) -> Result<u32, Fault> {
        for page in page_numbers(memory, chain)? {
            let known = if self.may_wait { self.held.remove(page) } else { is_ram(memory, page) };
            let counter = if known { &self.shared.counts.deflated } else { &self.shared.counts.refused };
            count(counter, PAGE);
        }
        Ok(0)
    }

    /// Free pages: the buffers themselves (virtio 1.2 §5.5.6.7). The driver uses none before the chain is back.
    fn report(&self, memory: &GuestMemoryMmap, chain: Chain<'_>) -> Result<u32, Fault> {
        let mut ranges = Vec::new();
        for buffer in complete(chain) {
            let buffer = buffer?;
            let start = buffer.addr().raw_value();
            if !buffer.is_write_only() {
                return Err(Fault::Chain("a free page is reported as one to read"));
            }
            ranges.push(start..start.saturating_add(buffer.len().into()));
        }
        // What we drop comes back as zeros. A guest that expects anything else keeps its page (§5.5.6.7.2).
        if !self.has_poison || self.shared.lock().poison == 0 {
            let released = self.give(memory, &mut ranges);
            count(&self.shared.counts.reported, released);
        }
        Ok(0)
    }

    /// New statistics. The driver waits until it gets the chain back, and then sends newer ones.
    fn learn(&mut self, memory: &GuestMemoryMmap, chain: Chain<'_>) -> Result<Fate, Fault> {
        let head = chain.head_index();
        let bytes = read_all(memory, chain, statistics::MAX_BYTES, Excess::Cut)?;
        self.shared.lock().statistics = Some((Instant::now(), statistics::parse(&bytes)));
        count(&self.shared.counts.statistics, 1);
        if self.statistics.is_some() {
            // One chain is enough to wait with.
            return Ok(Fate::Used(0));
        }
        self.statistics = Some(head);
        Ok(Fate::Kept)
    }

    /// Gives ranges back to the host; the bytes it took.
    pub(super) fn give(&self, memory: &GuestMemoryMmap, ranges: &mut [Range<u64>]) -> u64 {
        if self.shared.kept {
            return 0;
        }
        let Outcome { released, refused } = release(memory, ranges);
        count(&self.shared.counts.released, released);
        count(&self.shared.counts.refused, refused);
        released
    }

    fn give_rest(&mut self, memory: &GuestMemoryMmap) {
        let mut rest = self.held.take_rest();
        self.give(memory, &mut rest);
    }

    fn start_timer(&mut self, wait: Duration) -> bool {
        self.timer_runs = self.timer.reset(wait, None).is_ok();
        self.timer_runs
    }
}

impl QueueHandler for BalloonHandler {
    fn on_queue(&mut self, queues: &mut Queues, index: usize) -> Result<(), Fault> {
        let Some(queue) = queues.get(index) else { return Ok(()) };
        match index {
            INFLATE => queue.serve(|memory, chain| self.inflate(memory, chain)),
            DEFLATE => queue.serve(|memory, chain| self.deflate(memory, chain)),
            _ if self.layout.reporting == Some(index) => {
                queue.serve(|memory, chain| self.report(memory, chain))
            }
            _ if self.layout.statistics == Some(index) => {
                queue.serve(|memory, chain| self.learn(memory, chain))
            }
            _ => Ok(()),
        }
    }

    fn host_sources(&self) -> Vec<HostSource> {
        vec![HostSource::new(self.timer.as_raw_fd()), HostSource::new(self.shared.ask.as_raw_fd())]
    }

    fn on_host(&mut self, queues: &mut Queues, source: usize) -> Result<Listen, Fault> {
        match source {
            TIMER => {
                // Setting it takes its expiry, so that the descriptor is quiet again.
                let _ = self.timer.reset(Duration::ZERO, None);
                self.timer_runs = false;
                if let Some(queue) = queues.get(INFLATE) {
                    let memory = queue.memory().clone();
                    self.give_rest(&memory);
                    if self.held.is_waiting() {
                        self.start_timer(SOON);
                    }
                }
            }
            ASK => {
                let _ = self.shared.ask.read();
                let queue = self.layout.statistics.and_then(|index| queues.get(index));
                if let (Some(queue), Some(head)) = (queue, self.statistics) {
                    self.statistics = None;
                    queue.complete(head, 0)?;
                    queue.announce()?;
                }
            }
            _ => return Ok(Listen::No),
        }
        Ok(Listen::Yes)
    }
}

/// A chain's buffers, with an error in place of the rest of a chain that was cut short.
fn complete(chain: Chain<'_>) -> impl Iterator<Item = Result<virtio_queue::desc::split::Descriptor, Fault>> {
    let mut unfinished = true;
    let mut chain = chain;
    std::iter::from_fn(move || match chain.next() {
        Some(buffer) => {
            unfinished = buffer.has_next();
            Some(Ok(buffer))
        }
        None if std::mem::take(&mut unfinished) => Some(Err(Fault::Chain("a chain has no end"))),
        None => None,
    })
}

/// What to do with more bytes than are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Excess {
    Cut,
    Refuse,
}

/// The bytes of a chain's readable buffers.
fn read_all(
    memory: &GuestMemoryMmap,
    chain: Chain<'_>,
    most: usize,
    excess: Excess,
) -> Result<Vec<u8>, Fault> {
    let mut bytes = Vec::new();
    for buffer in complete(chain) {
        let buffer = buffer?;
        if buffer.is_write_only() {
            continue;
        }
        let room = most.saturating_sub(bytes.len());
        let len = buffer.len() as usize;
        if len > room && excess == Excess::Refuse {
            return Err(Fault::Chain("a chain has more page numbers than any driver sends"));
        }
        let start = bytes.len();
        bytes.resize(start.saturating_add(len.min(room)), 0);
        memory
            .read_slice(bytes.get_mut(start..).unwrap_or_default(), buffer.addr())
            .map_err(|_| Fault::Chain("a buffer lies outside memory"))?;
    }
    Ok(bytes)
}

/// The pages a chain names, 32 bits each (virtio 1.2 §5.5.6). Part of a number is none.
fn page_numbers(
    memory: &GuestMemoryMmap,
    chain: Chain<'_>,
) -> Result<impl Iterator<Item = u64> + use<>, Fault> {
    let bytes = read_all(memory, chain, MAX_PAGES.saturating_mul(4), Excess::Refuse)?;
    let (numbers, _) = bytes.as_chunks::<4>();
    let numbers: Vec<u64> = numbers.iter().map(|number| u32::from_le_bytes(*number).into()).collect();
    Ok(numbers.into_iter())
}

fn is_ram(memory: &GuestMemoryMmap, page: u64) -> bool {
    memory.address_in_range(GuestAddress(page.saturating_mul(PAGE)))
}

fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}
