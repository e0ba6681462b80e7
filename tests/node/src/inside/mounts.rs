//! The file systems and the network interface that programs expect.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use nix::mount::{MsFlags, mount};

use crate::error::{Doing, Result};

const NOTHING_SPECIAL: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC);
/// (type, place, flags, options), in order.
const MOUNTS: [(&str, &str, MsFlags, &str); 6] = [
    ("proc", "/proc", NOTHING_SPECIAL.union(MsFlags::MS_NODEV), ""),
    ("sysfs", "/sys", NOTHING_SPECIAL.union(MsFlags::MS_NODEV), ""),
    ("devtmpfs", "/dev", MsFlags::MS_NOSUID, "mode=0755"),
    ("devpts", "/dev/pts", NOTHING_SPECIAL, "ptmxmode=0666"),
    ("tmpfs", "/dev/shm", MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV), "mode=1777"),
    ("cgroup2", "/sys/fs/cgroup", NOTHING_SPECIAL.union(MsFlags::MS_NODEV), ""),
];
const DIRECTORIES: [&str; 2] = ["/run", "/var/tmp"];

pub(super) fn mount_all() -> Result<()> {
    for (kind, place, flags, options) in MOUNTS {
        let place = Path::new(place);
        fs::create_dir_all(place).on("create", place)?;
        mount(Some(kind), place, Some(kind), flags, Some(options)).on("mount", place)?;
    }
    for directory in DIRECTORIES {
        fs::create_dir_all(directory).on("create", Path::new(directory))?;
    }
    Ok(())
}

/// Sets IFF_UP on `lo`, which gives it 127.0.0.1.
pub(super) fn bring_loopback_up() -> Result<()> {
    raise("lo").doing("bring the loopback interface up")
}

fn raise(interface: &str) -> io::Result<()> {
    // SAFETY: takes numbers only.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was made above and belongs to nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: all zeroes is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero.
    for (to, from) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: the request lives during the call, and is what this call reads.
    match unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
