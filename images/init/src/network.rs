//! The little network every program counts on: a host name and the loopback interface.

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use std::os::fd::{AsRawFd, OwnedFd};

/// `sethostname`, or a sentence.
pub(crate) fn name_host(name: &str) {
    if let Err(error) = nix::unistd::sethostname(name) {
        crate::say!("cannot set the host name {name}: {}", error.desc());
    }
}

/// `ip link set lo up`, or a sentence; the kernel then gives it 127.0.0.1 and ::1 itself.
pub(crate) fn loopback_up() {
    let result = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
        .and_then(|socket| set_up(&socket, b"lo\0"));
    if let Err(error) = result {
        crate::say!("cannot bring up the loopback interface: {}", error.desc());
    }
}

fn set_up(socket: &OwnedFd, name: &[u8]) -> nix::Result<()> {
    // SAFETY: `ifreq` is plain old data (an array and a union of integers), for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name) {
        *to = from.cast_signed();
    }
    // SAFETY: the kernel reads the name, and writes the flags, within `request`, which outlives the call.
    nix::errno::Errno::result(unsafe {
        libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request)
    })?;
    // SAFETY: SIOCGIFFLAGS has just filled this member of the union.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | i16::try_from(libc::IFF_UP).unwrap_or(1);
    // SAFETY: as above; the kernel only reads.
    nix::errno::Errno::result(unsafe {
        libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request)
    })?;
    Ok(())
}
