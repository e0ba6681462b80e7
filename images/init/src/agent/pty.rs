//! A pseudoterminal: the host's user at one end, a program at the other.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nestling_protocol::TerminalSize;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::stat::Mode;

/// Makes one of that size: our end, and the program's.
pub(super) fn make(size: TerminalSize) -> nix::Result<(OwnedFd, OwnedFd)> {
    let ours = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)?;
    grantpt(&ours)?;
    unlockpt(&ours)?;
    let name = ptsname_r(&ours)?;
    let programs = open(name.as_str(), OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC, Mode::empty())?;
    let ours: OwnedFd = ours.into();
    resize(&ours, size)?;
    Ok((ours, programs))
}

/// Gives it another size; the kernel tells the foreground program by SIGWINCH.
pub(super) fn resize<F: AsFd>(ours: &F, size: TerminalSize) -> nix::Result<()> {
    let size = libc::winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the kernel reads the structure, which outlives the call.
    Errno::result(unsafe { libc::ioctl(ours.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &raw const size) })
        .map(drop)
}

/// Gives it to whom the program runs as, so that it can be opened by name (`/dev/tty` needs nothing).
pub(super) fn give(programs: &OwnedFd, user: u32) -> nix::Result<()> {
    nix::unistd::fchown(programs, Some(nix::unistd::Uid::from_raw(user)), None)
}
