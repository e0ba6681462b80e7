//! Token buckets: how many bytes and operations a device may move per second.
//!
//! A bucket fills at its rate up to its burst. An operation may begin while the bucket is not in debt, and takes what it
//! needs, more than is there if need be: so one that is larger than the burst is served too, and those after it wait until
//! the debt is paid. [`RateLimit`] adds the timer that wakes a device's worker then.

// A guest chooses the amounts here.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vmm_sys_util::timerfd::TimerFd;

/// How fast a bucket fills and how much it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Tokens per second; at least 1.
    pub per_second: u64,
    /// Tokens it holds when full: what may be spent at once after a quiet time. At least 1.
    pub burst: u64,
}

impl Rate {
    /// A rate whose burst is what a second brings.
    #[must_use]
    pub fn new(per_second: u64) -> Self {
        Self { per_second, burst: per_second }
    }
}

/// One bucket. Time is given to it, so that it can be tested without a clock.
#[derive(Debug)]
struct Bucket {
    rate: Rate,
    /// Billionths of a token; less than nothing is debt.
    level: i128,
    filled: Instant,
}

/// Parts of a token: one comes each nanosecond per token of the rate.
const TOKEN: i128 = 1_000_000_000;

impl Bucket {
    fn new(rate: Rate, now: Instant) -> Self {
        let rate = Rate { per_second: rate.per_second.max(1), burst: rate.burst.max(1) };
        Self { rate, level: Self::full(rate), filled: now }
    }

    fn full(rate: Rate) -> i128 {
        i128::from(rate.burst).saturating_mul(TOKEN)
    }

    fn fill(&mut self, now: Instant) {
        let nanos = now.saturating_duration_since(self.filled).as_nanos();
        let new = i128::try_from(nanos).unwrap_or(i128::MAX).saturating_mul(self.rate.per_second.into());
        self.level = self.level.saturating_add(new).min(Self::full(self.rate));
        self.filled = now;
    }

    /// How long until the debt is paid; zero when there is none.
    fn wait(&self) -> Duration {
        let debt = self.level.saturating_neg().max(0).unsigned_abs();
        // A part of a nanosecond is a whole one, so that the debt is paid when the timer says so.
        let nanos = debt.div_ceil(self.rate.per_second.max(1).into());
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    fn take(&mut self, tokens: u64) {
        self.level = self.level.saturating_sub(i128::from(tokens).saturating_mul(TOKEN));
    }
}

/// Whether an operation may begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// It may, and has been paid for.
    Now,
    /// Not before the timer expires.
    Wait,
}

/// The buckets of one limit.
#[derive(Debug)]
struct Buckets {
    bytes: Option<Bucket>,
    operations: Option<Bucket>,
}

impl Buckets {
    fn wait_at(&mut self, now: Instant) -> Duration {
        let buckets = self.bytes.iter_mut().chain(&mut self.operations);
        buckets
            .map(|bucket| {
                bucket.fill(now);
                bucket.wait()
            })
            .max()
            .unwrap_or(Duration::ZERO)
    }

    fn take(&mut self, bytes: u64) {
        if let Some(bucket) = &mut self.bytes {
            bucket.take(bytes);
        }
        if let Some(bucket) = &mut self.operations {
            bucket.take(1);
        }
    }
}

/// A limit on bytes and operations per second, and the timer that ends a wait.
#[derive(Debug)]
pub struct RateLimit {
    buckets: Arc<Mutex<Buckets>>,
    timer: TimerFd,
    waits: u64,
}

impl RateLimit {
    /// A limit with full buckets; `None` where neither bytes nor operations are limited.
    ///
    /// # Errors
    /// When the kernel has no timer for it.
    pub fn new(bytes: Option<Rate>, operations: Option<Rate>) -> io::Result<Option<Self>> {
        if bytes.is_none() && operations.is_none() {
            return Ok(None);
        }
        let now = Instant::now();
        let bucket = |rate: Option<Rate>| rate.map(|rate| Bucket::new(rate, now));
        let buckets = Buckets { bytes: bucket(bytes), operations: bucket(operations) };
        let timer = TimerFd::new().map_err(io::Error::from)?;
        Ok(Some(Self { buckets: Arc::new(Mutex::new(buckets)), timer, waits: 0 }))
    }

    /// The same limit for another worker, with a timer of its own: together they move no more than one.
    ///
    /// # Errors
    /// When the kernel has no timer for it.
    pub fn share(&self) -> io::Result<Self> {
        let timer = TimerFd::new().map_err(io::Error::from)?;
        Ok(Self { buckets: Arc::clone(&self.buckets), timer, waits: 0 })
    }

    fn buckets(&self) -> MutexGuard<'_, Buckets> {
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for one operation of `bytes` bytes. After [`Admission::Wait`] the timer's descriptor is readable when it is
    /// worth asking again.
    pub fn admit(&mut self, bytes: u64) -> Admission {
        self.ask(Some(bytes))
    }

    /// As [`RateLimit::admit`], for an operation whose size is not known before it is done; then it is paid for by
    /// [`RateLimit::spend`].
    pub fn ready(&mut self) -> Admission {
        self.ask(None)
    }

