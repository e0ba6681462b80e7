//! Taps: an Ethernet interface of the kernel whose other end is ours (`linux/if_tun.h`,
//! Documentation/networking/tuntap.rst).
//!
//! Every frame has a 12-byte virtio-net header before it (virtio 1.2 §5.1.6), so that checksums and segments pass between
//! guest and kernel unfinished.

mod error;
mod ioctl;
mod offloads;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

pub use self::error::TapError;
pub use self::offloads::Offloads;

/// Bytes before each frame: `struct virtio_net_hdr_v1` (virtio 1.2 §5.1.6).
pub const HEADER_BYTES: usize = 12;
/// The name of a tap that nobody named; the kernel fills in the first free number.
const OWN_NAME: &str = "nestling%d";
/// The MTU of Ethernet, where the tap's own cannot be known.
const ETHERNET_MTU: u16 = 1500;

/// Which tap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TapSource {
    /// One of its own, which disappears with the process.
    New,
    /// The one of this name. One that is there is used and left as it was; else it is made, and disappears with the process.
    Named(String),
    /// One whose descriptor, of one queue, the process inherited. Nothing is changed about the interface.
    Descriptor(RawFd),
}

/// An open tap: an interface and its queues. Its link is up.
#[derive(Debug)]
pub struct Tap {
    name: String,
    queues: Vec<OwnedFd>,
    multi_queue: bool,
    mtu: u16,
    has_uso: bool,
    interface: Option<Interface>,
}

/// The interface, where it can be reached by its name, and what is to be put back.
#[derive(Debug)]
struct Interface {
    /// Any socket of its network namespace.
    socket: OwnedFd,
    /// What a tap was like that was there before us.
    before: Option<Before>,
}

#[derive(Debug)]
struct Before {
    link_flags: i16,
    mtu: i32,
    header_bytes: i32,
}

impl Tap {
    /// Opens `queues` queues of a tap, sets its MTU if one is given, and its link up. Only the first queue is attached, and
    /// nothing is offloaded.
    ///
    /// # Errors
    /// See [`TapError`].
    pub fn open(source: &TapSource, queues: u16, mtu: Option<u16>) -> Result<Self, TapError> {
        let mut tap = match source {
            TapSource::New => Self::attach(OWN_NAME, queues)?,
            TapSource::Named(name) if is_name(name) => Self::attach(name, queues)?,
            TapSource::Named(name) => return Err(TapError::Name { name: name.clone() }),
            TapSource::Descriptor(fd) => Self::adopt(*fd, queues)?,
        };
        tap.set_up_queues()?;
        tap.set_up_interface(mtu)?;
        Ok(tap)
    }

    /// Opens the queues of the tap `name`.
    fn attach(name: &str, queues: u16) -> Result<Self, TapError> {
        let socket = any_socket().map_err(|errno| setting(name, "there is no socket", errno))?;
        let before =
            ioctl::link_flags(&socket, name).and_then(|flags| Ok((flags, ioctl::mtu(&socket, name)?))).ok();
        let plain = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        let first = open_device()?;
        let mut multi_queue = queues > 1;
        let flags = |multi_queue: bool| if multi_queue { plain | libc::IFF_MULTI_QUEUE } else { plain };
        let mut attached = ioctl::attach(&first, name, flags(multi_queue));
        if attached == Err(Errno::EINVAL) && before.is_some() {
            // The kernel says this where the tap has the other number of queues, one or many, and where it is no tap.
            multi_queue = !multi_queue;
            attached = ioctl::attach(&first, name, flags(multi_queue));
        }
        let name = attached.map_err(|errno| refused(name, queues, errno))?;
        let header_bytes = ioctl::vnet_header_bytes(&first).unwrap_or(HEADER_BYTES as i32);
        let before = before.map(|(link_flags, mtu)| Before { link_flags, mtu, header_bytes });
        let mut tap = Self {
            queues: vec![first.into()],
            multi_queue,
            mtu: ETHERNET_MTU,
            has_uso: false,
            interface: Some(Interface { socket, before }),
            name,
        };
        if queues > 1 && !multi_queue {
            return Err(TapError::OneQueue { name: tap.name.clone(), queues });
        }
        for _ in 1..queues {
            let queue = open_device()?;
            ioctl::attach(&queue, &tap.name, flags(true))
                .map_err(|errno| refused(&tap.name, queues, errno))?;
            tap.queues.push(queue.into());
        }
        Ok(tap)
    }

