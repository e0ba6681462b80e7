//! The network device beside plain reads and writes of a tap with the same offloads, in a network namespace of its own.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use nestling::backend::tap::{HEADER_BYTES, Offloads, Tap, TapSource};
use nestling::devices::virtio::net::{DirectionRates, Net};
use nestling::devices::virtio::testing::{readable, writable};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::guest::{DATA, Guest, RING, ram};
use super::{Signals, Spent, Watch, Way};
use crate::Result;

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;

/// What a Linux driver takes (virtio 1.2 §5.1.3): checksums, TSO both ways, buffers that are merged.
const FEATURES: u64 = 1 << 0 | 1 << 1 | 1 << 7 | 1 << 8 | 1 << 11 | 1 << 12 | 1 << 15;
/// The same, said to the plain tap.
const OFFLOADS: Offloads = Offloads { checksum: true, tso4: true, tso6: true, ..Offloads::NONE };

/// The longest frame (virtio 1.2 §5.1.6.3.1).
const MAX_FRAME: usize = 65_550;

/// The kernel drops what is for neither of these; this one is the guest's.
const GUEST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const NOBODY: [u8; 6] = [2, 0, 0, 0, 0, 9];

/// Frames of one kind in one direction.
struct Frames {
    to_guest: bool,
    /// Bytes of a frame, its Ethernet header included.
    bytes: usize,
    /// How many are moved in a round.
    count: usize,
    memory: &'static GuestMemoryMmap,
    plain: Tap,
    net: Arc<Net>,
    /// The names of the interfaces of the two.
    names: [String; 2],
}

pub(super) fn ways() -> Result<Vec<Box<dyn Way>>> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(|error| format!("it needs a network namespace: {error}"))?;
    // Else the kernel has frames of its own to send; where this cannot be said there are a few.
    let _ = std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
    let memory = ram()?;
    let mut ways: Vec<Box<dyn Way>> = Vec::new();
    for (bytes, count) in [(64, 16_384), (1514, 16_384), (65_226, 1_024)] {
        for to_guest in [false, true] {
            let tap = || Tap::open(&TapSource::New, 1, None);
            let (plain, other) = (tap()?, tap()?);
            plain.set_offloads(OFFLOADS)?;
            let names = [plain.name().to_owned(), other.name().to_owned()];
            let rates = DirectionRates::default();
            let net = Arc::new(Net::new(other, GUEST_MAC, rates, rates)?);
            names.iter().try_for_each(|name| lengthen(name, count))?;
            ways.push(Box::new(Frames { to_guest, bytes, count, memory, plain, net, names }));
        }
    }
    Ok(ways)
}

impl Way for Frames {
    fn name(&self) -> String {
        let what = if self.bytes > 1514 { "TSO frames" } else { "frames" };
        let direction = if self.to_guest { "tap to guest" } else { "guest to tap" };
        format!("net, {what} of {} bytes, {direction}, beside the tap", self.bytes)
    }

    fn amount(&self) -> (&'static str, f64) {
        ("packets/s", self.count as f64)
    }

    fn operations(&self) -> f64 {
        self.count as f64
    }

