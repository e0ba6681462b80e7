//! Our stdout as the console's screen: whoever reads it may stop, the guest must not.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vmm_sys_util::eventfd::EventFd;

use super::terminal;

/// A pipe that poll calls writable takes this much without blocking (PIPE_BUF).
const CHUNK: usize = 4096;
/// How long the guest's output waits for somebody to take it, in milliseconds. A Linux guest spins in its console driver
/// meanwhile, so a log collector that stalls must not stall the guest for good.
const PATIENCE_MS: u16 = 1000;
/// How long a terminal without room is left alone, in milliseconds.
const FULL_TERMINAL_WAIT_MS: u8 = 20;

/// Where the guest's output is shown.
#[derive(Debug)]
pub(super) struct Screen {
    output: OwnedFd,
    open: AtomicBool,
    /// Nobody took output for [`PATIENCE_MS`]: until somebody does, nothing waits for them.
    stalled: AtomicBool,
    dropped: AtomicU64,
    cancel: EventFd,
}

impl Screen {
    pub(super) fn new(output: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            output: terminal::unblocked(output),
            open: AtomicBool::new(true),
            stalled: AtomicBool::new(false),
            dropped: AtomicU64::new(0),
            cancel: EventFd::new(libc::EFD_NONBLOCK)?,
        })
    }

    pub(super) fn write(&self, data: &[u8]) {
        for chunk in data.chunks(CHUNK) {
            if self.open.load(Ordering::Relaxed) && self.write_chunk(chunk).is_err() {
                self.open.store(false, Ordering::Relaxed);
            }
        }
    }

    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    pub(super) fn cancel(&self) {
        let _ = self.cancel.write(1);
    }

    fn write_chunk(&self, mut chunk: &[u8]) -> nix::Result<()> {
        while !chunk.is_empty() {
            let mut fds = [
                PollFd::new(self.output.as_fd(), PollFlags::POLLOUT),
                PollFd::new(borrow(&self.cancel), PollFlags::POLLIN),
            ];
            let patience = if self.stalled.load(Ordering::Relaxed) { 0 } else { PATIENCE_MS };
            match poll(&mut fds, PollTimeout::from(patience)) {
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(errno),
                Ok(0) => {
                    self.stalled.store(true, Ordering::Relaxed);
                    self.dropped.fetch_add(chunk.len() as u64, Ordering::Relaxed);
                    return Ok(());
                }
                Ok(_) => self.stalled.store(false, Ordering::Relaxed),
            }
            let writable = fds[0].revents().is_some_and(|events| !events.is_empty());
            if !writable {
                return Err(Errno::ECANCELED);
            }
            match nix::unistd::write(&self.output, chunk) {
                Ok(done) => chunk = chunk.get(done..).unwrap_or_default(),
                Err(Errno::EINTR) => {}
                // A terminal with room for one byte has none for a line's end, which it makes two of.
                Err(Errno::EAGAIN) => self.pause()?,
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    fn pause(&self) -> nix::Result<()> {
        let mut fds = [PollFd::new(borrow(&self.cancel), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::from(FULL_TERMINAL_WAIT_MS)) {
            Ok(0) | Err(Errno::EINTR) => Ok(()),
            Ok(_) => Err(Errno::ECANCELED),
            Err(errno) => Err(errno),
        }
    }
}

/// An eventfd as something to wait for.
pub(super) fn borrow(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is open as long as `event` is borrowed.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}
