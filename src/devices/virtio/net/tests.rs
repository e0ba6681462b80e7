//! Frames between a mock driver and a socket pair, which keeps frames apart as a tap does.

mod kernel;
mod random;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use vm_memory::{Bytes, GuestAddress};

use super::features::{
    CSUM, CTRL_GUEST_OFFLOADS, CTRL_MAC_ADDR, CTRL_RX, CTRL_VQ, GUEST_CSUM, GUEST_TSO4, HOST_TSO4, MRG_RXBUF,
};
use super::*;
use crate::backend::tap::HEADER_BYTES;
use crate::devices::virtio::queue::Queues;
use crate::devices::virtio::testing::{
    Buffer, DATA, Driver, HIGH_RAM, HOLE, RAM_BYTES, guest_ram, open_msix, readable, writable,
};
use crate::devices::virtio::{Listen, QueueHandler};
use crate::devices::wiring::mock::MockWiring;

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const CONTROL: usize = 2;
/// Numbers of the sources of a lane.
const FRAME: usize = 0;
const RETRY: usize = 1;
const OWN: Mac = [2, 0, 0, 0, 0, 1];

struct Fixture {
    memory: GuestMemoryMmap,
    drivers: Vec<Driver>,
    queues: Queues,
    wiring: Arc<MockWiring>,
    handler: NetHandler,
    shared: Arc<Shared>,
    /// The host's end.
    host: OwnedFd,
}

fn fixture(features: u64, queue_size: u16) -> Fixture {
    with_limits(features, queue_size, None, None)
}

fn with_limits(
    features: u64,
    queue_size: u16,
    receive_limit: Option<RateLimit>,
    transmit_limit: Option<RateLimit>,
) -> Fixture {
    let (memory, (wiring, msix)) = (guest_ram(), open_msix(3));
    let drivers: Vec<Driver> = (0..3).map(|index| Driver::new(&memory, index, queue_size)).collect();
    let queues = Queues(drivers.iter().map(|driver| Some(driver.device(true, &msix))).collect());
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let (host, ours) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
    let shared = Arc::new(Shared::new(OWN));
    let handler = NetHandler::new(LaneParts {
        shared: Arc::clone(&shared),
        receive: RECEIVE,
        transmit: TRANSMIT,
        host: ours,
        receiver: Receiver::new(memory.clone(), features, 1500),
        transmitter: Transmitter::new(memory.clone(), features),
        receive_limit,
        transmit_limit,
        control: Some(Control { queue: CONTROL, features, tap: None, pairs: 1 }),
    })
    .unwrap();
    Fixture { memory, drivers, queues, wiring, handler, shared, host }
}

/// A frame of `len` bytes to us, its bytes all different from their neighbours, after a header of zeros.
fn frame(len: usize) -> Vec<u8> {
    let mut frame: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
    frame[..6].copy_from_slice(&OWN);
    frame[12..14].copy_from_slice(&[8, 0]);
    [vec![0; HEADER_BYTES], frame].concat()
}

impl Fixture {
    fn counter(&self, name: &str) -> u64 {
        self.shared.counters.by_name()[name]
    }

