//! Requests in every shape, against a small image.

use std::io::Write;

use super::*;
use crate::devices::virtio::testing::{
    Buffer, DATA, Driver, HIGH_RAM, HOLE, RAM_BYTES, guest_ram, open_msix, readable, writable,
};
use vm_memory::GuestAddress;

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
    image: tempfile::NamedTempFile,
}

/// A disk whose sector `n` is full of bytes `n + 1`, and a driver whose status byte is not a status.
fn fixture(readonly: bool) -> Fixture {
    let mut image = tempfile::NamedTempFile::new().unwrap();
    for sector in 0..SECTORS {
        image.write_all(&[sector as u8 + 1; 512]).unwrap();
    }
    let block = Block::new(RawDisk::open(image.path(), readonly).unwrap(), 0);
    let memory = guest_ram();
    memory.write_obj(UNTOUCHED, GuestAddress(STATUS)).unwrap();
    let driver = Driver::new(&memory, 0, QUEUE_SIZE);
    let queues = Queues(vec![Some(driver.device(false, &open_msix(1).1))]);
    Fixture { memory, driver, queues, block, image }
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
        self.block.on_queue(&mut self.queues, 0)?;
        Ok(self.driver.used().last().unwrap().1)
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

#[test]
fn a_driver_that_never_flushes_finds_its_writes_stable() {
    for (features, flushes) in [(F_FLUSH, 0), (0, 1)] {
        let mut disk = fixture(false);
        disk.block.on_start(features);
        disk.header(1, 0);
        disk.serve(&[readable(HEADER, 16), readable(BODY, 512), writable(STATUS, 1)]).unwrap();
        assert_eq!(disk.status(), STATUS_OK);
        assert_eq!(disk.block.counters()()["flushes"], flushes, "features {features:#x}");
    }
}
