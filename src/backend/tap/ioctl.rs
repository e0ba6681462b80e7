//! The kernel's calls about taps (`linux/if_tun.h`) and interfaces (netdevice(7)), with their arguments typed.

use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::libc;

/// Bytes of an interface's name, the NUL included.
pub(super) const NAME_BYTES: usize = libc::IFNAMSIZ;

const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
const TUNSETOFFLOAD: libc::Ioctl = 0x4004_54d0;
const TUNGETIFF: libc::Ioctl = 0x8004_54d2;
const TUNSETSNDBUF: libc::Ioctl = 0x4004_54d4;
const TUNGETVNETHDRSZ: libc::Ioctl = 0x8004_54d7;
const TUNSETVNETHDRSZ: libc::Ioctl = 0x4004_54d8;
const TUNSETQUEUE: libc::Ioctl = 0x4004_54d9;
const TUNSETCARRIER: libc::Ioctl = 0x4004_54e2;
const TUNGETDEVNETNS: libc::Ioctl = 0x0000_54e3;

/// `struct ifreq` (netdevice(7)): a name and what is said about it, 40 bytes.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(8))]
pub(super) struct InterfaceRequest {
    name: [u8; NAME_BYTES],
    value: [u8; 24],
}

impl InterfaceRequest {
    /// About the interface `name`, which is shorter than [`NAME_BYTES`].
    pub(super) fn new(name: &str) -> Self {
        let mut request = Self { name: [0; NAME_BYTES], value: [0; 24] };
        for (to, from) in request.name.iter_mut().take(NAME_BYTES - 1).zip(name.bytes()) {
            *to = from;
        }
        request
    }

    fn with_flags(mut self, flags: i16) -> Self {
        self.value[..2].copy_from_slice(&flags.to_ne_bytes());
        self
    }

    fn flags(&self) -> i16 {
        i16::from_ne_bytes([self.value[0], self.value[1]])
    }

    fn number(&self) -> i32 {
        i32::from_ne_bytes([self.value[0], self.value[1], self.value[2], self.value[3]])
    }

    /// The name, as the kernel filled it in.
    pub(super) fn name(&self) -> String {
        let bytes: Vec<u8> = self.name.iter().copied().take_while(|&byte| byte != 0).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// Calls the kernel with a pointer to `argument`.
///
/// # Safety
/// The request reads and writes no more than a `T` there.
unsafe fn call<T>(fd: &impl AsFd, request: libc::Ioctl, argument: &mut T) -> nix::Result<i32> {
    // SAFETY: the caller knows the request; the pointer is a live T for the whole call.
    Errno::result(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), request, &raw mut *argument) })
}

/// Attaches a new descriptor of `/dev/net/tun` to the tap `name` (a `%d` in it is filled in); returns the name.
pub(super) fn attach(fd: &impl AsFd, name: &str, flags: i32) -> nix::Result<String> {
    let mut request = InterfaceRequest::new(name).with_flags(flags as i16);
    // SAFETY: TUNSETIFF takes a struct ifreq.
    unsafe { call(fd, TUNSETIFF, &mut request) }?;
    Ok(request.name())
}

/// The name and the flags of the tap behind a descriptor.
pub(super) fn identify(fd: &impl AsFd) -> nix::Result<(String, i32)> {
    let mut request = InterfaceRequest::new("");
    // SAFETY: TUNGETIFF fills a struct ifreq.
    unsafe { call(fd, TUNGETIFF, &mut request) }?;
    Ok((request.name(), i32::from(request.flags() as u16)))
}

/// Attaches a queue to the tap it was detached from, or detaches it.
pub(super) fn set_queue(fd: &impl AsFd, flag: i32) -> nix::Result<()> {
    let mut request = InterfaceRequest::new("").with_flags(flag as i16);
    // SAFETY: TUNSETQUEUE takes a struct ifreq.
    unsafe { call(fd, TUNSETQUEUE, &mut request) }.map(drop)
}