    fn plain(&mut self) -> Result<Spent> {
        let queue = self.plain.queue(0).ok_or("the tap has no queue")?.try_clone_to_owned()?;
        // As many buffers as the driver has, one after the other, so that caches help neither more than the other.
        let stride = HEADER_BYTES + if self.bytes > 1514 { MAX_FRAME } else { 1524 };
        let mut buffers = vec![0; stride * usize::from(RING)];
        let mut turns = (0..usize::from(RING)).map(|turn| turn * stride..(turn + 1) * stride).cycle();
        if !self.to_guest {
            let packet = packet(self.bytes, NOBODY);
            buffers.chunks_mut(stride).for_each(|buffer| buffer[..packet.len()].copy_from_slice(&packet));
            let watch = Watch::start()?;
            for turn in turns.take(self.count) {
                nix::unistd::write(&queue, &buffers[turn][..packet.len()])?;
            }
            return watch.stop();
        }
        while nix::unistd::read(&queue, &mut buffers).is_ok() {}
        fill(&self.names[0], self.bytes, self.count)?;
        let watch = Watch::start()?;
        let mut got = 0;
        while got < self.count {
            let turn = turns.next().unwrap_or(0..stride);
            match nix::unistd::read(&queue, &mut buffers[turn]) {
                Ok(_) => got += 1,
                Err(Errno::EAGAIN) => {
                    let mut waits = [PollFd::new(queue.as_fd(), PollFlags::POLLIN)];
                    if poll(&mut waits, PollTimeout::from(1000_u16))? == 0 {
                        return Err(format!("{got} of {} frames came", self.count).into());
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        watch.stop()
    }

    fn device(&mut self) -> Result<(Spent, Signals)> {
        let device = Arc::clone(&self.net);
        let mut guest = Guest::start(device, FEATURES, self.memory)?;
        let spent = if self.to_guest { self.receive(&mut guest) } else { self.transmit(&mut guest) }?;
        let signals = guest.signals();
        guest.stop();
        Ok((spent, signals))
    }
}

impl Frames {
    /// The driver keeps the ring full of frames, and looks after it when three quarters are sent, as Linux does.
    fn transmit(&self, guest: &mut Guest) -> Result<Spent> {
        let packet = packet(self.bytes, NOBODY);
        let stride = packet.len().next_multiple_of(0x100) as u64;
        let ring = &mut guest.rings[TRANSMIT];
        for head in 0..RING {
            let at = DATA + u64::from(head) * stride;
            self.memory.write_slice(&packet, GuestAddress(at))?;
            ring.describe(head, &[readable(at, packet.len() as u32)])?;
        }
        let watch = Watch::start()?;
        let mut left = self.count;
        loop {
            while left > 0 && ring.pending() < RING {
                ring.offer(ring.next_head())?;
                left -= 1;
            }
            ring.publish()?;
            match ring.pending() {
                0 => return watch.stop(),
                pending if left == 0 => ring.wait(pending)?,
                pending => ring.wait(pending / 4 * 3)?,
            }
            while ring.take()?.is_some() {}
        }
    }

    /// The frames are there before the driver has buffers for them.
    fn receive(&self, guest: &mut Guest) -> Result<Spent> {
        // What Linux offers: buffers for a frame of the MTU, or pages for those of TSO.
        let size = if self.bytes > 1514 { 4096 } else { 1536 };
        let ring = &mut guest.rings[RECEIVE];
        for head in 0..RING {
            ring.describe(head, &[writable(DATA + u64::from(head) * size, size as u32)])?;
            ring.offer(head)?;
        }
        fill(&self.names[1], self.bytes, self.count)?;
        let watch = Watch::start()?;
        ring.publish()?;
        let mut bytes = 0;
        let all = self.count * (self.bytes + HEADER_BYTES);
        while bytes < all {
            ring.wait(1)?;
            while let Some((head, len)) = ring.take()? {
                bytes += len as usize;
                ring.offer(head)?;
            }
            ring.publish()?;
        }
        watch.stop()
    }
}

/// A frame with its virtio header: UDP, or TCP that the kernel may cut into segments.
fn packet(bytes: usize, to: [u8; 6]) -> Vec<u8> {
    let tso = bytes > 1514;
    let mut packet = vec![0; HEADER_BYTES + bytes];
    if tso {
        // NEEDS_CSUM, TCPv4, headers of 54 bytes, segments of 1460, the checksum at byte 16 of the TCP header at 34.
        packet[..10].copy_from_slice(&[1, 1, 54, 0, 0xb4, 0x05, 34, 0, 16, 0]);
    }
    let frame = &mut packet[HEADER_BYTES..];
    frame[..6].copy_from_slice(&to);
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 2]);
    frame[12..14].copy_from_slice(&[8, 0]);
    let ip = &mut frame[14..];
    ip[0] = 0x45;
    ip[2..4].copy_from_slice(&((bytes - 14) as u16).to_be_bytes());
    ip[8] = 64;
    ip[9] = if tso { 6 } else { 17 };
    ip[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
    if tso {
        // The TCP header has five words.
        ip[32] = 0x50;
    } else {
        ip[24..26].copy_from_slice(&((bytes - 34) as u16).to_be_bytes());
    }
    packet
}

/// Puts frames into the queue of an interface.
fn fill(name: &str, bytes: usize, count: usize) -> Result<()> {
    let socket = packet_socket(name)?;
    let packet = packet(bytes, GUEST_MAC);
    // The header of AF_PACKET has no num_buffers.
    let whole = [&packet[..HEADER_BYTES - 2], &packet[HEADER_BYTES..]].concat();
    for sent in 0..count {
        nix::unistd::write(&socket, &whole).map_err(|error| format!("frame {sent}: {error}"))?;
    }
    Ok(())
}

/// A socket that sends frames with a virtio header through an interface (packet(7)), past its queueing discipline.
fn packet_socket(name: &str) -> Result<OwnedFd> {
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
    for option in [libc::PACKET_VNET_HDR, libc::PACKET_QDISC_BYPASS] {
        let on = 1_i32;
        // SAFETY: the option's value is an int, which lives as long as the call.
        let result = unsafe {
            libc::setsockopt(socket.as_raw_fd(), libc::SOL_PACKET, option, (&raw const on).cast(), 4)
        };
        Errno::result(result)?;
    }
    // SAFETY: zero is a value of every field.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    let name = std::ffi::CString::new(name)?;
    // SAFETY: the name ends with a NUL and lives as long as the call.
    address.sll_ifindex = unsafe { libc::if_nametoindex(name.as_ptr()) } as i32;
    let len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the address is one of that many bytes.
    Errno::result(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) })?;
    Ok(socket)
}

/// Makes an interface's queue as long as this many frames, and some.
fn lengthen(name: &str, frames: usize) -> Result<()> {
    let socket = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: zero is a value of every field.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_metric = frames as i32 + 64;
    // SAFETY: SIOCSIFTXQLEN reads a struct ifreq.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFTXQLEN as _, &raw mut request) };
    Errno::result(result).map(drop).map_err(|error| io::Error::from(error).into())
}