    fn bytes(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    /// What the host gets next.
    fn sent(&self) -> Option<Vec<u8>> {
        let mut frame = vec![0; 70_000];
        let len = nix::unistd::read(&self.host, &mut frame).ok()?;
        frame.truncate(len);
        Some(frame)
    }

    fn arrives(&self, frame: &[u8]) {
        assert_eq!(nix::unistd::write(&self.host, frame).unwrap(), frame.len());
    }

    fn receive(&mut self) -> Result<Listen, Fault> {
        self.handler.on_host(&mut self.queues, FRAME)
    }

    fn transmit(&mut self, chain: &[Buffer]) -> Result<(), Fault> {
        self.drivers[TRANSMIT].offer(chain);
        self.handler.on_queue(&mut self.queues, TRANSMIT)
    }

    /// Puts a frame at DATA and sends it.
    fn send(&mut self, frame: &[u8]) -> Result<(), Fault> {
        self.memory.write_slice(frame, GuestAddress(DATA)).unwrap();
        self.transmit(&[readable(DATA, frame.len() as u32)])
    }

    fn command(&mut self, command: &[u8]) -> u8 {
        self.memory.write_slice(command, GuestAddress(DATA)).unwrap();
        let answer = DATA + 0x1000;
        self.memory.write_obj(0xee_u8, GuestAddress(answer)).unwrap();
        self.drivers[CONTROL].offer(&[readable(DATA, command.len() as u32), writable(answer, 1)]);
        self.handler.on_queue(&mut self.queues, CONTROL).unwrap();
        self.bytes(answer, 1)[0]
    }
}

#[test]
fn a_frame_is_sent_however_it_is_cut() {
    let mut net = fixture(0, 64);
    let whole = frame(100);
    net.send(&whole).unwrap();
    assert_eq!(net.sent().unwrap(), whole);
    let pieces = [(0, 5), (5, 0), (5, 7), (12, 1), (13, 99)];
    let chain: Vec<Buffer> = pieces.iter().map(|&(at, len)| readable(DATA + at, len)).collect();
    net.transmit(&chain).unwrap();
    assert_eq!(net.sent().unwrap(), whole);
    net.drivers[TRANSMIT].offer_indirect(DATA + 0x8000, &chain);
    net.handler.on_queue(&mut net.queues, TRANSMIT).unwrap();
    assert_eq!(net.sent().unwrap(), whole);
    assert_eq!((net.counter("tx_packets"), net.counter("tx_bytes")), (3, 300));
    assert!(net.drivers[TRANSMIT].used().iter().all(|&(_, written)| written == 0));
}

#[test]
fn the_host_sees_a_header_that_was_checked() {
    let mut net = fixture(CSUM | HOST_TSO4, 64);
    let mut segments = frame(9000);
    segments[..12].copy_from_slice(&[1 | 6, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 7, 7]);
    net.send(&segments).unwrap();
    segments[..12].copy_from_slice(&[1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0]);
    assert_eq!(net.sent().unwrap(), segments);
    for bad in [[1, 1, 54, 0, 0, 0, 34, 0, 16, 0, 0, 0], [1, 4, 54, 0, 1, 0, 34, 0, 16, 0, 0, 0]] {
        segments[..12].copy_from_slice(&bad);
        net.send(&segments).unwrap();
        assert_eq!(net.sent(), None, "{bad:?}");
    }
    assert_eq!((net.counter("tx_malformed"), net.drivers[TRANSMIT].used().len()), (2, 3));
}

#[test]
fn what_is_no_frame_to_send_is_a_fault() {
    for chain in [
        vec![readable(DATA, 11)],
        vec![writable(DATA, 100)],
        vec![readable(DATA, 100), writable(DATA, 1)],
        vec![readable(HOLE - 50, 100)],
        vec![readable(HIGH_RAM + RAM_BYTES, 100)],
        vec![readable(u64::MAX - 5, 100)],
        vec![readable(DATA, u32::MAX)],
    ] {
        let mut net = fixture(0, 64);
        assert!(net.transmit(&chain).is_err(), "{chain:x?}");
        assert_eq!(net.sent(), None);
    }
    let mut net = fixture(0, 64);
    // A descriptor that goes on with one that is not there, and one that goes on with itself.
    for next in [64, 0] {
        net.drivers[TRANSMIT].store(0, DATA, 100, 1, next);
        net.drivers[TRANSMIT].offer_head(0);
        assert!(net.handler.on_queue(&mut net.queues, TRANSMIT).is_err());
    }
    let pieces = vec![readable(DATA, 1); 300];
    net = fixture(0, 64);
    net.drivers[TRANSMIT].offer_indirect(DATA + 0x8000, &pieces);
    assert!(net.handler.on_queue(&mut net.queues, TRANSMIT).is_err());
}

#[test]
fn a_host_without_room_makes_the_guest_wait_and_loses_nothing() {
    let mut net = fixture(0, 64);
    let large = frame(30_000);
    net.memory.write_slice(&large, GuestAddress(DATA)).unwrap();
    for _ in 0..60 {
        net.drivers[TRANSMIT].offer(&[readable(DATA, large.len() as u32)]);
    }
    net.handler.on_queue(&mut net.queues, TRANSMIT).unwrap();
    assert!(net.drivers[TRANSMIT].used().len() < 60, "the socket's buffer is smaller");
    let mut received = 0;
    while received < 60 {
        while let Some(frame) = net.sent() {
            assert_eq!(frame, large);
            received += 1;
        }
        net.handler.on_host(&mut net.queues, RETRY).unwrap();
    }
    assert_eq!((net.counter("tx_packets"), net.counter("tx_dropped")), (60, 0));
    assert_eq!(net.drivers[TRANSMIT].used().len(), 60);
}

#[test]
fn a_frame_fills_as_many_buffers_as_it_needs_and_the_rest_wait_for_the_next() {
    let mut net = fixture(MRG_RXBUF | GUEST_CSUM | GUEST_TSO4, 128);
    for buffer in 0..40 {
        net.drivers[RECEIVE]
            .offer(&[writable(DATA + 0x1000 * buffer, 100), writable(DATA + 0x1000 * buffer + 100, 400)]);
    }
    for len in [60, 488, 489, 3000] {
        net.arrives(&frame(len));
    }
    assert_eq!(net.receive().unwrap(), Listen::Yes);
    let used = net.drivers[RECEIVE].used();
    let lengths: Vec<u32> = used.iter().map(|&(_, len)| len).collect();
    assert_eq!(lengths, [72, 500, 500, 1, 500, 500, 500, 500, 500, 500, 12]);
    let mut buffer = 0;
    for (len, count) in [(60, 1), (488, 1), (489, 2), (3000, 7)] {
        let mut expected = frame(len);
        expected[10] = count;
        let mut got = Vec::new();
        for _ in 0..count {
            got.extend(net.bytes(DATA + 0x1000 * buffer, used[buffer as usize].1 as usize));
            buffer += 1;
        }
        assert_eq!(got, expected);
    }
    assert_eq!((net.counter("rx_packets"), net.counter("rx_bytes")), (4, 60 + 488 + 489 + 3000));
    assert_eq!(net.wiring.raised(RECEIVE as u32), 1, "one interrupt for the batch");
    // The buffers that were taken beforehand go back at a pause, and are used afterwards.
    net.handler.quiesce(&mut net.queues).unwrap();
    net.arrives(&frame(60));
    net.receive().unwrap();
    assert_eq!(net.bytes(DATA + 0x1000 * buffer + 12, 60), frame(60)[12..]);
    assert_eq!(net.drivers[RECEIVE].used().len(), 12);
}

#[test]
fn a_frame_waits_for_the_buffers_it_lacks() {
    let mut net = fixture(MRG_RXBUF | GUEST_CSUM | GUEST_TSO4, 64);
    net.arrives(&frame(2000));
    net.arrives(&frame(60));
    assert_eq!(net.receive().unwrap(), Listen::Later, "no buffer");
    net.drivers[RECEIVE].offer(&[writable(DATA, 1000)]);
    assert_eq!(net.receive().unwrap(), Listen::Later);
    assert!(net.drivers[RECEIVE].used().is_empty());
    // A pause in between loses nothing.
    net.handler.quiesce(&mut net.queues).unwrap();
    net.drivers[RECEIVE].offer(&[writable(DATA + 1000, 1000)]);
    assert_eq!(net.receive().unwrap(), Listen::Later);
    assert_eq!(net.drivers[RECEIVE].avail_event(), 2, "the driver is asked to ring");
    net.drivers[RECEIVE].offer(&[writable(DATA + 2000, 1000)]);
    net.drivers[RECEIVE].offer(&[writable(DATA + 0x1000, 100)]);
    assert_eq!(net.receive().unwrap(), Listen::Later, "both frames came, and buffers ran out");
    let mut expected = frame(2000);
    expected[10] = 3;
    assert_eq!(net.bytes(DATA, 2012), expected);
    assert_eq!(net.bytes(DATA + 0x1000 + 12, 60), frame(60)[12..]);
    assert_eq!(net.counter("rx_dropped"), 0);
}

#[test]
fn a_frame_that_waits_for_buffers_when_the_driver_is_reset_is_counted() {
    let mut net = fixture(MRG_RXBUF, 64);
    net.arrives(&frame(1400));
    net.drivers[RECEIVE].offer(&[writable(DATA, 1000)]);
    assert_eq!(net.receive().unwrap(), Listen::Later);
    let shared = Arc::clone(&net.shared);
    drop(net);
    let counts = shared.counters.by_name();
    assert_eq!((counts["rx_dropped"], counts["rx_packets"]), (1, 0));
}

#[test]
fn a_frame_no_ring_of_this_driver_can_hold_is_counted_and_dropped() {
    for features in [MRG_RXBUF, 0] {
        let mut net = fixture(features, 4);
        for buffer in 0..4 {
            net.drivers[RECEIVE].offer(&[writable(DATA + 0x1000 * buffer, 100)]);
        }
        net.arrives(&frame(1400));
        net.arrives(&frame(60));
        assert_eq!(net.receive().unwrap(), Listen::Yes);
        assert_eq!((net.counter("rx_dropped"), net.counter("rx_packets")), (1, 1));
        assert_eq!(net.bytes(DATA + 12, 60), frame(60)[12..]);
        assert_eq!(net.bytes(DATA + 10, 2), [1, 0]);
    }
}

#[test]
fn what_is_no_receive_buffer_is_a_fault() {
    for chain in [
        vec![readable(DATA, 2000)],
        vec![writable(DATA, 2000), readable(DATA, 1)],
        vec![writable(DATA, 0)],
        vec![writable(DATA, 11)],
        vec![writable(HOLE - 100, 2000)],
        vec![writable(u64::MAX - 5, 2000)],
        vec![writable(DATA, u32::MAX)],
    ] {
        for features in [MRG_RXBUF, 0] {
            let mut net = fixture(features, 64);
            net.drivers[RECEIVE].offer(&chain);
            net.arrives(&frame(60));
            assert!(net.receive().is_err(), "{chain:x?}");
            assert!(net.drivers[RECEIVE].used().is_empty());
        }
    }
}

#[test]
fn a_driver_without_checksum_offload_sees_no_flags() {
    for (features, flags) in [(MRG_RXBUF, 0), (MRG_RXBUF | GUEST_CSUM, 2)] {
        let mut net = fixture(features, 64);
        net.drivers[RECEIVE].offer(&[writable(DATA, 2000)]);
        let mut valid = frame(60);
        valid[0] = 2;
        net.arrives(&valid);
        net.receive().unwrap();
        assert_eq!(net.bytes(DATA, 1), [flags]);
    }
}

#[test]
fn commands_change_what_is_received() {
    let mut net = fixture(MRG_RXBUF | CTRL_VQ | CTRL_RX | CTRL_MAC_ADDR, 64);
    for buffer in 0..16 {
        net.drivers[RECEIVE].offer(&[writable(DATA + 0x2000 + 0x800 * buffer, 0x800)]);
    }
    let mut other = frame(60);
    other[12 + 5] = 9;
    let passed = |net: &mut Fixture| {
        let before = net.counter("rx_packets");
        net.arrives(&frame(60));
        net.arrives(&other);
        net.receive().unwrap();
        net.counter("rx_packets") - before
    };
    assert_eq!(passed(&mut net), 2, "promiscuous");
    assert_eq!(net.command(&[0, 0, 0]), 0);
    assert_eq!(passed(&mut net), 1);
    assert_eq!(net.command(&[1, 1, 2, 0, 0, 0, 0, 9]), 0);
    assert_eq!(passed(&mut net), 1, "the other");
    assert_eq!(net.command(&[0, 4, 1]), 1, "CTRL_RX_EXTRA was not negotiated");
    assert_eq!(net.command(&[0, 0, 1]), 0);
    assert_eq!(passed(&mut net), 2);
    assert_eq!((net.counter("rx_filtered"), net.counter("commands")), (2, 4));
}

#[test]
fn what_is_no_command_is_a_fault_and_a_long_one_is_refused() {
    for chain in [
        vec![readable(DATA, 3)],
        vec![writable(DATA, 0)],
        vec![readable(HOLE, 3), writable(DATA, 1)],
        vec![readable(DATA, 3), writable(HOLE, 1)],
    ] {
        let mut net = fixture(CTRL_VQ | CTRL_RX, 64);
        net.drivers[CONTROL].offer(&chain);
        assert!(net.handler.on_queue(&mut net.queues, CONTROL).is_err(), "{chain:x?}");
    }
    let mut net = fixture(CTRL_VQ | CTRL_RX, 64);
    net.drivers[CONTROL].offer(&[readable(DATA, 0x2_0000), writable(DATA + 0x2_0000, 1)]);
    net.handler.on_queue(&mut net.queues, CONTROL).unwrap();
    assert_eq!(net.bytes(DATA + 0x2_0000, 1), [1]);
    // Data alone, and an answer alone.
    net.drivers[CONTROL].offer(&[writable(DATA, 1)]);
    net.handler.on_queue(&mut net.queues, CONTROL).unwrap();
    assert_eq!(net.bytes(DATA, 1), [1]);
}

#[test]
fn offloads_are_switched_within_what_was_negotiated() {
    let features = CTRL_VQ | CTRL_GUEST_OFFLOADS | GUEST_CSUM | GUEST_TSO4;
    let mut net = fixture(features, 64);
    let mut set = |bits: u64| net.command(&[&[5, 0][..], &bits.to_le_bytes()].concat());
    assert_eq!((set(GUEST_CSUM), set(1 << 10)), (0, 1));
    assert!(net.shared.describe(1).ends_with("offloads csum"), "{}", net.shared.describe(1));
}

#[test]
fn a_link_that_is_down_passes_nothing_and_counts_it() {
    let mut net = fixture(MRG_RXBUF, 64);
    net.drivers[RECEIVE].offer(&[writable(DATA + 0x4000, 2000)]);
    net.shared.set_link(false);
    net.send(&frame(60)).unwrap();
    net.arrives(&frame(60));
    assert_eq!(net.receive().unwrap(), Listen::Yes);
    assert_eq!((net.sent(), net.counter("tx_dropped"), net.counter("rx_dropped")), (None, 1, 1));
    net.shared.set_link(true);
    net.send(&frame(60)).unwrap();
    net.arrives(&frame(60));
    net.receive().unwrap();
    assert_eq!((net.sent(), net.counter("rx_packets")), (Some(frame(60)), 1));
}

#[test]
fn limits_hold_both_ways() {
    let limit = || RateLimit::new(None, Some(Rate { per_second: 10, burst: 2 })).unwrap();
    let mut net = with_limits(MRG_RXBUF, 64, limit(), limit());
    let (receive_limit, transmit_limit) = (2, 3);
    for buffer in 0..8 {
        net.drivers[RECEIVE].offer(&[writable(DATA + 0x2000 + 0x800 * buffer, 0x800)]);
        net.arrives(&frame(60));
    }
    assert_eq!(net.receive().unwrap(), Listen::Later);
    for _ in 0..8 {
        net.send(&frame(60)).unwrap();
    }
    let passed = |net: &Fixture| (net.counter("rx_packets"), net.counter("tx_packets"));
    let (received, sent) = passed(&net);
    assert!((2..5).contains(&received) && (2..5).contains(&sent), "{received} {sent}");
    std::thread::sleep(std::time::Duration::from_millis(1200));
    for source in [receive_limit, transmit_limit] {
        assert_eq!(net.handler.on_host(&mut net.queues, source).unwrap(), Listen::Yes);
    }
    net.receive().unwrap();
    let (received, sent) = passed(&net);
    assert!((4..8).contains(&received) && (4..8).contains(&sent), "{received} {sent}");
    assert!(net.counter("rx_waits") > 0 && net.counter("tx_waits") > 0);
}

/// Small frames until the kernel is given buffers for small ones only.
fn many_small_frames(net: &mut Fixture) {
    for at in 0..70_u64 {
        net.drivers[RECEIVE].offer(&[writable(DATA + 0x800 * at, 1536)]);
        net.arrives(&frame(60));
        net.receive().unwrap();
    }
    assert_eq!(net.counter("rx_packets"), 70);
}

#[test]
fn a_large_frame_that_nobody_expected_is_whole() {
    let mut net = fixture(MRG_RXBUF | GUEST_CSUM | GUEST_TSO4, 256);
    many_small_frames(&mut net);
    for at in 70..130 {
        net.drivers[RECEIVE].offer(&[writable(DATA + 0x800 * at, 1536)]);
    }
    // The first is copied in part, the second one is not, the third one needs a buffer.
    for len in [20_000, 40_000, 60] {
        net.arrives(&frame(len));
    }
    assert_eq!(net.receive().unwrap(), Listen::Yes);
    let used = net.drivers[RECEIVE].used();
    let mut at = 70_u64;
    for len in [20_000_usize, 40_000, 60] {
        let count = (len + HEADER_BYTES).div_ceil(1536) as u64;
        let mut expected = frame(len);
        expected[10] = count as u8;
        let part = |at: u64| net.bytes(DATA + 0x800 * at, used[at as usize].1 as usize);
        assert!((at..at + count).flat_map(part).eq(expected), "{len}");
        at += count;
    }
    assert_eq!(used.len() as u64, at);
}

#[test]
fn a_large_frame_that_nobody_expected_waits_for_the_buffers_it_lacks() {
    let mut net = fixture(MRG_RXBUF | GUEST_CSUM | GUEST_TSO4, 128);
    many_small_frames(&mut net);
    net.drivers[RECEIVE].offer(&[writable(DATA, 1536)]);
    net.drivers[RECEIVE].offer(&[writable(DATA + 1536, 1000)]);
    net.arrives(&frame(4000));
    assert_eq!(net.receive().unwrap(), Listen::Later);
    // A pause in between loses nothing.
    net.handler.quiesce(&mut net.queues).unwrap();
    assert_eq!(net.drivers[RECEIVE].used().len(), 70);
    net.drivers[RECEIVE].offer(&[writable(DATA + 2536, 2000)]);
    net.receive().unwrap();
    let mut expected = frame(4000);
    expected[10] = 3;
    assert_eq!(net.bytes(DATA, 4012), expected);
    assert_eq!(net.counter("rx_dropped"), 0);
}
