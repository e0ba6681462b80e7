//! The countdown as a value: told what time it is, it has no clock of its own.

use std::time::{Duration, Instant};

use crate::x86::layout::WATCHDOG_MAX_MS;

/// What a guest gets that starts the watchdog without saying for how long.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// How long the guest may be silent, and for how long it has been.
#[derive(Debug, Clone, Copy)]
pub(super) struct Countdown {
    timeout: Duration,
    running: bool,
    paused: bool,
    /// What was left at `since`.
    left: Duration,
    /// When it began to count down: set while it runs and the machine is not paused.
    since: Option<Instant>,
}

impl Default for Countdown {
    fn default() -> Self {
        Self { timeout: DEFAULT_TIMEOUT, running: false, paused: false, left: DEFAULT_TIMEOUT, since: None }
    }
}

impl Countdown {
    /// Whether the guest has started it; a pause of the machine does not change that.
    pub(super) fn is_running(&self) -> bool {
        self.running
    }

    /// How long the guest may be silent.
    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// What is left of it.
    pub(super) fn remaining(&self, now: Instant) -> Duration {
        let passed = self.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        self.left.saturating_sub(passed)
    }

    /// Starts it, if it does not run already.
    pub(super) fn start(&mut self, now: Instant) {
        if !self.running {
            self.running = true;
            self.feed(now);
        }
    }

    /// Stops it.
    pub(super) fn stop(&mut self) {
        (self.running, self.since) = (false, None);
    }

    /// The guest is alive: the countdown begins anew.
    pub(super) fn feed(&mut self, now: Instant) {
        self.left = self.timeout;
        self.since = (self.running && !self.paused).then_some(now);
    }

    /// From now on the guest may be silent for so long.
    pub(super) fn set_timeout(&mut self, millis: u32, now: Instant) {
        self.timeout = Duration::from_millis(millis.clamp(1, WATCHDOG_MAX_MS).into());
        self.feed(now);
    }

    /// The machine is paused: what is left stays.
    pub(super) fn pause(&mut self, now: Instant) {
        self.left = self.remaining(now);
        (self.paused, self.since) = (true, None);
    }

    /// The machine goes on.
    pub(super) fn resume(&mut self, now: Instant) {
        if self.paused {
            self.paused = false;
            self.since = self.running.then_some(now);
        }
    }

    /// When it expires if nothing happens before.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.since?.checked_add(self.left)
    }

    /// Whether the guest was silent for too long.
    pub(super) fn has_expired(&self, now: Instant) -> bool {
        self.deadline().is_some_and(|deadline| deadline <= now)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    /// A countdown of ten seconds, started now.
    fn started() -> (Countdown, Instant) {
        let (mut countdown, now) = (Countdown::default(), Instant::now());
        countdown.set_timeout(10_000, now);
        countdown.start(now);
        (countdown, now)
    }

    #[test]
    fn it_expires_when_nobody_feeds_it_and_not_before() {
        let (countdown, start) = started();
        assert_eq!(countdown.deadline(), Some(start + seconds(10)));
        assert!(!countdown.has_expired(start + Duration::from_millis(9_999)));
        assert!(countdown.has_expired(start + seconds(10)));
        assert_eq!(countdown.remaining(start + seconds(4)), seconds(6));
        assert_eq!(countdown.remaining(start + seconds(40)), Duration::ZERO);
    }

    #[test]
    fn feeding_begins_anew_and_starting_twice_does_not() {
        let (mut countdown, start) = started();
        countdown.start(start + seconds(9));
        assert!(countdown.has_expired(start + seconds(10)), "a second start is no food");
        countdown.feed(start + seconds(9));
        assert!(!countdown.has_expired(start + seconds(18)));
        assert!(countdown.has_expired(start + seconds(19)));
    }

    #[test]
    fn a_stopped_one_never_expires_and_a_new_start_is_a_whole_one() {
        let (mut countdown, start) = started();
        countdown.stop();
        assert!(!countdown.has_expired(start + seconds(1000)) && countdown.deadline().is_none());
        countdown.start(start + seconds(1000));
        assert_eq!(countdown.deadline(), Some(start + seconds(1010)));
    }

    #[test]
    fn a_pause_of_the_machine_is_not_the_guests_silence() {
        let (mut countdown, start) = started();
        countdown.pause(start + seconds(7));
        assert!(!countdown.has_expired(start + seconds(5000)) && countdown.is_running());
        assert_eq!(countdown.remaining(start + seconds(5000)), seconds(3));
        countdown.pause(start + seconds(5000));
        countdown.resume(start + seconds(6000));
        countdown.resume(start + seconds(6002));
        assert!(!countdown.has_expired(start + seconds(6002)));
        assert!(countdown.has_expired(start + seconds(6003)));
    }

    #[test]
    fn a_timeout_out_of_bounds_is_the_nearest_one_within() {
        let (mut countdown, start) = started();
        countdown.set_timeout(0, start);
        assert_eq!(countdown.timeout(), Duration::from_millis(1));
        countdown.set_timeout(u32::MAX, start);
        assert_eq!(countdown.timeout(), seconds(3600));
        assert_eq!(countdown.deadline(), Some(start + seconds(3600)));
    }

    #[derive(Debug, Clone, Copy)]
    enum Step {
        Start,
        Stop,
        Feed,
        Timeout(u32),
        Pause,
        Resume,
        Wait(u64),
    }

    fn any_step() -> impl Strategy<Value = Step> {
        prop_oneof![
            Just(Step::Start),
            Just(Step::Stop),
            Just(Step::Feed),
            any::<u32>().prop_map(Step::Timeout),
            Just(Step::Pause),
            Just(Step::Resume),
            (0..5_000_000_u64).prop_map(Step::Wait),
        ]
    }

    proptest! {
        #[test]
        fn it_expires_only_while_it_runs_and_the_machine_does(steps in prop::collection::vec(any_step(), 0..40)) {
            let (mut countdown, mut now) = (Countdown::default(), Instant::now());
            let mut paused = false;
            for step in steps {
                match step {
                    Step::Start => countdown.start(now),
                    Step::Stop => countdown.stop(),
                    Step::Feed => countdown.feed(now),
                    Step::Timeout(millis) => countdown.set_timeout(millis, now),
                    Step::Pause => { paused = true; countdown.pause(now) }
                    Step::Resume => { paused = false; countdown.resume(now) }
                    Step::Wait(millis) => now += Duration::from_millis(millis),
                }
                let counts = countdown.is_running() && !paused;
                prop_assert_eq!(countdown.deadline().is_some(), counts);
                prop_assert_eq!(countdown.has_expired(now), counts && countdown.remaining(now).is_zero());
                prop_assert!(countdown.remaining(now) <= countdown.timeout());
            }
        }
    }
}
