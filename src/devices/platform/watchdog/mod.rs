//! The watchdog: a countdown that ends the machine unless the guest feeds it in time.
//!
//! Its driver is the one every stock kernel has for a watchdog that ACPI describes (the WDAT; Linux: wdat_wdt). Three
//! 32-bit registers; the driver's table in `boot::acpi` says which access means what:
//!
//! | offset | register | read | write |
//! |---|---|---|---|
//! | 0 | control | 1: it counts down | 1: start, 0: stop |
//! | 4 | timeout | milliseconds | the same; the countdown begins anew |
//! | 8 | remaining | milliseconds | any value: the countdown begins anew |
//!
//! Feeding it is one exit, which the guest makes every few seconds. A guest that does not open `/dev/watchdog` never
//! comes here, and no thread waits for it.

mod countdown;

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use self::countdown::Countdown;
use crate::devices::bus::BusDevice;
use crate::x86::layout::{
    WATCHDOG_CONTROL_PORT, WATCHDOG_REMAINING_PORT, WATCHDOG_RUN, WATCHDOG_STOP, WATCHDOG_TIMEOUT_PORT,
};

/// First port of the block.
pub const FIRST_PORT: u16 = WATCHDOG_CONTROL_PORT;
/// Ports in the block.
pub const PORTS: u64 = 12;

const CONTROL: u64 = 0;
const TIMEOUT: u64 = (WATCHDOG_TIMEOUT_PORT - FIRST_PORT) as u64;
const REMAINING: u64 = (WATCHDOG_REMAINING_PORT - FIRST_PORT) as u64;

/// The registers and the thread behind them.
pub struct Watchdog {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    on_expiry: Box<dyn Fn(Duration) + Send + Sync>,
}

#[derive(Default)]
struct State {
    countdown: Countdown,
    thread: Option<JoinHandle<()>>,
    shut_down: bool,
}

impl Watchdog {
    /// A stopped watchdog. When it expires, `on_expiry` hears once for how long the guest was silent.
    #[must_use]
    pub fn new(on_expiry: impl Fn(Duration) + Send + Sync + 'static) -> Self {
        let (state, changed) = (Mutex::default(), Condvar::new());
        Self { shared: Arc::new(Shared { state, changed, on_expiry: Box::new(on_expiry) }) }
    }

    /// Whether the guest has started it.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.shared.lock().countdown.is_running()
    }

    /// The machine is paused: the countdown stands still. To be called when no vCPU runs any more.
    pub fn pause(&self) {
        self.shared.lock().countdown.pause(Instant::now());
        self.shared.changed.notify_all();
    }

    /// The machine goes on, and the countdown from where it stood. To be called before the first vCPU runs.
    pub fn resume(&self) {
        self.shared.lock().countdown.resume(Instant::now());
        self.shared.changed.notify_all();
    }

    /// Stops the thread; the watchdog does not expire any more.
    pub fn shut_down(&self) {
        let thread = {
            let mut state = self.shared.lock();
            state.shut_down = true;
            state.thread.take()
        };
        self.shared.changed.notify_all();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the watchdog's thread panicked");
        }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.shut_down();
    }
}

impl BusDevice for Watchdog {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        let Ok(data) = <&mut [u8; 4]>::try_from(data) else { return };
        let countdown = self.shared.lock().countdown;
        let value = match offset {
            CONTROL if countdown.is_running() => WATCHDOG_RUN,
            CONTROL => WATCHDOG_STOP,
            TIMEOUT => millis(countdown.timeout()),
            REMAINING => millis(countdown.remaining(Instant::now())),
            _ => return,
        };
        *data = value.to_le_bytes();
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let Ok(data) = <[u8; 4]>::try_from(data) else { return };
        let (value, now) = (u32::from_le_bytes(data), Instant::now());
        let mut state = self.shared.lock();
        match (offset, value) {
            (CONTROL, WATCHDOG_RUN) => self.start(&mut state, now),
            (CONTROL, WATCHDOG_STOP) => state.countdown.stop(),
            (TIMEOUT, _) => state.countdown.set_timeout(value, now),
            (REMAINING, _) => state.countdown.feed(now),
            _ => return,
        }
        // A later deadline need not wake the thread: it looks again when the earlier one is there.
        if offset != REMAINING {
            self.shared.changed.notify_all();
        }
    }
}

impl Watchdog {
    fn start(&self, state: &mut State, now: Instant) {
        state.countdown.start(now);
        if state.thread.is_some() || state.shut_down {
            return;
        }
        let shared = Arc::clone(&self.shared);
        let thread = std::thread::Builder::new().name("watchdog".into()).stack_size(256 << 10);
        match thread.spawn(move || shared.keep_watch()) {
            Ok(thread) => state.thread = Some(thread),
            // The guest reads "stopped" and knows that nobody watches it.
            Err(error) => {
                state.countdown.stop();
                tracing::warn!(%error, "the watchdog has no thread: it stays stopped");
            }
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread: sleeps to the deadline, looks whether it still is one.
    fn keep_watch(&self) {
        let mut state = self.lock();
        while !state.shut_down {
            let now = Instant::now();
            if state.countdown.has_expired(now) {
                state.countdown.stop();
                let silent = state.countdown.timeout();
                drop(state);
                (self.on_expiry)(silent);
                return;
            }
            state = match state.countdown.deadline() {
                Some(deadline) => {
                    let wait = deadline.saturating_duration_since(now);
                    self.changed.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
