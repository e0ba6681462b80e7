//! A guest can do the same wrong thing a million times; the log hears of it a few times.

use std::sync::atomic::{AtomicU32, Ordering};

/// How often one source may speak.
const LIMIT: u32 = 5;

/// Counts one source's log lines.
#[derive(Debug, Default)]
pub struct Complaints(AtomicU32);

impl Complaints {
    /// Whether this line should be logged.
    pub fn may_speak(&self) -> bool {
        // Saturates: a wrapped counter would speak again.
        let count = |spoken: u32| Some(spoken.saturating_add(1));
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, count).is_ok_and(|spoken| spoken < LIMIT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_lines_and_then_silence() {
        let complaints = Complaints::default();
        assert_eq!((0..1000).filter(|_| complaints.may_speak()).count(), LIMIT as usize);
        complaints.0.store(u32::MAX, Ordering::Relaxed);
        assert!(!complaints.may_speak());
    }
}
