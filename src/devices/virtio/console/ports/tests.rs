//! Ports between a driver's rings and clients of their sockets.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::*;
use crate::devices::virtio::testing::{DATA, Driver as Ring, guest_ram, open_msix, readable, writable};

const DEVICE_READY: u16 = 0;
const PORT_ADD: u16 = 1;
const PORT_READY: u16 = 3;
const CONSOLE_PORT: u16 = 4;
const PORT_OPEN: u16 = 6;
const PORT_NAME: u16 = 7;

struct Fixture {
    memory: GuestMemoryMmap,
    rings: Vec<Ring>,
    queues: Queues,
    device: Ports,
    handler: PortsHandler,
    /// Control messages that were read so far.
    heard: usize,
    dir: tempfile::TempDir,
}

/// A device with two ports, and a driver that has offered nothing yet.
fn fixture() -> Fixture {
    let (memory, (_, msix)) = (guest_ram(), open_msix(8));
    let dir = tempfile::tempdir().unwrap();
    let port = |name: &str| NamedPort {
        name: name.to_owned(),
        socket: PortSocket::listen(&dir.path().join(name)).unwrap(),
    };
    let device = Ports::new(vec![port("agent"), port("log")]);
    let handler = device.handler(true);
    let rings: Vec<Ring> = (0..8).map(|index| Ring::new(&memory, index, 64)).collect();
    let queues = Queues(rings.iter().map(|ring| Some(ring.device(true, &msix))).collect());
    Fixture { memory, rings, queues, device, handler, heard: 0, dir }
}

impl Fixture {
    fn on_queue(&mut self, index: usize) {
        self.handler.on_queue(&mut self.queues, index).unwrap();
    }

    /// Wakes both ports, as their sockets would.
    fn wake(&mut self) {
        for port in 0..2 {
            assert_eq!(self.handler.on_host(&mut self.queues, port).unwrap(), Listen::Yes);
        }
    }

    fn connect(&mut self, name: &str) -> UnixStream {
        let client = UnixStream::connect(self.dir.path().join(name)).unwrap();
        client.set_nonblocking(true).unwrap();
        self.wake();
        client
    }

    /// Room for `count` control messages.
    fn offer_control(&mut self, count: usize) {
        for _ in 0..count {
            let at = DATA + 64 * u64::from(self.rings[CONTROL_RECEIVE].available());
            self.rings[CONTROL_RECEIVE].offer(&[writable(at, 64)]);
        }
        self.on_queue(CONTROL_RECEIVE);
    }

    fn say(&mut self, id: u32, event: u16, value: u16) {
        let message = [&id.to_le_bytes()[..], &event.to_le_bytes(), &value.to_le_bytes()].concat();
        self.say_bytes(&message);
    }

    fn say_bytes(&mut self, message: &[u8]) {
        let at = DATA + 0x8000;
        self.memory.write_slice(message, GuestAddress(at)).unwrap();
        self.rings[CONTROL_TRANSMIT].offer(&[readable(at, message.len() as u32)]);
        self.on_queue(CONTROL_TRANSMIT);
    }

    /// Control messages since the last call: port, event, value, what follows.
    fn hear(&mut self) -> Vec<(u32, u16, u16, String)> {
        let used = self.rings[CONTROL_RECEIVE].used();
        let new = used[self.heard..].to_vec();
        self.heard = used.len();
        new.iter()
            .map(|&(head, len)| {
                let bytes = self.bytes(DATA + 64 * u64::from(head), len as usize);
                let number = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
                let name = String::from_utf8(bytes[8..].to_vec()).unwrap();
                (u32::from(number(0)) | u32::from(number(2)) << 16, number(4), number(6), name)
            })
            .collect()
    }

