//! A terminal's keys on their way to the guest, which may not want them: somebody looks for `Ctrl-A x` all the same.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::thread;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{pipe2, read, write};

/// Keys taken at once.
const KEYS: usize = 256;
/// Bytes of stack of the thread.
const STACK: usize = 64 << 10;

/// Reads `terminal` on a thread of its own, and gives what is for the guest to the end of a pipe that is returned: as much as a
/// pipe holds waits there, and what is typed beyond that is lost, as with any keyboard. It ends with either.
pub(super) fn watch(terminal: OwnedFd) -> io::Result<OwnedFd> {
    let (guest, keys) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    let carry = move || {
        let mut escape = Escape::Ready;
        while let Some(mut typed) = next(&terminal, &keys) {
            typed.retain(|&byte| escape.pass(byte));
            if write(&keys, &typed) == Err(Errno::EPIPE) {
                return;
            }
        }
    };
    thread::Builder::new().name("keyboard".into()).stack_size(STACK).spawn(carry)?;
    Ok(guest)
}

/// Waits for keys; `None` when there are no more, or nobody wants them.
fn next(terminal: &OwnedFd, keys: &OwnedFd) -> Option<Vec<u8>> {
    loop {
        let mut fds = [
            PollFd::new(terminal.as_fd(), PollFlags::POLLIN),
            // The other end's close is told without being asked for.
            PollFd::new(keys.as_fd(), PollFlags::empty()),
        ];
        if !matches!(poll(&mut fds, PollTimeout::NONE), Ok(_) | Err(Errno::EINTR))
            || fds[1].any() == Some(true)
        {
            return None;
        }
        if fds[0].any() != Some(true) {
            continue;
        }
        let mut typed = vec![0; KEYS];
        match read(terminal, &mut typed) {
            Ok(len @ 1..) => {
                typed.truncate(len);
                return Some(typed);
            }
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            Ok(_) | Err(_) => return None,
        }
    }
}

/// The terminal's way out: `Ctrl-A x` stops the VM, `Ctrl-A Ctrl-A` sends one Ctrl-A.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Escape {
    Ready,
    Started,
}

impl Escape {
    const CTRL_A: u8 = 1;

    /// Whether this byte goes to the guest.
    pub(super) fn pass(&mut self, byte: u8) -> bool {
        match (*self, byte) {
            (Self::Ready, Self::CTRL_A) => {
                *self = Self::Started;
                false
            }
            (Self::Ready, _) => true,
            (Self::Started, b'x') => {
                *self = Self::Ready;
                // The orderly way to stop, as if it came from outside.
                let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGTERM);
                false
            }
            (Self::Started, _) => {
                *self = Self::Ready;
                true
            }
        }
    }
}