    /// Pays for one operation of `bytes` bytes.
    pub fn spend(&mut self, bytes: u64) {
        self.buckets().take(bytes);
    }

    fn ask(&mut self, bytes: Option<u64>) -> Admission {
        let mut buckets = self.buckets();
        let wait = buckets.wait_at(Instant::now());
        if wait.is_zero() {
            if let Some(bytes) = bytes {
                buckets.take(bytes);
            }
            return Admission::Now;
        }
        drop(buckets);
        self.waits = self.waits.saturating_add(1);
        if self.timer.reset(wait, None).is_err() {
            // Without a timer the device would wait for ever.
            return Admission::Now;
        }
        Admission::Wait
    }

    /// The timer's descriptor: a host source of the handler that asks.
    #[must_use]
    pub fn fd(&self) -> RawFd {
        self.timer.as_raw_fd()
    }

    /// Takes the timer's expiry, so that the descriptor is quiet again. Never waits.
    pub fn settle(&mut self) {
        // A timer that has not expired is set to expire later: reading it would wait.
        if self.timer.is_armed().unwrap_or(false) && !self.buckets().wait_at(Instant::now()).is_zero() {
            return;
        }
        let _ = self.timer.reset(Duration::ZERO, None);
    }

    /// How often an operation had to wait.
    #[must_use]
    pub fn waits(&self) -> u64 {
        self.waits
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_burst_is_there_at_once_and_then_the_rate_counts() {
        let start = Instant::now();
        let mut bucket = Bucket::new(Rate { per_second: 100, burst: 10 }, start);
        bucket.take(10);
        assert_eq!(bucket.wait(), Duration::ZERO, "empty is no debt");
        bucket.take(1);
        assert_eq!(bucket.wait(), Duration::from_millis(10));
        bucket.fill(start + Duration::from_millis(10));
        assert_eq!(bucket.wait(), Duration::ZERO);
        bucket.fill(start + 1000 * SECOND);
        assert_eq!(bucket.level, 10 * TOKEN, "it holds no more than its burst");
    }

    #[test]
    fn an_operation_larger_than_the_burst_is_served_and_paid_for() {
        let start = Instant::now();
        let mut bucket = Bucket::new(Rate::new(100), start);
        bucket.take(1100);
        assert_eq!(bucket.wait(), 10 * SECOND);
        bucket.fill(start + 10 * SECOND);
        assert_eq!(bucket.wait(), Duration::ZERO);
    }

    #[test]
    fn extreme_rates_and_amounts_neither_overflow_nor_stall() {
        let start = Instant::now();
        for rate in [Rate { per_second: 0, burst: 0 }, Rate::new(u64::MAX)] {
            let mut bucket = Bucket::new(rate, start);
            for _ in 0..4 {
                bucket.take(u64::MAX);
            }
            bucket.fill(start + Duration::from_secs(1 << 40));
            let _ = bucket.wait();
        }
    }

    #[test]
    fn the_timer_wakes_when_the_debt_is_paid() {
        let mut limit = RateLimit::new(None, Some(Rate { per_second: 1000, burst: 1 })).unwrap().unwrap();
        let mut admitted = 0;
        while limit.admit(1 << 40) == Admission::Now {
            admitted += 1;
        }
        assert!((1..50).contains(&admitted), "a burst of one, not {admitted}");
        let mut poll = libc::pollfd { fd: limit.fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one pollfd of this stack frame.
        assert_eq!(unsafe { libc::poll(&raw mut poll, 1, 10_000) }, 1);
        limit.settle();
        // SAFETY: as above.
        assert_eq!(unsafe { libc::poll(&raw mut poll, 1, 0) }, 0, "settled");
        assert_eq!(limit.admit(0), Admission::Now);
        assert_eq!(limit.waits(), 1);
    }

    #[test]
    fn workers_that_share_a_limit_share_its_debt() {
        let mut first = RateLimit::new(Some(Rate { per_second: 1, burst: 1 }), None).unwrap().unwrap();
        let mut second = first.share().unwrap();
        assert_eq!((first.ready(), second.ready()), (Admission::Now, Admission::Now), "asking costs nothing");
        first.spend(1000);
        assert_eq!((first.ready(), second.admit(1)), (Admission::Wait, Admission::Wait));
        assert_ne!(first.fd(), second.fd());
    }

    #[test]
    fn no_limit_needs_no_timer() {
        assert!(RateLimit::new(None, None).unwrap().is_none());
    }

    proptest! {
        /// However operations come, no more is spent than the burst, the rate, and one operation's debt.
        #[test]
        fn the_rate_holds(operations in proptest::collection::vec((1_u64..500, 0_u64..20), 1..200)) {
            let start = Instant::now();
            let (rate, mut now, mut spent) = (Rate { per_second: 1000, burst: 300 }, start, 0);
            let mut bucket = Bucket::new(rate, start);
            for (tokens, pause_ms) in operations {
                now += Duration::from_millis(pause_ms);
                bucket.fill(now);
                if bucket.wait().is_zero() {
                    bucket.take(tokens);
                    spent += tokens;
                }
                let most = 300 + (now - start).as_millis() as u64 + 500;
                prop_assert!(spent <= most, "{spent} of at most {most}");
            }
        }
    }
}
