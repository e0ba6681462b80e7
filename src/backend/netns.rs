//! A network namespace of a test's own: nothing it does reaches the machine's network.

use std::os::fd::AsRawFd;

use nix::sched::{CloneFlags, unshare};

/// Runs `test` on a thread in a network namespace that ends with it. Needs root, as the taps in it do.
pub(crate) fn in_namespace(test: impl FnOnce() + Send) {
    std::thread::scope(|threads| {
        let ran = threads.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace, which root may have");
            // Else the kernel sends frames of its own into each tap, some time after it is up. Without IPv6 there is no file.
            let _ = std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
            test();
        });
        if let Err(panic) = ran.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// `struct ifreq` (netdevice(7)) of the interface `name`, with `value` after the name.
fn request(name: &str, value: &[u8]) -> [u8; 40] {
    let mut request = [0; 40];
    request[..name.len()].copy_from_slice(name.as_bytes());
    request[16..16 + value.len()].copy_from_slice(value);
    request
}

fn ask(code: libc::Ioctl, argument: &mut [u8]) {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").expect("a socket");
    // SAFETY: each caller's argument has the length its request takes.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), code, argument.as_mut_ptr()) };
    assert_eq!(result, 0, "{code:#x}: {}", std::io::Error::last_os_error());
}

/// `struct sockaddr_in` of an address alone.
fn sockaddr(address: [u8; 4]) -> [u8; 16] {
    let mut sockaddr = [0; 16];
    sockaddr[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
    sockaddr[4..8].copy_from_slice(&address);
    sockaddr
}

/// Gives an interface an IPv4 address in a network of 256.
pub(crate) fn give_address(name: &str, address: [u8; 4]) {
    ask(libc::SIOCSIFADDR, &mut request(name, &sockaddr(address)));
    ask(libc::SIOCSIFNETMASK, &mut request(name, &sockaddr([255, 255, 255, 0])));
}

/// Says which Ethernet address a neighbour has (arp(7)).
pub(crate) fn know_neighbor(name: &str, address: [u8; 4], mac: [u8; 6]) {
    let mut hardware = [0; 16];
    hardware[..2].copy_from_slice(&libc::ARPHRD_ETHER.to_ne_bytes());
    hardware[2..8].copy_from_slice(&mac);
    // Protocol address, hardware address, flags (complete and permanent), netmask, device.
    let flags = (libc::ATF_COM | libc::ATF_PERM).to_ne_bytes();
    let mut device = [0; 16];
    device[..name.len()].copy_from_slice(name.as_bytes());
    ask(libc::SIOCSARP, &mut [&sockaddr(address)[..], &hardware, &flags, &[0; 16], &device].concat());
}

/// Whether an interface's cable is plugged in: IFF_RUNNING.
pub(crate) fn has_carrier(name: &str) -> bool {
    let mut request = request(name, &[]);
    ask(libc::SIOCGIFFLAGS, &mut request);
    i32::from(u16::from_ne_bytes([request[16], request[17]])) & libc::IFF_RUNNING != 0
}

/// Deletes an interface, by a message of rtnetlink(7).
pub(crate) fn delete(name: &str) {
    use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};
    let netlink =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::empty(), SockProtocol::NetlinkRoute)
            .expect("a netlink socket");
    let mut interface = request(name, &[]);
    ask(libc::SIOCGIFINDEX, &mut interface);
    let index = &interface[16..20];
    // struct nlmsghdr, with an acknowledgement wanted; struct ifinfomsg with the index.
    let mut message = [32_u32.to_ne_bytes(), [0; 4], 1_u32.to_ne_bytes(), [0; 4]].concat();
    message[4..6].copy_from_slice(&libc::RTM_DELLINK.to_ne_bytes());
    message[6..8].copy_from_slice(&((libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16).to_ne_bytes());
    message.extend([&[0; 4][..], index, &[0; 8]].concat());
    send(netlink.as_raw_fd(), &message, MsgFlags::empty()).expect("sent");
    let mut answer = [0; 256];
    recv(netlink.as_raw_fd(), &mut answer, MsgFlags::empty()).expect("an answer");
    assert_eq!(answer[16..20], [0; 4], "deleted");
}
