//! The device over a tap of the kernel, in a network namespace of each test's own: the kernel's end is UDP sockets.

use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

use super::*;
use crate::backend::netns::{give_address, in_namespace, know_neighbor};
use crate::backend::tap::TapSource;
use crate::devices::virtio::net::features::{GUEST_TSO6, MQ};
use crate::devices::virtio::worker::Workers;

/// Longer than anything here can take.
const LONG: Duration = Duration::from_secs(30);
const HOST: [u8; 4] = [10, 77, 0, 1];
const GUEST: [u8; 4] = [10, 77, 0, 2];
const PORT: u16 = 7000;
const UDP_AT: usize = 34;

/// A device that a driver has started, its workers running.
struct Running {
    net: Net,
    memory: GuestMemoryMmap,
    drivers: Vec<Driver>,
    bells: Vec<EventFd>,
    workers: Option<Workers>,
    offered: u64,
}

fn start(features: u64, pairs: u16) -> Running {
    let tap = Tap::open(&TapSource::New, pairs, None).unwrap();
    give_address(tap.name(), HOST);
    know_neighbor(tap.name(), GUEST, OWN);
    let net = Net::new(tap, OWN, DirectionRates::default(), DirectionRates::default()).unwrap();
    let count = net.queue_sizes().len() as u16;
    let (memory, (_, msix)) = (guest_ram(), open_msix(count));
    let drivers: Vec<Driver> = (0..count).map(|index| Driver::new(&memory, index, 64)).collect();
    let queues: Vec<_> = drivers.iter().map(|driver| driver.device(true, &msix)).collect();
    let bells = queues.iter().map(|queue| queue.notify().try_clone().unwrap()).collect();
    net.prepare(features).unwrap();
    let lanes = net.lanes(&memory, features).unwrap();
    let queues = Queues(queues.into_iter().map(Some).collect());
    let on_fault = Box::new(|fault| panic!("{fault}"));
    let workers = Workers::spawn("net", lanes, queues, &Arc::new(AtomicU64::new(0)), on_fault).unwrap();
    Running { net, memory, drivers, bells, workers: Some(workers), offered: 0 }
}

impl Running {
    /// Makes 2 KiB receive buffers available in a queue.
    fn make_room(&mut self, queue: usize, buffers: u64) {
        for _ in 0..buffers {
            self.drivers[queue].offer(&[writable(HIGH_RAM + 0x800 * self.offered, 0x800)]);
            self.offered += 1;
        }
        self.bells[queue].write(1).unwrap();
    }

