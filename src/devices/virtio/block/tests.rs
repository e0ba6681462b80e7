//! Requests in every shape, against a small image.

mod cache;
mod lanes;
mod random;
mod ranges;

use std::io::Write;

use super::handler::{STATUS_IOERR, STATUS_OK, STATUS_UNSUPP};
use super::*;
use crate::backend::disk::{Access, RawDisk};
use crate::devices::virtio::QueueHandler;
use crate::devices::virtio::queue::Queues;
use crate::devices::virtio::testing::{
    Buffer, DATA, Driver, HIGH_RAM, HOLE, RAM_BYTES, guest_ram, open_msix, readable, writable,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const HEADER: u64 = DATA;
const BODY: u64 = DATA + 0x1000;
const STATUS: u64 = DATA + 0x8000;
const SECTORS: u64 = 8;
const UNTOUCHED: u8 = 0xee;

struct Fixture {
    memory: GuestMemoryMmap,
    driver: Driver,
    queues: Queues,
    block: Block,
    handler: BlockHandler,
    image: tempfile::NamedTempFile,
}

/// A disk whose sector `n` is full of bytes `n + 1`, and a driver whose status byte is not a status.
fn fixture(readonly: bool) -> Fixture {
    let mut image = tempfile::NamedTempFile::new().unwrap();
    for sector in 0..SECTORS {
        image.write_all(&[sector as u8 + 1; 512]).unwrap();
    }
    let memory = guest_ram();
    let disk = RawDisk::open(image.path(), Access { readonly, direct: false }).unwrap();
    let block = Block::new(Arc::new(disk), BlockOptions::default()).unwrap();
    let handler = block.handler(F_FLUSH, &memory).unwrap();
    memory.write_obj(UNTOUCHED, GuestAddress(STATUS)).unwrap();
    let driver = Driver::new(&memory, 0, QUEUE_SIZE);
    let queues = Queues(vec![Some(driver.device(false, &open_msix(1).1))]);
    Fixture { memory, driver, queues, block, handler, image }
}

impl Fixture {
    fn header(&self, kind: u32, sector: u64) {
        self.memory.write_obj(kind, GuestAddress(HEADER)).unwrap();
        self.memory.write_obj(0_u32, GuestAddress(HEADER + 4)).unwrap();
        self.memory.write_obj(sector, GuestAddress(HEADER + 8)).unwrap();
    }

    /// Serves one chain and returns its used length.
    fn serve(&mut self, chain: &[Buffer]) -> Result<u32, Fault> {
        self.driver.offer(chain);
        self.on_queue()?;
        Ok(self.driver.used().last().unwrap().1)
    }

    /// Serves the queue and waits for what was begun.
    fn on_queue(&mut self) -> Result<(), Fault> {
        self.handler.on_queue(&mut self.queues, 0)?;
        self.handler.quiesce(&mut self.queues)
    }

    fn bytes(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    fn status(&self) -> u8 {
        self.bytes(STATUS, 1)[0]
    }
}

#[test]
fn an_empty_last_buffer_does_not_move_the_status_byte() {
    let mut disk = fixture(false);
    disk.header(0, 0);
    let beside = DATA + 0x9000;
    disk.memory.write_obj(UNTOUCHED, GuestAddress(beside - 1)).unwrap();
    let chain = [readable(HEADER, 16), writable(BODY, 512), writable(STATUS, 1), writable(beside, 0)];
    assert_eq!(disk.serve(&chain).unwrap(), 513);
    assert_eq!(disk.status(), STATUS_OK);
    assert_eq!(disk.bytes(beside - 1, 1), [UNTOUCHED], "outside the chain");
}

const READ: u32 = 0;
const WRITE: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

fn header() -> Buffer {
    readable(HEADER, 16)
}

fn status() -> Buffer {
    writable(STATUS, 1)
}

#[test]
fn every_request_has_its_status_and_its_exact_used_length() {
    let (to, from) = (|len| writable(BODY, len), |len| readable(BODY, len));
    let past = SECTORS;
    // Type, sector, data; status, used length.
    for (kind, sector, data, expected, used) in [
        (READ, 0, vec![to(512)], STATUS_OK, 513),
        (READ, 0, vec![to(100), writable(BODY + 100, 412), to(512)], STATUS_OK, 1025),
        (READ, past - 1, vec![to(512)], STATUS_OK, 513),
        (READ, 0, vec![to(512 * SECTORS as u32)], STATUS_OK, 4097),
        (READ, 0, vec![], STATUS_OK, 1),
        (READ, past, vec![], STATUS_OK, 1),
        (READ, 0, vec![to(511)], STATUS_IOERR, 1),
        (READ, 0, vec![to(513)], STATUS_IOERR, 1),
        (READ, past, vec![to(512)], STATUS_IOERR, 1),
        (READ, past - 1, vec![to(1024)], STATUS_IOERR, 1),
        (READ, past + 1, vec![], STATUS_IOERR, 1),
        (READ, u64::MAX, vec![to(512)], STATUS_IOERR, 1),
        (READ, u64::MAX / 512, vec![to(512)], STATUS_IOERR, 1),
        (READ, u64::MAX / 512 + 1, vec![to(512)], STATUS_IOERR, 1),
        (WRITE, 0, vec![from(512)], STATUS_OK, 1),
        (WRITE, past - 1, vec![from(12), from(500)], STATUS_OK, 1),
        (WRITE, 0, vec![from(100)], STATUS_IOERR, 1),
        (WRITE, past, vec![from(512)], STATUS_IOERR, 1),
        (WRITE, u64::MAX, vec![from(512)], STATUS_IOERR, 1),
        (FLUSH, 0, vec![], STATUS_OK, 1),
        (FLUSH, u64::MAX, vec![], STATUS_OK, 1),
        (GET_ID, 0, vec![to(20)], STATUS_OK, 21),
        (GET_ID, 0, vec![to(8)], STATUS_OK, 9),
        (GET_ID, 0, vec![to(8), writable(BODY + 8, 100)], STATUS_OK, 21),
        (GET_ID, 0, vec![], STATUS_OK, 1),
        (2, 0, vec![from(512)], STATUS_UNSUPP, 1),
        (DISCARD, 0, vec![from(15)], STATUS_IOERR, 1),
        (u32::MAX, 0, vec![to(512)], STATUS_UNSUPP, 1),
    ] {
        let mut disk = fixture(false);
        disk.header(kind, sector);
        let chain = [vec![header()], data, vec![status()]].concat();
        let what = format!("type {kind}, sector {sector}, {chain:x?}");
        assert_eq!(disk.serve(&chain).unwrap(), used, "{what}");
        assert_eq!(disk.status(), expected, "{what}");
        disk.driver.offer_indirect(DATA + 0x9000, &chain);
        disk.on_queue().unwrap();
        assert_eq!(disk.driver.used()[1].1, used, "the same by an indirect table: {what}");
    }
}

#[test]
fn what_is_read_and_written_is_the_images() {
    let mut disk = fixture(false);
    disk.header(READ, 2);
    disk.serve(&[header(), writable(BODY, 1024), status()]).unwrap();
    assert_eq!(disk.bytes(BODY, 1024), [[3; 512], [4; 512]].concat());
    disk.memory.write_slice(&[0xab; 512], GuestAddress(BODY)).unwrap();
    disk.header(WRITE, 3);
    disk.serve(&[header(), readable(BODY + 500, 12), readable(BODY, 500), status()]).unwrap();
    disk.header(FLUSH, 0);
    disk.serve(&[header(), status()]).unwrap();
    let image = std::fs::read(disk.image.path()).unwrap();
    assert_eq!(image[2 * 512..5 * 512], [[3; 512], [0xab; 512], [5; 512]].concat());
    let counters = disk.block.counters()();
    let expected =
        [("reads", 1), ("writes", 1), ("flushes", 1), ("bytes_read", 1024), ("bytes_written", 512)];
    for (name, count) in expected {
        assert_eq!(counters[name], count, "{name}");
    }
}

#[test]
fn the_identity_is_cut_or_padded_to_twenty_bytes() {
    let mut disk = fixture(false);
    disk.header(GET_ID, 0);
    disk.serve(&[header(), writable(BODY, 20), status()]).unwrap();
    assert_eq!(disk.bytes(BODY, 20), *b"nestling-0\0\0\0\0\0\0\0\0\0\0");
}

#[test]
fn a_read_only_disk_is_read_and_not_written() {
    let mut disk = fixture(true);
    assert_eq!(disk.block.features() & F_RO, F_RO);
    for (kind, data, expected) in
        [(WRITE, readable(BODY, 512), STATUS_IOERR), (READ, writable(BODY, 512), STATUS_OK)]
    {
        disk.header(kind, 0);
        disk.serve(&[header(), data, status()]).unwrap();
        assert_eq!(disk.status(), expected);
    }
    assert_eq!(disk.bytes(BODY, 512), [1; 512], "the write changed nothing");
}

#[test]
fn header_and_status_may_be_cut_and_joined_in_any_way() {
    let mut disk = fixture(false);
    disk.header(READ, 1);
    let split =
        [readable(HEADER, 1), readable(HEADER + 1, 0), readable(HEADER + 1, 8), readable(HEADER + 9, 7)];
    let joined = writable(STATUS - 512, 513);
    assert_eq!(disk.serve(&[&split[..], &[joined]].concat()).unwrap(), 513);
    assert_eq!((disk.bytes(STATUS - 512, 512), disk.status()), (vec![2; 512], STATUS_OK));
    disk.header(WRITE, 1);
    disk.memory.write_slice(b"data", GuestAddress(HEADER + 16)).unwrap();
    let whole = [readable(HEADER, 16 + 512), status()];
    assert_eq!(disk.serve(&whole).unwrap(), 1);
    assert_eq!(std::fs::read(disk.image.path()).unwrap()[512..516], *b"data");
}

#[test]
fn what_is_no_request_is_a_fault() {
    for chain in [
        vec![status()],
        vec![header()],
        vec![readable(HEADER, 15), status()],
        vec![header(), readable(BODY, 512), readable(STATUS, 1)],
        vec![header(), writable(STATUS, 0)],
        vec![header(), writable(HOLE, 1)],
        vec![header(), writable(HOLE - 256, 512), status()],
        vec![header(), writable(HIGH_RAM + RAM_BYTES - 1, 2)],
        vec![readable(HOLE - 8, 16), status()],
        vec![readable(u64::MAX - 8, 16), status()],
        vec![header(), writable(u64::MAX, 1)],
        vec![header(), writable(u64::MAX, u32::MAX)],
        vec![header(), readable(BODY, u32::MAX), status()],
    ] {
        let mut disk = fixture(false);
        disk.header(READ, 0);
        assert!(disk.serve(&chain).is_err(), "{chain:x?}");
        assert_eq!((disk.driver.used(), disk.status()), (vec![], UNTOUCHED), "{chain:x?}");
    }
}

#[test]
fn chains_without_end_are_bounded() {
    // Descriptor 0 is the header; what follows never ends. Flags: 1 next, 2 write, 4 indirect.
    let mut disk = fixture(false);
    disk.header(READ, 0);
    disk.driver.store(0, HEADER, 16, 1, 1);
    disk.driver.store(1, BODY, 512, 3, 1);
    disk.driver.offer_head(0);
    assert!(matches!(disk.on_queue(), Err(Fault::Chain(_))), "it goes round");
    assert_eq!(disk.driver.used(), [], "no request was made of it");

    let mut disk = fixture(false);
    disk.driver.store(0, DATA, 16, 4, 0);
    disk.memory.write_obj([DATA, 16 | 4 << 32], GuestAddress(DATA)).unwrap();
    disk.driver.offer_head(0);
    assert!(disk.on_queue().is_err(), "indirect inside indirect");

    let mut disk = fixture(false);
    disk.driver.store(0, DATA, 8, 4, 0);
    disk.driver.offer_head(0);
    assert!(disk.on_queue().is_err(), "half a descriptor");
}

#[test]
fn a_host_that_fails_is_an_error_for_the_guest_and_one_line_for_us() {
    let mut disk = fixture(false);
    disk.header(READ, SECTORS + 1);
    disk.serve(&[header(), writable(BODY, 512), status()]).unwrap();
    assert!(disk.block.0.complaints.may_speak(), "the guest's mistake is not the host's");
    disk.image.as_file().set_len(512).unwrap();
    disk.header(READ, 4);
    assert_eq!(disk.serve(&[header(), writable(BODY, 512), status()]).unwrap(), 1);
    assert_eq!(disk.status(), STATUS_IOERR);
}

/// Header, data and status are there, and then it goes on where nothing is.
#[test]
fn a_chain_without_an_end_is_a_fault() {
    const NEXT: u16 = 1;
    const WRITES: u16 = 2;
    for next in [QUEUE_SIZE, u16::MAX, 0] {
        let mut disk = fixture(false);
        disk.header(READ, 0);
        disk.driver.store(0, HEADER, 16, NEXT, 1);
        disk.driver.store(1, BODY, 512, NEXT | WRITES, 2);
        disk.driver.store(2, STATUS, 1, NEXT | WRITES, next);
        disk.driver.offer_head(0);
        assert!(matches!(disk.on_queue(), Err(Fault::Chain(_))), "{next}");
        assert_eq!(disk.status(), UNTOUCHED);
    }
}
