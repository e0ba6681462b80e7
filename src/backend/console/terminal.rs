//! What is special when our stdin or stdout is a terminal.

use std::fs::OpenOptions;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::sys::termios::{self, SetArg, Termios};

/// A terminal that poll calls writable may block all the same, so it is opened once more, without blocking: a flag on the
/// descriptor we were given would hold for everybody who shares it.
pub(super) fn unblocked(output: OwnedFd) -> OwnedFd {
    if !nix::unistd::isatty(&output).unwrap_or(false) {
        return output;
    }
    let path = format!("/proc/self/fd/{}", output.as_raw_fd());
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    OpenOptions::new().write(true).custom_flags(flags).open(path).map_or(output, OwnedFd::from)
}

/// Whether `source` is a terminal that belongs to somebody else now (`nestling run &`): reading it, or setting its mode,
/// would stop our whole process.
pub(super) fn is_in_the_background(source: &OwnedFd) -> bool {
    nix::unistd::tcgetpgrp(source).is_ok_and(|foreground| foreground != nix::unistd::getpgrp())
}

/// A terminal in raw mode, put back as it was when dropped.
#[derive(Debug)]
pub(super) struct RawTerminal {
    terminal: OwnedFd,
    before: Termios,
}

impl RawTerminal {
    /// Gives every key to the guest, if `source` is a terminal.
    pub(super) fn enter(source: &OwnedFd) -> Option<Self> {
        let before = termios::tcgetattr(source).ok()?;
        let terminal = source.try_clone().ok()?;
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        // Output stays cooked: our own log lines share the terminal.
        raw.output_flags = before.output_flags;
        termios::tcsetattr(&terminal, SetArg::TCSANOW, &raw).ok()?;
        Some(Self { terminal, before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        let _ = termios::tcsetattr(&self.terminal, SetArg::TCSANOW, &self.before);
    }
}