    fn used(&self, queue: usize, count: usize) {
        let end = Instant::now() + LONG;
        while self.drivers[queue].used().len() < count {
            assert!(Instant::now() < end, "queue {queue}: {:?}", self.drivers[queue].used());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Frames with their headers that came into the buffers from the first on; those of IPv4 UDP.
    fn datagrams(&self) -> Vec<Vec<u8>> {
        let frame = |buffer: u64| {
            let mut bytes = vec![0; 0x800];
            self.memory.read_slice(&mut bytes, GuestAddress(HIGH_RAM + 0x800 * buffer)).unwrap();
            bytes
        };
        let is_datagram = |frame: &Vec<u8>| frame[24..26] == [8, 0] && frame[12 + 23] == 17;
        (0..self.offered).map(frame).filter(is_datagram).collect()
    }

    fn send(&mut self, queue: usize, frame: &[u8]) {
        self.memory.write_slice(frame, GuestAddress(DATA)).unwrap();
        let sent = self.drivers[queue].used().len();
        self.drivers[queue].offer(&[readable(DATA, frame.len() as u32)]);
        self.bells[queue].write(1).unwrap();
        self.used(queue, sent + 1);
    }

    fn command(&mut self, command: &[u8]) -> u8 {
        let queue = self.drivers.len() - 1;
        let (data, answer) = (DATA + 0x8000, DATA + 0x9000);
        self.memory.write_slice(command, GuestAddress(data)).unwrap();
        let done = self.drivers[queue].used().len();
        self.drivers[queue].offer(&[readable(data, command.len() as u32), writable(answer, 1)]);
        self.bells[queue].write(1).unwrap();
        self.used(queue, done + 1);
        self.memory.read_obj(GuestAddress(answer)).unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(workers) = self.workers.take() {
            workers.stop();
        }
    }
}

/// The one's complement sum of 16-bit words (RFC 1071).
fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The sum over a datagram and its pseudo-header: 0xffff when its checksum is right.
fn datagram_sum(from: [u8; 4], to: [u8; 4], datagram: &[u8]) -> u16 {
    let len = datagram.len() as u16;
    sum(&[&from[..], &to, &[0, 17], &len.to_be_bytes(), datagram].concat())
}

/// A datagram from the guest to the host whose checksum the host is to finish.
fn datagram(payload: &[u8]) -> Vec<u8> {
    let len = (8 + payload.len()) as u16;
    let mut ip = vec![0x45, 0];
    ip.extend((20 + len).to_be_bytes());
    ip.extend([0, 0, 0, 0, 64, 17, 0, 0]);
    ip.extend([GUEST, HOST].concat());
    let checksum = !sum(&ip);
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    let mut udp = [PORT.to_be_bytes(), PORT.to_be_bytes(), len.to_be_bytes()].concat();
    let pseudo = sum(&[&GUEST[..], &HOST, &[0, 17], &len.to_be_bytes()].concat());
    udp.extend(pseudo.to_be_bytes());
    udp.extend(payload);
    let header = [1, 0, 0, 0, 0, 0, UDP_AT as u8, 0, 6, 0, 0, 0];
    let ethernet = [&[0xff; 6][..], &OWN, &[8, 0]].concat();
    [&header[..], &ethernet, &ip, &udp].concat()
}

fn socket() -> UdpSocket {
    let socket = UdpSocket::bind((std::net::Ipv4Addr::from(HOST), PORT)).unwrap();
    socket.set_read_timeout(Some(LONG)).unwrap();
    socket
}

#[test]
fn datagrams_pass_both_ways_and_checksums_are_finished_by_whom_it_was_agreed() {
    for features in [MRG_RXBUF | CSUM, CSUM, MRG_RXBUF | CSUM | GUEST_CSUM] {
        in_namespace(|| {
            let mut running = start(features, 1);
            let socket = socket();
            running.make_room(RECEIVE, 32);
            running.send(TRANSMIT, &datagram(b"from the guest"));
            let mut buffer = [0; 64];
            let (len, from) = socket.recv_from(&mut buffer).unwrap();
            assert_eq!((&buffer[..len], from.to_string()), (&b"from the guest"[..], "10.77.0.2:7000".into()));
            socket.send_to(b"from the host!!!", from).unwrap();
            let end = Instant::now() + LONG;
            while running.datagrams().is_empty() && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(1));
            }
            let frame = &running.datagrams()[0];
            let datagram = &frame[12 + UDP_AT..][..24];
            assert_eq!(datagram[8..], *b"from the host!!!");
            let unfinished = frame[0] & 1 != 0;
            assert_eq!(unfinished, features & GUEST_CSUM != 0, "{features:#x}");
            assert_eq!(datagram_sum(HOST, GUEST, datagram) == 0xffff, !unfinished);
            assert_eq!(frame[10..12], [1, 0]);
        });
    }
}

#[test]
fn a_guest_without_buffers_gets_what_waited_when_it_has_some() {
    in_namespace(|| {
        let mut running = start(MRG_RXBUF, 1);
        let socket = socket();
        for number in 0..20_u8 {
            socket.send_to(&[number; 32], (std::net::Ipv4Addr::from(GUEST), PORT)).unwrap();
        }
        for _ in 0..12 {
            running.make_room(RECEIVE, 4);
        }
        let end = Instant::now() + LONG;
        while running.datagrams().len() < 20 && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
        let numbers: Vec<u8> = running.datagrams().iter().map(|frame| frame[12 + UDP_AT + 8]).collect();
        assert_eq!(numbers, (0..20).collect::<Vec<u8>>());
        assert_eq!(running.net.counters()()["rx_dropped"], 0);
    });
}