    fn bytes(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    /// A driver that has both ports, and a process in the guest that has opened the first.
    fn set_up(&mut self) {
        self.offer_control(16);
        self.say(0, DEVICE_READY, 1);
        self.say(1, PORT_READY, 1);
        self.say(2, PORT_READY, 1);
        self.say(1, PORT_OPEN, 1);
        self.hear();
    }
}

fn told(id: u32, event: u16, value: u16, name: &str) -> (u32, u16, u16, String) {
    (id, event, value, name.to_owned())
}

#[test]
fn a_driver_learns_of_the_ports_their_names_and_their_clients() {
    let mut test = fixture();
    assert_eq!(test.device.config(), [0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(test.device.queue_sizes().len(), 8);
    let client = test.connect("log");
    test.offer_control(8);
    assert_eq!(test.hear(), [], "nobody asked");
    test.say(0, DEVICE_READY, 1);
    assert_eq!(test.hear(), [told(1, PORT_ADD, 1, ""), told(2, PORT_ADD, 1, "")]);
    test.say(2, PORT_READY, 1);
    assert_eq!(test.hear(), [told(2, PORT_NAME, 1, "log"), told(2, PORT_OPEN, 1, "")]);
    test.say(1, PORT_READY, 1);
    assert_eq!(test.hear(), [told(1, PORT_NAME, 1, "agent")]);
    assert_eq!(test.device.counters()()["clients"], 1);
    drop(client);
    test.wake();
    assert_eq!(test.hear(), [told(2, PORT_OPEN, 0, "")], "one that left nothing is noticed at once");
    let _next = test.connect("log");
    test.wake();
    assert_eq!(test.hear(), [told(2, PORT_OPEN, 1, "")]);
}

#[test]
fn bytes_go_both_ways() {
    let mut test = fixture();
    test.set_up();
    let mut client = test.connect("agent");
    client.write_all(b"question").unwrap();
    test.wake();
    assert_eq!(test.rings[4].used(), [], "no buffer yet");
    test.rings[4].offer(&[writable(DATA, 5)]);
    test.rings[4].offer(&[writable(DATA + 5, 64)]);
    test.on_queue(4);
    assert_eq!(test.rings[4].used(), [(0, 5), (1, 3)]);
    assert_eq!(test.bytes(DATA, 8), b"question");
    test.memory.write_slice(b"answer", GuestAddress(DATA)).unwrap();
    test.rings[5].offer(&[readable(DATA, 6)]);
    test.on_queue(5);
    let mut answer = [0; 6];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"answer");
    assert_eq!(test.rings[7].used(), [], "the other port has nothing of it");
    let counters = test.device.counters()();
    assert_eq!((counters["bytes_in"], counters["bytes_out"]), (8, 6));
    assert!(!counters.contains_key("bytes_dropped"));
}

#[test]
fn what_a_client_sent_before_it_left_arrives_before_the_guest_hears_that_it_left() {
    let mut test = fixture();
    test.set_up();
    let mut client = test.connect("agent");
    client.write_all(b"last words").unwrap();
    drop(client);
    test.wake();
    assert_eq!(test.hear(), [told(1, PORT_OPEN, 1, "")]);
    test.rings[4].offer(&[writable(DATA, 64)]);
    test.rings[4].offer(&[writable(DATA + 64, 64)]);
    test.on_queue(4);
    assert_eq!(test.rings[4].used(), [(0, 10)]);
    assert_eq!(test.hear(), [told(1, PORT_OPEN, 0, "")]);
}

#[test]
fn a_guest_that_has_not_opened_its_port_gets_nothing_yet() {
    let mut test = fixture();
    test.set_up();
    let mut client = test.connect("log");
    client.write_all(b"early").unwrap();
    test.rings[6].offer(&[writable(DATA, 64)]);
    test.wake();
    assert_eq!(test.rings[6].used(), []);
    test.say(2, PORT_OPEN, 1);
    assert_eq!(test.rings[6].used(), [(0, 5)]);
    test.say(2, PORT_OPEN, 0);
    client.write_all(b"late").unwrap();
    test.rings[6].offer(&[writable(DATA, 64)]);
    test.wake();
    assert_eq!(test.rings[6].used().len(), 1);
}

#[test]
fn a_client_that_does_not_read_holds_up_its_port_and_no_other() {
    let mut test = fixture();
    test.set_up();
    let mut client = test.connect("agent");
    // More than a socket and our own buffer hold.
    let mut sent = 0;
    while test.rings[5].used().len() == sent {
        test.rings[5].offer(&[readable(DATA, 64 << 10)]);
        test.on_queue(5);
        sent += 1;
        assert!(sent < 60, "a bound is reached");
    }
    test.rings[7].offer(&[readable(DATA, 8)]);
    test.on_queue(7);
    assert_eq!(test.rings[7].used(), [(0, 0)]);
    let mut read = 0;
    let mut buffer = vec![0; 1 << 20];
    while read < sent * (64 << 10) {
        match client.read(&mut buffer) {
            Ok(len) => read += len,
            Err(error) if error.kind() == ErrorKind::WouldBlock => test.wake(),
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(test.rings[5].used().len(), sent);
    assert_eq!(test.device.counters()()["bytes_dropped"], 8, "nobody is there for the other port");
}

#[test]
fn a_flood_of_control_messages_is_answered_when_there_is_room_and_once() {
    let mut test = fixture();
    for _ in 0..1000 {
        test.say(0, DEVICE_READY, 1);
        test.say(1, PORT_READY, 1);
    }
    test.offer_control(16);
    assert_eq!(
        test.hear(),
        [told(1, PORT_ADD, 1, ""), told(1, PORT_NAME, 1, "agent"), told(2, PORT_ADD, 1, "")]
    );
}

#[test]
fn nonsense_is_ignored() {
    let mut test = fixture();
    test.set_up();
    for id in [0, 1, 2, 3, u32::MAX] {
        for event in [PORT_ADD, 2, CONSOLE_PORT, 5, PORT_NAME, 8, u16::MAX] {
            test.say(id, event, 7);
        }
    }
    test.say(3, PORT_READY, 1);
    test.say(0, PORT_OPEN, 1);
    test.say(2, PORT_READY, 0);
    test.say(0, DEVICE_READY, 0);
    test.say_bytes(b"");
    test.say_bytes(b"1234567");
    test.say_bytes(&[0xff; 4096]);
    assert_eq!(test.hear(), []);
    assert_eq!(test.rings[CONTROL_TRANSMIT].used().len(), test.rings[CONTROL_TRANSMIT].available() as usize);
}

#[test]
fn a_control_buffer_that_is_too_small_is_a_fault() {
    let mut test = fixture();
    test.rings[CONTROL_RECEIVE].offer(&[writable(DATA, 7)]);
    test.handler.obey(Message { id: 0, event: Event::DeviceReady, value: 1 });
    assert!(test.handler.on_queue(&mut test.queues, CONTROL_RECEIVE).is_err());
}

#[test]
fn a_driver_without_ports_finds_a_console_with_nobody_there() {
    let mut test = fixture();
    test.handler = test.device.handler(false);
    assert_eq!(test.handler.host_sources(), []);
    test.rings[1].offer(&[readable(DATA, 8)]);
    test.on_queue(1);
    assert_eq!(test.rings[1].used(), [(0, 0)]);
    test.rings[0].offer(&[writable(DATA, 8)]);
    test.on_queue(0);
    assert_eq!(test.rings[0].used(), []);
    test.say(0, DEVICE_READY, 1);
    test.offer_control(4);
    assert_eq!(test.hear(), []);
}

#[test]
fn a_client_stays_when_the_driver_starts_again() {
    let mut test = fixture();
    test.set_up();
    let mut client = test.connect("agent");
    assert_eq!(test.hear(), [told(1, PORT_OPEN, 1, "")]);
    client.write_all(b"still here").unwrap();
    test.handler = test.device.handler(true);
    assert!(test.handler.host_sources().iter().all(|source| source.pending));
    test.offer_control(8);
    test.say(0, DEVICE_READY, 1);
    test.say(1, PORT_READY, 1);
    let heard = test.hear();
    assert_eq!(heard.last().unwrap(), &told(1, PORT_OPEN, 1, ""));
    test.say(1, PORT_OPEN, 1);
    test.rings[4].offer(&[writable(DATA, 64)]);
    test.on_queue(4);
    assert_eq!(test.rings[4].used(), [(0, 10)]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_control_messages_in_any_order_are_survived(
        messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..12), 0..40),
        ids in prop::collection::vec((0_u32..4, 0_u16..9, 0_u16..3), 0..40),
    ) {
        let mut test = fixture();
        test.offer_control(10);
        for bytes in &messages {
            test.say_bytes(bytes);
        }
        for &(id, event, value) in &ids {
            test.say(id, event, value);
        }
        prop_assert!(test.hear().len() <= 10);
    }
}

#[test]
fn a_client_that_sends_without_end_has_its_turn_and_no_more() {
    let mut test = fixture();
    test.set_up();
    let mut client = test.connect("agent");
    let mut sent = 0;
    while let Ok(count) = client.write(&[7; 4096]) {
        sent += count as u64;
    }
    assert!(sent > 2 * TURN_BYTES, "{sent}");
    // A longer ring, for a guest that gives more than a turn's worth of buffers.
    let mut ring = Ring::new(&test.memory, 4, 256);
    test.queues.0[4] = Some(ring.device(true, &open_msix(8).1));
    (0..256).for_each(|_| ring.offer(&[writable(DATA + 0x1_0000, 2048)]));
    let received = |test: &Fixture| test.device.counters()()["bytes_in"];
    assert_eq!(test.handler.on_host(&mut test.queues, 0).unwrap(), Listen::Yes);
    assert!((1..TURN_BYTES + 2048).contains(&received(&test)), "{}", received(&test));
    let source = test.handler.host_sources()[0].fd;
    let mut poll = libc::pollfd { fd: source, events: libc::POLLIN, revents: 0 };
    // SAFETY: one descriptor, described by a structure of our own.
    assert_eq!(unsafe { libc::poll(&raw mut poll, 1, 0) }, 1, "its socket says that there is more");
}
