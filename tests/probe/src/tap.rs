//! A tap interface that stays until it is removed, as a pod's network plugin would leave it for the VMM.

use std::fs::OpenOptions;
use std::os::fd::AsRawFd;

use crate::error::{Doing, Error, Result};

nix::ioctl_write_int!(set_persistent, b'T', 203);
nix::ioctl_write_ptr!(set_interface, b'T', 202, libc::c_int);

/// `tap`: makes `name`; with `multi_queue` it can be opened once for each queue (IFF_MULTI_QUEUE).
pub(crate) fn make(name: &str, multi_queue: bool) -> Result<()> {
    if name.is_empty() || name.len() >= libc::IFNAMSIZ {
        return Err(Error::Arguments(format!("{name:?} is no name of an interface: 1 to 15 bytes")));
    }
    let tun = OpenOptions::new().read(true).write(true).open("/dev/net/tun").doing("open /dev/net/tun")?;
    // SAFETY: `ifreq` is plain old data, for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if multi_queue {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes a whole `ifreq`, which lives during the call; its number is that of an integer.
    unsafe { set_interface(tun.as_raw_fd(), (&raw const request).cast()) }
        .doing(format!("make the tap {name}"))?;
    // SAFETY: takes a number only.
    unsafe { set_persistent(tun.as_raw_fd(), 1) }.doing(format!("keep the tap {name}"))?;
    println!("tap={name} multi_queue={multi_queue}");
    Ok(())
}