    /// Takes over an inherited descriptor.
    fn adopt(fd: RawFd, queues: u16) -> Result<Self, TapError> {
        let unusable = |reason| TapError::Descriptor { fd, reason };
        if queues != 1 {
            return Err(unusable("a descriptor is one queue: ask for queues=1, or give the tap by its name"));
        }
        if fd <= 2 {
            return Err(unusable("0, 1 and 2 are stdin, stdout and stderr"));
        }
        let path = format!("/proc/self/fd/{fd}");
        if !std::fs::exists(path).unwrap_or(false) {
            return Err(unusable("no such descriptor was inherited"));
        }
        // SAFETY: it was open a moment ago, and whoever started us meant it for this.
        let inherited = unsafe { BorrowedFd::borrow_raw(fd) };
        let queue = inherited.try_clone_to_owned().map_err(|_| unusable("it cannot be duplicated"))?;
        let (name, flags) = ioctl::identify(&queue).map_err(|_| unusable("it is not attached to any tap"))?;
        let wanted = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        if flags & wanted != wanted {
            return Err(unusable("it was not opened with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR"));
        }
        let set = |argument| fcntl(&queue, argument).map_err(|_| unusable("its flags cannot be set"));
        let status = set(FcntlArg::F_GETFL)?;
        set(FcntlArg::F_SETFL(OFlag::from_bits_retain(status) | OFlag::O_NONBLOCK))?;
        set(FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        let mtu = mtu_in_our_namespace(&queue, &name).unwrap_or(ETHERNET_MTU);
        Ok(Self { name, queues: vec![queue], multi_queue: false, mtu, has_uso: false, interface: None })
    }

    fn set_up_queues(&mut self) -> Result<(), TapError> {
        for queue in &self.queues {
            ioctl::set_vnet_header_bytes(queue, HEADER_BYTES as i32)
                .map_err(|errno| setting(&self.name, "its header cannot have 12 bytes", errno))?;
            // Frames are handed to the network stack at once, so nothing piles up that a limit would hold back.
            let _ = ioctl::set_send_buffer(queue, i32::MAX);
        }
        let uso = Offloads { checksum: true, uso: true, ..Offloads::NONE };
        self.has_uso = self.set_offloads(uso).is_ok();
        self.set_offloads(Offloads::NONE).map_err(|source| TapError::Setting {
            name: self.name.clone(),
            what: "no offloads",
            source,
        })?;
        for index in 1..self.queues.len() {
            self.attach_queue(index, false).map_err(|source| TapError::Setting {
                name: self.name.clone(),
                what: "a queue cannot be detached",
                source,
            })?;
        }
        Ok(())
    }

    fn set_up_interface(&mut self, mtu: Option<u16>) -> Result<(), TapError> {
        let Some(Interface { socket, .. }) = &self.interface else {
            self.mtu = mtu.unwrap_or(self.mtu);
            return Ok(());
        };
        let name = &self.name;
        if let Some(mtu) = mtu {
            ioctl::set_mtu(socket, name, mtu.into())
                .map_err(|errno| setting(name, "its MTU cannot be set", errno))?;
        }
        let mtu = ioctl::mtu(socket, name).map_err(|errno| setting(name, "its MTU cannot be read", errno))?;
        self.mtu = u16::try_from(mtu).unwrap_or(u16::MAX);
        let flags = ioctl::link_flags(socket, name)
            .map_err(|errno| setting(name, "its link cannot be read", errno))?;
        let up = libc::IFF_UP as i16;
        if flags & up == 0 {
            ioctl::set_link_flags(socket, name, flags | up)
                .map_err(|errno| setting(name, "its link cannot be set up", errno))?;
        }
        Ok(())
    }

    /// The interface's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The largest packet, without the Ethernet header, in bytes.
    #[must_use]
    pub fn mtu(&self) -> u16 {
        self.mtu
    }

    /// Whether this kernel passes UDP segments ([`Offloads::uso`]).
    #[must_use]
    pub fn has_uso(&self) -> bool {
        self.has_uso
    }

    /// How many queues it has.
    #[must_use]
    pub fn queue_count(&self) -> usize {
        self.queues.len()
    }

    /// The descriptor of queue `index`: a read is a frame, a write is a frame, neither waits.
    #[must_use]
    pub fn queue(&self, index: usize) -> Option<BorrowedFd<'_>> {
        self.queues.get(index).map(AsFd::as_fd)
    }

