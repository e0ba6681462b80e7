//! What is special when our stdin or stdout is a terminal.

use std::fs::OpenOptions;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::{Mutex, PoisonError};

use nix::sys::termios::{self, SetArg, Termios};

use super::window::WindowSize;

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
#[must_use]
pub fn is_in_the_background(source: impl AsFd) -> bool {
    nix::unistd::tcgetpgrp(source).is_ok_and(|foreground| foreground != nix::unistd::getpgrp())
}

/// The size of the terminal behind `fd`, if it is one that has a size.
#[must_use]
pub fn window_size(fd: impl AsFd) -> Option<WindowSize> {
    nix::ioctl_read_bad!(get_window_size, libc::TIOCGWINSZ, libc::winsize);
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the descriptor is open, and the kernel writes one `winsize` into ours.
    unsafe { get_window_size(fd.as_fd().as_raw_fd(), &raw mut size) }.ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then_some(WindowSize { cols: size.ws_col, rows: size.ws_row })
}

/// The terminal that is in raw mode, and how it was before. Here, so that whoever ends the process without dropping
/// anything can put it back.
static RAW: Mutex<Option<(OwnedFd, Termios)>> = Mutex::new(None);

/// Puts the terminal back as it was before raw mode, if there is one.
pub fn restore() {
    let raw = RAW.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some((terminal, before)) = raw {
        let _ = termios::tcsetattr(&terminal, SetArg::TCSANOW, &before);
    }
}

/// A terminal in raw mode, put back as it was when dropped. A process has one at most.
#[derive(Debug)]
pub struct RawTerminal(());

impl RawTerminal {
    /// Gives every key to the guest, if `source` is a terminal.
    #[must_use]
    pub fn enter(source: impl AsFd) -> Option<Self> {
        let before = termios::tcgetattr(&source).ok()?;
        let terminal = source.as_fd().try_clone_to_owned().ok()?;
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        // Output stays cooked: our own log lines share the terminal.
        raw.output_flags = before.output_flags;
        let mut place = RAW.lock().unwrap_or_else(PoisonError::into_inner);
        termios::tcsetattr(&terminal, SetArg::TCSANOW, &raw).ok()?;
        *place = Some((terminal, before));
        Some(Self(()))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}
