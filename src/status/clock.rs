//! Time as the status tells it: milliseconds since the process began, and the wall clock beside it.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Counts from the first moment of the process.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    start: Instant,
    start_by_wall: SystemTime,
}

/// One moment in both times.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// Milliseconds since the process began, on the monotonic clock.
    pub ms: u64,
    /// The wall clock: RFC 3339, UTC, with milliseconds.
    pub time: String,
}

impl Clock {
    /// Begins to count. Called once, as the first thing the process does.
    #[must_use]
    pub fn begin() -> Self {
        Self { start: Instant::now(), start_by_wall: SystemTime::now() }
    }

    /// Milliseconds since the process began.
    #[must_use]
    pub fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// The moment the process began.
    #[must_use]
    pub fn beginning(&self) -> Moment {
        Moment { ms: 0, time: rfc3339(self.start_by_wall) }
    }

    /// This moment.
    #[must_use]
    pub fn now(&self) -> Moment {
        Moment { ms: self.elapsed_ms(), time: rfc3339(SystemTime::now()) }
    }
}

/// Formats a time as RFC 3339 in UTC with milliseconds; a clock before 1970 reads as 1970.
#[must_use]
pub fn rfc3339(time: SystemTime) -> String {
    let since_epoch = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let seconds = since_epoch.as_secs();
    let (year, month, day) = civil_date(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let millis = since_epoch.subsec_millis();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

/// Days since 1970-01-01 as a date of the Gregorian calendar, counted in 400-year eras that begin in March.
fn civil_date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468; // from 0000-03-01
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_seconds_are_known_dates() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399, "2000-02-28T23:59:59.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (1_709_251_199, "2024-02-29T23:59:59.000Z"),
            (1_795_305_600, "2026-11-22T00:00:00.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn milliseconds_only_grow() {
        let clock = Clock::begin();
        let first = clock.now();
        assert!(clock.now().ms >= first.ms);
    }
}
