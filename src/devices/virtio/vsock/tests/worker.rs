//! The device with its own thread, between true Unix sockets and a driver's rings.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use super::*;
use crate::devices::virtio::worker::Workers;

/// Longer than anything here can take.
const LONG: Duration = Duration::from_secs(30);

/// A guest of sorts: it confirms what it is asked, and sends back what it gets.
struct Guest {
    memory: GuestMemoryMmap,
    rx: Driver,
    tx: Driver,
    bells: [vmm_sys_util::eventfd::EventFd; 2],
    workers: Workers,
    seen: usize,
    path: PathBuf,
    counters: Counters,
    _directory: tempfile::TempDir,
}

fn guest(limit: u32) -> Guest {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("v.sock");
    let device =
        Vsock::new(CID as u32, limit, Some(VsockListener::bind(&path).unwrap()), Inside::new().unwrap());
    let (memory, (_, msix)) = (guest_ram(), open_msix(3));
    let (rx, tx) = (Driver::new(&memory, 0, RING), Driver::new(&memory, 1, RING));
    let queues = [rx.device(true, &msix), tx.device(true, &msix)];
    let bells = [0, 1].map(|index| queues[index].notify().try_clone().unwrap());
    let lanes = Lane::all(3, device.handler(&memory).unwrap());
    let on_fault = Box::new(|fault: Fault| panic!("{fault}"));
    let queues = Queues(queues.into_iter().map(Some).chain([None]).collect());
    let workers = Workers::spawn("vsock", lanes, queues, &Arc::default(), on_fault).unwrap();
    let counters = device.counters();
    let mut guest = Guest { memory, rx, tx, bells, workers, seen: 0, path, counters, _directory: directory };
    (0..RING).for_each(|_| guest.offer());
    guest
}

impl Guest {
    fn offer(&mut self) {
        let index = u64::from(self.rx.available() % RING);
        self.rx.offer(&[writable(RX + index * RX_BYTES, RX_BYTES as u32)]);
        self.bells[0].write(1).unwrap();
    }

    /// The next packet; the buffer is offered again.
    fn next(&mut self) -> Got {
        let start = Instant::now();
        while self.rx.used().len() == self.seen {
            assert!(start.elapsed() < LONG, "the guest got nothing");
            std::thread::sleep(Duration::from_millis(1));
        }
        let (head, len) = self.rx.used()[self.seen];
        self.seen += 1;
        let at = RX + u64::from(head) * RX_BYTES;
        let mut bytes = vec![0; len as usize];
        self.memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        self.offer();
        let (header, data) = bytes.split_at(HEADER_BYTES);
        Got { header: Header::decode(header.try_into().unwrap()), data: data.to_vec() }
    }

