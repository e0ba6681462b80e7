//! A network interface's queues over a tap, with frames from the other side. The tap is in a network namespace of this
//! process, so it needs root.
#![no_main]

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use nestling::backend::tap::{Tap, TapSource};
use nestling::devices::virtio::VirtioDevice;
use nestling::devices::virtio::net::{DirectionRates, Net};
use nestling::devices::virtio::testing::script;
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, SockaddrLike, sendto, socket};

/// One interface for all inputs, and a socket at the host's end of it.
static NET: LazyLock<(Arc<dyn VirtioDevice>, OwnedFd, LinkAddr)> = LazyLock::new(|| {
    unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace, which root may have");
    let tap = Tap::open(&TapSource::New, 2, None).expect("a tap");
    let name = tap.name().to_owned();
    let rates = DirectionRates::default();
    let net = Net::new(tap, [2, 0, 0, 0, 0, 1], rates, rates).expect("a device");
    let packets =
        socket(AddressFamily::Packet, SockType::Raw, SockFlag::empty(), None).expect("a packet socket");
    let index = nix::net::if_::if_nametoindex(name.as_str()).expect("the tap's index");
    // SAFETY: all zeros are a sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    (address.sll_family, address.sll_ifindex) = (libc::AF_PACKET as u16, index as i32);
    let len = size_of::<libc::sockaddr_ll>() as u32;
    // SAFETY: the address is as long as it says.
    let address = unsafe { LinkAddr::from_raw((&raw const address).cast(), Some(len)) }.expect("an address");
    (Arc::new(net), packets, address)
});

fuzz_target!(|bytes: &[u8]| {
    let (device, packets, address) = &*NET;
    script::play(device, bytes, |script| {
        let mut frame = [0; 1500];
        let len = 14 + usize::from(script.byte().unwrap_or(0)) * 5;
        let start = script.bytes(32);
        frame[..start.len()].copy_from_slice(start);
        // The tap's queue may be full.
        let _ = sendto(packets.as_raw_fd(), &frame[..len.min(1500)], address, MsgFlags::MSG_DONTWAIT);
    });
});
