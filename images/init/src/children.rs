//! The children of this process: one place reaps them, and tells each one's owner how it ended.
//!
//! PID 1 inherits every orphan of the guest and has to reap it, so it waits for any child. The table says which
//! of them somebody waits for: their outcomes go there, the others' nowhere.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use nestling_protocol::Outcome;
use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};

/// Those that somebody waits for, by process. Who forks holds the lock until the child is in the table, and who reaps
/// holds it too: no outcome is lost, and no signal reaches a process that got a dead child's number.
static TABLE: Mutex<Table> = Mutex::new(Table { living: BTreeMap::new(), closed: false });

#[derive(Debug)]
struct Table {
    living: BTreeMap<i32, Arc<Exit>>,
    /// No more are to be made: all is ending.
    closed: bool,
}

/// How a child ended, once it has.
#[derive(Debug)]
struct Exit {
    outcome: Mutex<Option<Outcome>>,
    ended: Condvar,
    /// Readable from then on.
    readable: EventFd,
}

/// A child whose outcome is kept for its owner.
#[derive(Debug, Clone)]
pub(crate) struct Child {
    pid: i32,
    exit: Arc<Exit>,
}

/// Whether [`reap`] left any child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Left {
    Some,
    None,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes a child by `fork`, which gets the lock's protection and returns the child's number.
pub(crate) fn make(fork: impl FnOnce() -> nix::Result<i32>) -> nix::Result<Child> {
    let readable = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
    let exit = Arc::new(Exit { outcome: Mutex::new(None), ended: Condvar::new(), readable });
    let mut table = lock(&TABLE);
    if table.closed {
        return Err(Errno::ESHUTDOWN);
    }
    let pid = fork()?;
    table.living.insert(pid, exit.clone());
    Ok(Child { pid, exit })
}

/// Takes every child that has ended, and tells its owner. To be called after each SIGCHLD.
pub(crate) fn reap() -> Left {
    let living = &mut lock(&TABLE).living;
    loop {
        let mut status = 0;
        // SAFETY: `status` outlives the call. (nix's wrapper has no words for real-time signals, and loses who got one.)
        let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
        match pid {
            0 => return Left::Some,
            -1 if Errno::last() == Errno::ECHILD => return Left::None,
            -1 => continue,
            _ => {}
        }
        let outcome = if libc::WIFEXITED(status) {
            Outcome::Status(libc::WEXITSTATUS(status))
        } else if libc::WIFSIGNALED(status) {
            Outcome::Signal(libc::WTERMSIG(status))
        } else {
            continue;
        };
        if let Some(exit) = living.remove(&pid) {
            *lock(&exit.outcome) = Some(outcome);
            exit.ended.notify_all();
            // A counter that is full is readable too.
            let _readable = exit.readable.write(1);
        }
    }
}

/// Lets no more be made, and returns those that live and that somebody waits for.
pub(crate) fn close() -> Vec<Child> {
    let mut table = lock(&TABLE);
    table.closed = true;
    table.living.iter().map(|(pid, exit)| Child { pid: *pid, exit: exit.clone() }).collect()
}

impl Child {
    /// Its process; its session and process group too, for every child leads one of its own.
    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    /// How it ended, if it has.
    pub(crate) fn outcome(&self) -> Option<Outcome> {
        *lock(&self.exit.outcome)
    }

    /// Waits for its end, or until then.
    pub(crate) fn wait_until(&self, deadline: Instant) -> Option<Outcome> {
        let mut outcome = lock(&self.exit.outcome);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if outcome.is_some() || left.is_zero() {
                return *outcome;
            }
            let waited = self.exit.ended.wait_timeout(outcome, left);
            outcome = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits for its end.
    pub(crate) fn wait(&self) -> Outcome {
        let mut outcome = lock(&self.exit.outcome);
        loop {
            if let Some(outcome) = *outcome {
                return outcome;
            }
            outcome = self.exit.ended.wait(outcome).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Sends it a signal, if it lives. (By number: real-time signals have no name.)
    pub(crate) fn signal(&self, number: i32) -> nix::Result<()> {
        let table = lock(&TABLE);
        if !table.living.contains_key(&self.pid) {
            return Ok(());
        }
        // SAFETY: kill takes two integers. The child is not reaped, so the number is its own.
        Errno::result(unsafe { libc::kill(self.pid, number) }).map(drop)
    }
}

impl AsFd for Child {
    /// Readable once it has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.exit.readable.as_fd()
    }
}
