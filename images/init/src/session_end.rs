//! Ending a session: all processes that one program started, however they are grouped.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::children::Child;

/// How often to look whether anybody is left.
const BETWEEN_LOOKS: Duration = Duration::from_millis(20);

/// How long after SIGKILL to go on looking: a process that waits for a disk ends when that answers.
const LAST_LOOKS: Duration = Duration::from_secs(2);

/// How many sessions are being ended right now.
static UNDER_WAY: AtomicUsize = AtomicUsize::new(0);

/// Counts one while it lives.
struct UnderWay;

impl UnderWay {
    fn new() -> Self {
        UNDER_WAY.fetch_add(1, Ordering::Relaxed);
        Self
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        UNDER_WAY.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whether some thread is ending a session: until it has, this process should not end.
pub(crate) fn is_under_way() -> bool {
    UNDER_WAY.load(Ordering::Relaxed) > 0
}

/// Ends the session that the child leads, or led: SIGHUP and SIGTERM to everybody in it, SIGKILL after the grace.
pub(crate) fn end(leader: &Child, grace: Duration) {
    let _counted = UnderWay::new();
    ask(leader);
    let deadline = Instant::now() + grace;
    while Instant::now() < deadline {
        if leader.outcome().is_some() && members(leader.pid()).is_empty() {
            return;
        }
        sleep(BETWEEN_LOOKS);
    }
    kill(leader);
}

/// Tells everybody in the session to end. (A stopped process has to be woken to see the signal.)
pub(crate) fn ask(leader: &Child) {
    for signal in [libc::SIGHUP, libc::SIGTERM, libc::SIGCONT] {
        tell(leader, signal);
    }
}

/// Kills the session that the child leads, or led, and waits until it is gone.
pub(crate) fn kill(leader: &Child) {
    let _counted = UnderWay::new();
    let deadline = Instant::now() + LAST_LOOKS;
    // Again and again, for who forks meanwhile has a child that was not in the list.
    while tell(leader, libc::SIGKILL) && Instant::now() < deadline {
        sleep(BETWEEN_LOOKS);
    }
}

/// Sends a signal to everybody in the session; false when there is nobody.
fn tell(leader: &Child, signal: i32) -> bool {
    // By itself, for one that has just been forked leads no session yet. That it has ended is no error that matters.
    let _ended = leader.signal(signal);
    let members = members(leader.pid());
    for member in &members {
        // SAFETY: kill takes two integers. One that has ended since it was listed is no error that matters.
        let _ended = unsafe { libc::kill(*member, signal) };
    }
    leader.outcome().is_none() || !members.is_empty()
}

/// The session's processes, those that have ended (zombies) left out.
fn members(session: i32) -> Vec<i32> {
    let Ok(processes) = std::fs::read_dir("/proc") else { return Vec::new() };
    let numbers = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    let of_session = numbers.filter(|pid| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        is_alive_in(&stat, session)
    });
    of_session.collect()
}

/// Whether `/proc/PID/stat` is of a living process of that session (proc(5): after the name in parentheses, which may
/// hold any character, come state, parent, process group, session).
fn is_alive_in(stat: &str, session: i32) -> bool {
    let Some((_, fields)) = stat.rsplit_once(')') else { return false };
    let mut fields = fields.split_whitespace();
    let alive = fields.next().is_some_and(|state| !matches!(state, "Z" | "X"));
    alive && fields.nth(2).and_then(|field| field.parse().ok()) == Some(session)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_read_whatever_the_process_is_called() {
        assert!(is_alive_in("12 (a) S 1 2 3) S 1 12 77 0 -1", 77));
        assert!(!is_alive_in("12 (sh) S 1 12 78 0 -1", 77));
        assert!(!is_alive_in("12 (sh) Z 1 12 77 0 -1", 77));
        assert!(!is_alive_in("", 77));
    }
}
