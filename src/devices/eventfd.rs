//! Eventfds that another process holds too.
//!
//! Whether a read or a write waits is a flag of the open file (O_NONBLOCK), and whoever was given the descriptor may change
//! it: a vhost-user back end could have a vCPU or a worker wait for it for ever.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vmm_sys_util::eventfd::EventFd;

/// Takes what was written, and never waits for it.
///
/// # Errors
/// The kernel's own.
pub fn take(event: &EventFd) -> io::Result<Option<u64>> {
    let mut count = 0_u64;
    let part = libc::iovec { iov_base: (&raw mut count).cast(), iov_len: size_of::<u64>() };
    // SAFETY: the only part is `count`, which any eight bytes may fill. No offset (-1): an eventfd has none.
    let read = unsafe { libc::preadv2(event.as_raw_fd(), &raw const part, 1, -1, libc::RWF_NOWAIT) };
    if read >= 0 {
        return Ok(Some(count));
    }
    match io::Error::last_os_error() {
        error if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        // Linux before 5.8 has the file's own flag and no other.
        error if error.raw_os_error() == Some(libc::EOPNOTSUPP) => match event.read() {
            Ok(count) => Ok(Some(count)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        },
        error => Err(error),
    }
}

/// Writes to it, unless its counter is full: then it is rung anyway. Returns whether it was written.
pub fn ring(event: &EventFd) -> bool {
    // SAFETY: `event` keeps it open.
    let fd = unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) };
    let mut watched = [PollFd::new(fd, PollFlags::POLLOUT)];
    let has_room = poll(&mut watched, PollTimeout::ZERO).is_ok_and(|ready| ready == 1);
    has_room && event.write(1).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As somebody leaves it who wants us to wait.
    fn waiting() -> EventFd {
        EventFd::new(0).unwrap()
    }

    #[test]
    fn neither_an_empty_nor_a_full_one_is_waited_for() {
        let event = waiting();
        assert_eq!(take(&event).unwrap(), None);
        assert!(ring(&event) && ring(&event));
        assert_eq!((take(&event).unwrap(), take(&event).unwrap()), (Some(2), None));
        event.write(u64::MAX - 1).unwrap();
        assert!(!ring(&event), "full");
        assert_eq!(take(&event).unwrap(), Some(u64::MAX - 1));
    }
}
