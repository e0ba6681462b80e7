//! Connections that have not asked for anything yet. When all places are taken, who comes next gets the oldest one's: idle
//! clients, however many, keep no probe out.

use std::collections::BTreeMap;
use std::future::pending;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// All of them, the oldest first.
#[derive(Debug, Clone, Default)]
pub(super) struct Idle(Arc<Mutex<Waiting>>);

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    seats: BTreeMap<u64, Arc<Notify>>,
}

/// One of them, until it asks or is dropped.
#[derive(Debug)]
pub(super) struct Seat {
    idle: Idle,
    number: u64,
    leave: Arc<Notify>,
    has_asked: AtomicBool,
}

impl Idle {
    /// A connection begins, and is idle.
    pub(super) fn sit_down(&self) -> Seat {
        let leave = Arc::new(Notify::new());
        let mut waiting = self.lock();
        let number = waiting.next;
        waiting.next = number.wrapping_add(1);
        waiting.seats.insert(number, Arc::clone(&leave));
        drop(waiting);
        Seat { idle: self.clone(), number, leave, has_asked: AtomicBool::new(false) }
    }

    /// Has the oldest one leave; `false` when none is idle.
    pub(super) fn dismiss_oldest(&self) -> bool {
        let oldest = self.lock().seats.pop_first();
        oldest.inspect(|(_, leave)| leave.notify_one()).is_some()
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seat {
    /// The connection has sent a request: it is idle no more.
    pub(super) fn ask(&self) {
        self.has_asked.store(true, Ordering::Relaxed);
        self.idle.lock().seats.remove(&self.number);
    }

    /// Returns when somebody else needs the place, and never when a request came before that.
    pub(super) async fn dismissed(&self) {
        self.leave.notified().await;
        if self.has_asked.load(Ordering::Relaxed) {
            pending::<()>().await;
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.idle.lock().seats.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    async fn is_dismissed(seat: &Seat) -> bool {
        timeout(Duration::from_millis(10), seat.dismissed()).await.is_ok()
    }

    #[tokio::test]
    async fn the_oldest_that_has_not_asked_leaves_first() {
        let idle = Idle::default();
        let (first, second, third) = (idle.sit_down(), idle.sit_down(), idle.sit_down());
        first.ask();
        assert!(idle.dismiss_oldest());
        assert!(is_dismissed(&second).await && !is_dismissed(&first).await && !is_dismissed(&third).await);
        drop(third);
        assert!(!idle.dismiss_oldest(), "one has asked, one is dismissed already, one is gone");
    }

    #[tokio::test]
    async fn a_request_that_comes_with_the_dismissal_is_answered() {
        let idle = Idle::default();
        let seat = idle.sit_down();
        assert!(idle.dismiss_oldest());
        seat.ask();
        assert!(!is_dismissed(&seat).await);
    }
}
