//! What is typed for the guest: on our stdin, and by clients.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::sync::Notify;
use vmm_sys_util::eventfd::EventFd;

use super::keyboard;
use super::screen::borrow;
use super::terminal::{self, RawTerminal};

/// Bytes from clients that may wait for the guest.
pub(super) const QUEUE_BYTES: usize = 16 << 10;

/// Console input from clients that the guest has not taken yet. As a descriptor it is readable while there is some.
#[derive(Debug)]
pub struct InputQueue {
    bytes: Mutex<VecDeque<u8>>,
    ready: EventFd,
    room: Notify,
    closed: AtomicBool,
}

impl InputQueue {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            bytes: Mutex::default(),
            ready: EventFd::new(libc::EFD_NONBLOCK)?,
            room: Notify::new(),
            closed: AtomicBool::new(false),
        })
    }

    /// Puts all of `data` behind what waits already; takes as long as the guest takes to make room.
    pub async fn put(&self, mut data: &[u8]) {
        while !self.closed.load(Ordering::Acquire) {
            // Before the look, so that room that is made after it is not missed.
            let room = self.room.notified();
            data = data.get(self.offer(data)..).unwrap_or_default();
            if data.is_empty() {
                return;
            }
            room.await;
        }
    }

    /// Puts in what there is room for and says how much that was.
    fn offer(&self, data: &[u8]) -> usize {
        let mut bytes = self.lock();
        let room = QUEUE_BYTES.saturating_sub(bytes.len());
        let taken = data.get(..room).unwrap_or(data);
        bytes.extend(taken);
        if !taken.is_empty() {
            let _ = self.ready.write(1);
        }
        taken.len()
    }

    /// Takes what is there, at most `room` bytes, and never waits.
    pub fn read(&self, room: usize) -> Vec<u8> {
        let mut bytes = self.lock();
        let taken = bytes.len().min(room);
        let data = bytes.drain(..taken).collect();
        if bytes.is_empty() {
            let _ = self.ready.read();
        }
        if taken > 0 {
            self.room.notify_waiters();
        }
        data
    }

    /// Nobody takes anything any more.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.room.notify_waiters();
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<u8>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsFd for InputQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        borrow(&self.ready)
    }
}

/// Our stdin as the console's keyboard.
#[derive(Debug)]
pub struct ConsoleInput {
    source: OwnedFd,
    /// Puts the terminal back when the VM is gone.
    _terminal: Option<RawTerminal>,
}

impl ConsoleInput {
    /// Reads from `source`. A terminal is switched to raw mode, so that the guest gets every key; `Ctrl-A x` stops the VM,
    /// whatever the guest does. A terminal in whose background we are gives no input.
    #[must_use]
    pub fn new(source: OwnedFd) -> Option<Self> {
        if terminal::is_in_the_background(&source) {
            return None;
        }
        let Some(terminal) = RawTerminal::enter(&source) else {
            return Some(Self { source, _terminal: None });
        };
        let source = keyboard::watch(source).inspect_err(|error| {
            tracing::warn!(target: "nestling", "the terminal gives no input: {error}");
        });
        Some(Self { source: source.ok()?, _terminal: Some(terminal) })
    }

    /// Reads what is there, at most `room` bytes, and never waits; `None` when the source ended.
    pub fn read(&mut self, room: usize) -> Option<Vec<u8>> {
        // Not O_NONBLOCK: that would change the descriptor for everybody we share our stdin with.
        let mut fds = [PollFd::new(self.source.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, PollTimeout::ZERO) == Ok(0) {
            return Some(Vec::new());
        }
        let mut data = vec![0; room];
        match nix::unistd::read(&self.source, &mut data) {
            Ok(0) => None,
            Ok(len) => {
                data.truncate(len);
                Some(data)
            }
            Err(Errno::EINTR | Errno::EAGAIN) => Some(Vec::new()),
            Err(_) => None,
        }
    }
}

impl AsFd for ConsoleInput {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.source.as_fd()
    }
}