    /// Attaches a queue, so that the kernel gives it a share of the frames, or detaches it: then there is nothing to read
    /// in it. The queue of a tap that has one is always attached.
    ///
    /// # Errors
    /// The kernel's own.
    pub fn attach_queue(&self, index: usize, attached: bool) -> io::Result<()> {
        let Some(queue) = self.queues.get(index).filter(|_| self.multi_queue) else { return Ok(()) };
        let flag = if attached { libc::IFF_ATTACH_QUEUE } else { libc::IFF_DETACH_QUEUE };
        match ioctl::set_queue(queue, flag) {
            // It is so already.
            Ok(()) | Err(Errno::EINVAL) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Says what the guest can finish by itself. What the kernel held before comes as it was.
    ///
    /// # Errors
    /// The kernel's own.
    pub fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        // One queue speaks for all.
        match self.queues.first() {
            Some(queue) => Ok(ioctl::set_offload(queue, offloads.bits())?),
            None => Ok(()),
        }
    }

    /// Plugs the cable in or out: the interface's `carrier`. `false` where the kernel (before 5.0) cannot.
    #[must_use]
    pub fn set_carrier(&self, up: bool) -> bool {
        self.queues.first().is_some_and(|queue| ioctl::set_carrier(queue, up).is_ok())
    }
}

/// A tap that was there before is left as it was.
impl Drop for Tap {
    fn drop(&mut self) {
        let (Some(interface), Some(queue)) = (&self.interface, self.queues.first()) else { return };
        let Interface { socket, before: Some(before) } = interface else { return };
        let _ = self.set_offloads(Offloads::NONE);
        let _ = ioctl::set_vnet_header_bytes(queue, before.header_bytes);
        if i32::from(self.mtu) != before.mtu {
            let _ = ioctl::set_mtu(socket, &self.name, before.mtu);
        }
        let up = libc::IFF_UP as i16;
        let now = ioctl::link_flags(socket, &self.name).unwrap_or(before.link_flags);
        if (now ^ before.link_flags) & up != 0 {
            let _ = ioctl::set_link_flags(socket, &self.name, now ^ up);
        }
    }
}

/// Whether an interface can have this name: `dev_valid_name` of Linux, and no pattern.
#[must_use]
pub fn is_name(name: &str) -> bool {
    let bad = |c: char| matches!(c, '/' | ':' | '%' | '\0') || c.is_whitespace();
    (1..ioctl::NAME_BYTES).contains(&name.len()) && name != "." && name != ".." && !name.contains(bad)
}

fn open_device() -> Result<File, TapError> {
    let opened =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun");
    opened.map_err(|error| match Errno::from_raw(error.raw_os_error().unwrap_or(0)) {
        // The file can be there with no driver behind it.
        Errno::ENOENT | Errno::ENXIO | Errno::ENODEV => TapError::NoDevice,
        _ => TapError::Open(error),
    })
}

fn any_socket() -> nix::Result<OwnedFd> {
    socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
}

/// The MTU of an inherited tap: a name says nothing about an interface of another network namespace.
fn mtu_in_our_namespace(queue: &OwnedFd, name: &str) -> Option<u16> {
    let its = File::from(ioctl::namespace(queue).ok()?).metadata().ok()?;
    let ours = std::fs::metadata("/proc/thread-self/ns/net").ok()?;
    if (its.dev(), its.ino()) != (ours.dev(), ours.ino()) {
        return None;
    }
    u16::try_from(ioctl::mtu(&any_socket().ok()?, name).ok()?).ok()
}

/// Why the kernel did not attach us.
fn refused(name: &str, queues: u16, errno: Errno) -> TapError {
    let name = name.replace("%d", "");
    match errno {
        Errno::EPERM | Errno::EACCES => TapError::NotPermitted { name },
        Errno::EBUSY => TapError::Busy { name },
        Errno::E2BIG => TapError::TooManyQueues { name, queues },
        Errno::EINVAL => TapError::NotATap { name },
        other => setting(&name, "the kernel does not attach us", other),
    }
}

fn setting(name: &str, what: &'static str, errno: Errno) -> TapError {
    TapError::Setting { name: name.to_owned(), what, source: errno.into() }
}

#[cfg(test)]
mod tests;
