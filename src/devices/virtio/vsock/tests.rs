//! A driver that speaks vsock, programs of the host whose sockets are in memory, and what happens between them.

mod closing;
mod flow;
mod hostile;
mod opening;
mod pair;
mod random;
mod worker;

use std::time::Duration;

use vm_memory::GuestAddress;

use self::pair::{PairHost, Program};
use super::header::{HEADER_BYTES, Header, Op, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM};
use super::*;
use crate::backend::vsock::HOST_CID;
use crate::devices::virtio::testing::{DATA, Driver, guest_ram, open_msix, readable, writable};

const CID: u64 = 3;
const RING: u16 = 64;
const RX_BYTES: u64 = 4096;
const RX: u64 = DATA;
const TX: u64 = DATA + RING as u64 * RX_BYTES;
/// A guest's usual buffer.
const BUF_ALLOC: u32 = 256 << 10;

/// A packet the guest got.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Got {
    header: Header,
    data: Vec<u8>,
}

struct Fixture {
    memory: GuestMemoryMmap,
    rx: Driver,
    tx: Driver,
    queues: Queues,
    muxer: Muxer<PairHost>,
    counts: Arc<Counts>,
    now: Instant,
    seen: usize,
}

fn fixture() -> Fixture {
    with_limit(100)
}

fn with_limit(limit: usize) -> Fixture {
    let (memory, (_, msix)) = (guest_ram(), open_msix(3));
    let (rx, tx) = (Driver::new(&memory, 0, RING), Driver::new(&memory, 1, RING));
    let queues = Queues(vec![Some(rx.device(true, &msix)), Some(tx.device(true, &msix))]);
    let counts = Arc::new(Counts::default());
    let muxer = Muxer::new(PairHost::default(), CID, limit, Arc::clone(&counts));
    Fixture { memory, rx, tx, queues, muxer, counts, now: Instant::now(), seen: 0 }
}

/// A packet from the guest's port to the host's.
fn packet(guest_port: u32, host_port: u32, op: Op) -> Header {
    Header {
        src_cid: CID,
        dst_cid: HOST_CID,
        src_port: guest_port,
        dst_port: host_port,
        buf_alloc: BUF_ALLOC,
        ..Header::to_guest(0, 0, 0, op)
    }
}

impl Fixture {
    /// The guest has `count` more receive buffers.
    fn offer(&mut self, count: u16) {
        for _ in 0..count {
            let index = u64::from(self.rx.available() % RING);
            self.rx.offer(&[writable(RX + index * RX_BYTES, RX_BYTES as u32)]);
        }
        self.serve().unwrap();
    }

    /// Both queues, as the worker serves them.
    fn serve(&mut self) -> Result<(), Fault> {
        take_packets(&mut self.muxer, &mut self.queues, self.now)?;
        send_packets(&mut self.muxer, &self.memory, CID, &mut self.queues, self.now)
    }

    /// The guest sends a packet, header and data in one buffer.
    fn queue(&mut self, header: &Header, data: &[u8]) {
        let at = TX + u64::from(self.tx.available() % 8) * 0x1_0000;
        self.memory.write_slice(&header.encode(), GuestAddress(at)).unwrap();
        self.memory.write_slice(data, GuestAddress(at + HEADER_BYTES as u64)).unwrap();
        self.tx.offer(&[readable(at, (HEADER_BYTES + data.len()) as u32)]);
    }

    fn send(&mut self, header: &Header) {
        self.queue(header, &[]);
        self.serve().unwrap();
    }

    fn send_data(&mut self, header: &Header, data: &[u8]) {
        self.queue(&Header { len: data.len() as u32, op: Op::Data, ..*header }, data);
        self.serve().unwrap();
    }

    /// What the guest got since the last call.
    fn got(&mut self) -> Vec<Got> {
        let used = self.rx.used();
        let fresh = used.get(self.seen..).unwrap();
        self.seen = used.len();
        fresh
            .iter()
            .map(|&(head, len)| {
                let at = RX + u64::from(head) * RX_BYTES;
                let mut bytes = vec![0; len as usize];
                self.memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
                let (header, data) = bytes.split_at(HEADER_BYTES);
                let header = Header::decode(header.try_into().unwrap());
                assert_eq!(header.len as usize, data.len());
                Got { header, data: data.to_vec() }
            })
            .collect()
    }

    fn got_ops(&mut self) -> Vec<Op> {
        self.got().into_iter().map(|got| got.header.op).collect()
    }

    /// The only packet the guest got since the last call.
    #[track_caller]
    fn got_one(&mut self) -> Got {
        let mut got = self.got();
        assert_eq!(got.len(), 1, "{got:?}");
        got.remove(0)
    }

    /// What the host's sockets have become is told, as epoll tells it.
    fn host_events(&mut self) {
        for (id, ready) in self.muxer.host().events() {
            self.muxer.on_host(id, ready, self.now);
        }
        self.serve().unwrap();
    }

    /// A program of the host does something with its socket.
    fn host_does<T>(&mut self, program: &Program, act: impl FnOnce(&Program) -> T) -> T {
        let result = act(program);
        self.host_events();
        result
    }

    /// Time passes.
    fn wait(&mut self, by: Duration) {
        self.now += by;
        self.muxer.expire(self.now);
        self.host_events();
    }

    /// The guest connects from `guest_port` to a program at port 80, and has heard that it did.
    fn connect(&mut self, guest_port: u32) -> Program {
        self.muxer.host().serve(80);
        self.offer(1);
        self.send(&packet(guest_port, 80, Op::Request));
        assert_eq!(self.got_one().header.op, Op::Response);
        self.muxer.host().programs.pop().unwrap()
    }

    fn counted(&self) -> [u64; 4] {
        let Counts { open, total, refused, broken, .. } = &*self.counts;
        [open, total, refused, broken].map(|counter| counter.load(Ordering::Relaxed))
    }
}