    fn send(&mut self, header: &Header, data: &[u8]) {
        let at = TX + u64::from(self.tx.available() % 8) * 0x1_0000;
        self.memory.write_slice(&header.encode(), GuestAddress(at)).unwrap();
        self.memory.write_slice(data, GuestAddress(at + HEADER_BYTES as u64)).unwrap();
        self.tx.offer(&[readable(at, (HEADER_BYTES + data.len()) as u32)]);
        self.bells[1].write(1).unwrap();
        let start = Instant::now();
        while self.tx.used().len() < usize::from(self.tx.available()) {
            assert!(start.elapsed() < LONG, "a packet was not taken");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn connected(&mut self) -> (UnixStream, Header) {
        let mut program = UnixStream::connect(&self.path).unwrap();
        program.set_read_timeout(Some(LONG)).unwrap();
        program.write_all(b"CONNECT 52\n").unwrap();
        let request = self.next().header;
        assert_eq!(request.op, Op::Request);
        let answer = packet(52, request.src_port, Op::Response);
        self.send(&answer, b"");
        let mut line = vec![0; "OK 1073741824\n".len()];
        program.read_exact(&mut line).unwrap();
        assert_eq!(line, format!("OK {}\n", request.src_port).as_bytes());
        (program, answer)
    }

    fn counter(&self, name: &str) -> u64 {
        (self.counters)()[name]
    }
}

#[test]
fn bytes_go_through_true_sockets_both_ways() {
    let mut guest = guest(10);
    let (mut program, port) = guest.connected();
    let sent: Vec<u8> = (0..200_000_u32).map(|index| (index % 251) as u8).collect();
    let reader = std::thread::spawn({
        let (mut program, sent) = (program.try_clone().unwrap(), sent.clone());
        move || {
            program.write_all(&sent).unwrap();
            let mut back = vec![0; sent.len()];
            program.read_exact(&mut back).unwrap();
            assert!(back == sent);
        }
    });
    let mut received = Vec::new();
    while received.len() < sent.len() {
        let got = guest.next();
        if got.header.op == Op::Data {
            let fwd_cnt = (received.len() + got.data.len()) as u32;
            guest.send(&Header { op: Op::Data, len: got.header.len, fwd_cnt, ..port }, &got.data);
            received.extend(got.data);
        }
    }
    assert!(received == sent);
    reader.join().unwrap();
    program.shutdown(std::net::Shutdown::Write).unwrap();
    loop {
        let got = guest.next().header;
        if got.op == Op::Shutdown {
            assert_eq!(got.flags, SHUTDOWN_SEND);
            break;
        }
    }
    guest.send(&Header { op: Op::Shutdown, flags: SHUTDOWN_BOTH, fwd_cnt: 200_000, ..port }, b"");
    assert_eq!(program.read(&mut [0; 8]).unwrap(), 0);
    assert_eq!((guest.counter("bytes_to_guest"), guest.counter("bytes_to_host")), (200_000, 200_000));
}

#[test]
fn the_guest_reaches_a_program_behind_its_port() {
    let mut guest = guest(10);
    let listener = UnixListener::bind(format!("{}_80", guest.path.display())).unwrap();
    guest.send(&packet(1000, 80, Op::Request), b"");
    assert_eq!(guest.next().header.op, Op::Response);
    let (mut program, _) = listener.accept().unwrap();
    let data = Header { op: Op::Data, len: 5, ..packet(1000, 80, Op::Data) };
    guest.send(&data, b"hello");
    let mut hello = [0; 5];
    program.read_exact(&mut hello).unwrap();
    assert_eq!(&hello, b"hello");
    guest.send(&packet(1000, 81, Op::Request), b"");
    assert_eq!(guest.next().header.op, Op::Reset, "nobody is behind 81");
    drop(program);
    let end = guest.next().header;
    assert_eq!((end.op, end.flags), (Op::Shutdown, SHUTDOWN_BOTH));
}

#[test]
fn a_pause_loses_nothing_and_a_stop_ends_every_stream() {
    let mut guest = guest(10);
    let (mut program, _) = guest.connected();
    guest.workers.pause();
    assert!(guest.workers.wait_for_rest(Instant::now() + Duration::from_secs(30)));
    program.write_all(b"while it rests").unwrap();
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(guest.rx.used().len(), guest.seen);
    guest.workers.resume();
    assert_eq!(guest.next().data, b"while it rests");
    guest.workers.stop();
    assert_eq!(program.read(&mut [0; 8]).unwrap(), 0);
}

#[test]
fn who_comes_when_the_limit_is_reached_is_turned_away_at_once() {
    let mut guest = guest(1);
    let (first, _) = guest.connected();
    let mut second = UnixStream::connect(&guest.path).unwrap();
    second.set_read_timeout(Some(LONG)).unwrap();
    assert_eq!(second.read(&mut [0; 8]).unwrap_or(0), 0);
    let start = Instant::now();
    while guest.counter("connections_refused") == 0 && start.elapsed() < LONG {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(guest.counter("connections_refused"), 1);
    drop(first);
}

#[test]
fn ten_thousand_programs_that_say_nonsense_or_nothing_cost_the_next_one_nothing() {
    let mut guest = guest(64);
    let long = vec![b'x'; 1 << 20];
    let greetings = [
        &b""[..],
        b"CONNECT",
        b"\n",
        b"CONNECT 99999999999\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\0\xff\0",
        &long,
    ];
    let mut silent = Vec::new();
    for number in 0..10_000_usize {
        let mut program = UnixStream::connect(&guest.path).unwrap();
        program.set_nonblocking(true).unwrap();
        // What was turned away already cannot be written to.
        let _ = program.write(greetings[number % greetings.len()]);
        if number % 200 == 0 {
            silent.push(program);
        }
    }
    let refused = |guest: &Guest| guest.counter("connections_refused");
    let start = Instant::now();
    // Those that stay and are waited for are the only ones that are not refused yet.
    while refused(&guest) < 10_000 - silent.len() as u64 {
        assert!(start.elapsed() < LONG, "{}", refused(&guest));
        std::thread::sleep(Duration::from_millis(10));
    }
    drop(silent);
    let (mut program, _) = guest.connected();
    program.write_all(b"heard").unwrap();
    loop {
        let got = guest.next();
        if got.header.op == Op::Data {
            assert_eq!(got.data, b"heard");
            break;
        }
    }
    assert_eq!((guest.counter("connections_open"), guest.counter("connections_total")), (1, 1));
    guest.workers.stop();
}