/// Says what whoever reads the tap can finish by itself.
pub(super) fn set_offload(fd: &impl AsFd, bits: u32) -> nix::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value and no pointer.
    let result = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), TUNSETOFFLOAD, libc::c_ulong::from(bits)) };
    Errno::result(result).map(drop)
}

/// Bytes of the virtio-net header before each frame.
pub(super) fn vnet_header_bytes(fd: &impl AsFd) -> nix::Result<i32> {
    let mut bytes = 0;
    // SAFETY: TUNGETVNETHDRSZ fills an int.
    unsafe { call(fd, TUNGETVNETHDRSZ, &mut bytes) }?;
    Ok(bytes)
}

/// Sets what [`vnet_header_bytes`] reads.
pub(super) fn set_vnet_header_bytes(fd: &impl AsFd, mut bytes: i32) -> nix::Result<()> {
    // SAFETY: TUNSETVNETHDRSZ reads an int.
    unsafe { call(fd, TUNSETVNETHDRSZ, &mut bytes) }.map(drop)
}

/// The most bytes the kernel holds of what was written.
pub(super) fn set_send_buffer(fd: &impl AsFd, mut bytes: i32) -> nix::Result<()> {
    // SAFETY: TUNSETSNDBUF reads an int.
    unsafe { call(fd, TUNSETSNDBUF, &mut bytes) }.map(drop)
}

/// Plugs the cable in or out. Linux 5.0 and later.
pub(super) fn set_carrier(fd: &impl AsFd, up: bool) -> nix::Result<()> {
    let mut up = i32::from(up);
    // SAFETY: TUNSETCARRIER reads an int.
    unsafe { call(fd, TUNSETCARRIER, &mut up) }.map(drop)
}

/// A descriptor of the network namespace a tap is in. Linux 5.2 and later, with CAP_NET_ADMIN in it.
pub(super) fn namespace(fd: &impl AsFd) -> nix::Result<std::os::fd::OwnedFd> {
    // SAFETY: TUNGETDEVNETNS takes no argument.
    let result = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), TUNGETDEVNETNS) };
    let fd = Errno::result(result)?;
    // SAFETY: the kernel made this descriptor for us just now.
    Ok(unsafe { std::os::fd::FromRawFd::from_raw_fd(fd) })
}

/// An interface's MTU. `socket` is any socket of its network namespace, here and below.
pub(super) fn mtu(socket: &impl AsFd, name: &str) -> nix::Result<i32> {
    let mut request = InterfaceRequest::new(name);
    // SAFETY: SIOCGIFMTU fills a struct ifreq.
    unsafe { call(socket, libc::SIOCGIFMTU, &mut request) }?;
    Ok(request.number())
}

/// Sets an interface's MTU.
pub(super) fn set_mtu(socket: &impl AsFd, name: &str, mtu: i32) -> nix::Result<()> {
    let mut request = InterfaceRequest::new(name);
    request.value[..4].copy_from_slice(&mtu.to_ne_bytes());
    // SAFETY: SIOCSIFMTU reads a struct ifreq.
    unsafe { call(socket, libc::SIOCSIFMTU, &mut request) }.map(drop)
}

/// An interface's IFF flags.
pub(super) fn link_flags(socket: &impl AsFd, name: &str) -> nix::Result<i16> {
    let mut request = InterfaceRequest::new(name);
    // SAFETY: SIOCGIFFLAGS fills a struct ifreq.
    unsafe { call(socket, libc::SIOCGIFFLAGS, &mut request) }?;
    Ok(request.flags())
}

/// Sets an interface's IFF flags.
pub(super) fn set_link_flags(socket: &impl AsFd, name: &str, flags: i16) -> nix::Result<()> {
    let mut request = InterfaceRequest::new(name).with_flags(flags);
    // SAFETY: SIOCSIFFLAGS reads a struct ifreq.
    unsafe { call(socket, libc::SIOCSIFFLAGS, &mut request) }.map(drop)
}