#[test]
fn queue_pairs_are_used_when_the_driver_says_so() {
    in_namespace(|| {
        let mut running = start(MRG_RXBUF | CSUM | CTRL_VQ | MQ, 2);
        let socket = socket();
        assert!(running.net.backend().unwrap().starts_with("tap nestling0, 1 of 2 queue pairs in use, "));
        running.make_room(0, 32);
        running.make_room(2, 32);
        assert_eq!(running.command(&[4, 0, 3, 0]), 1, "there are two");
        assert_eq!(running.command(&[4, 0, 2, 0]), 0);
        assert!(running.net.backend().unwrap().contains("2 queue pairs"));
        // A flow's frames come to the pair that it was sent from.
        let mut buffer = [0; 64];
        running.send(3, &datagram(b"by the second pair"));
        let (len, from) = socket.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..len], b"by the second pair");
        socket.send_to(b"back", from).unwrap();
        running.used(2, 1);
        assert_eq!(running.command(&[4, 0, 1, 0]), 0);
        let before = running.drivers[2].used().len();
        socket.send_to(b"back", from).unwrap();
        let end = Instant::now() + LONG;
        while running.datagrams().len() < 2 && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(running.datagrams().len(), 2);
        assert_eq!(running.drivers[2].used().len(), before, "the second pair rests");
    });
}

#[test]
fn a_cable_that_is_pulled_is_seen_at_both_ends() {
    in_namespace(|| {
        let running = start(MRG_RXBUF | GUEST_TSO6, 1);
        // The kernel tells of a change within a second.
        let becomes = |carrier: bool| {
            let end = Instant::now() + LONG;
            while crate::backend::netns::has_carrier("nestling0") != carrier {
                assert!(Instant::now() < end, "the carrier never became {carrier}");
                std::thread::sleep(Duration::from_millis(10));
            }
        };
        becomes(true);
        assert_eq!(running.net.config()[6], 1);
        running.net.set_link(false);
        becomes(false);
        assert_eq!(running.net.config()[6], 0);
        assert!(running.net.backend().unwrap().ends_with("link down"));
        running.net.set_link(true);
        becomes(true);
        assert_eq!(running.net.config()[6], 1);
    });
}

#[test]
fn a_tap_that_is_taken_away_ends_receiving_and_no_more() {
    in_namespace(|| {
        let mut running = start(MRG_RXBUF | CSUM, 1);
        running.make_room(RECEIVE, 8);
        crate::backend::netns::delete("nestling0");
        running.send(TRANSMIT, &datagram(b"to nobody"));
        assert_eq!(running.net.counters()()["tx_dropped"], 1);
    });
}

#[test]
fn frames_that_came_before_the_driver_are_not_its() {
    in_namespace(|| {
        let (told, stopped) = channel();
        let mut running = start(MRG_RXBUF, 1);
        running.workers.take().unwrap().stop();
        let socket = socket();
        socket.send_to(&[1; 32], (std::net::Ipv4Addr::from(GUEST), PORT)).unwrap();
        let host = running.net.host(0).unwrap();
        let mut poll = libc::pollfd { fd: host.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one pollfd of this stack frame.
        told.send(unsafe { libc::poll(&raw mut poll, 1, 30_000) }).unwrap();
        assert_eq!(stopped.recv(), Ok(1));
        running.net.prepare(MRG_RXBUF).unwrap();
        // SAFETY: as above.
        assert_eq!(unsafe { libc::poll(&raw mut poll, 1, 0) }, 0);
        assert!(running.net.counters()()["rx_dropped"] >= 1);
    });
}
