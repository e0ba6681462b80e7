//! When a write is stable: a disk that notes the order of what is done to it.

use std::io;
use std::ops::Range;
use std::sync::Mutex;

use super::*;
use crate::backend::disk::Buffers;

/// A disk of zeroes that remembers what it was asked.
#[derive(Debug, Default)]
struct Noting(Mutex<Vec<&'static str>>);

impl Noting {
    fn note(&self, what: &'static str) -> io::Result<()> {
        self.0.lock().unwrap().push(what);
        Ok(())
    }

    fn take(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl Disk for Noting {
    fn name(&self) -> String {
        "noting".to_owned()
    }

    fn size_bytes(&self) -> u64 {
        4096
    }

    fn readonly(&self) -> bool {
        false
    }

    fn read_at(&self, _: &Buffers<'_>, _: u64) -> io::Result<()> {
        self.note("read")
    }

    fn write_at(&self, _: &Buffers<'_>, _: u64) -> io::Result<()> {
        self.note("write")
    }

    fn flush(&self) -> io::Result<()> {
        self.note("flush")
    }

    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        self.note("discard")
    }

    fn write_zeroes(&self, _: u64, _: u64, _: bool) -> io::Result<()> {
        self.note("zero")
    }

    fn reread_size(&self) -> io::Result<u64> {
        Ok(4096)
    }

    fn grow(&self, _: u64) -> io::Result<u64> {
        Ok(4096)
    }

    fn next_data(&self, _: u64) -> io::Result<Option<Range<u64>>> {
        Ok(None)
    }

    fn description(&self) -> String {
        "notes".into()
    }
}

fn noting(writeback: bool) -> (Arc<Noting>, Block) {
    let disk = Arc::new(Noting::default());
    let block =
        Block::new(Arc::clone(&disk) as _, BlockOptions { writeback, ..BlockOptions::default() }).unwrap();
    (disk, block)
}

/// What one write and one write-zeroes request lead to.
fn writes(disk: &Noting, block: &Block, features: u64) -> [Vec<&'static str>; 2] {
    [(WRITE, 512), (WRITE_ZEROES, 16)].map(|(kind, bytes)| {
        let memory = guest_ram();
        let mut driver = Driver::new(&memory, 0, QUEUE_SIZE);
        let mut queues = Queues(vec![Some(driver.device(false, &open_msix(1).1))]);
        let mut handler = block.handler(features, &memory).unwrap();
        memory.write_obj(kind, GuestAddress(HEADER)).unwrap();
        memory.write_obj(1_u32, GuestAddress(BODY + 8)).unwrap();
        driver.offer(&[header(), readable(BODY, bytes), status()]);
        handler.on_queue(&mut queues, 0).unwrap();
        handler.quiesce(&mut queues).unwrap();
        assert_eq!(memory.read_obj::<u8>(GuestAddress(STATUS)).unwrap(), STATUS_OK);
        disk.take()
    })
}

#[test]
fn a_write_is_stable_when_nobody_will_flush() {
    let (back, through) = ([vec!["write"], vec!["zero"]], [vec!["write", "flush"], vec!["zero", "flush"]]);
    for (writeback, features, expected) in
        [(true, F_FLUSH, &back), (true, 0, &through), (false, F_FLUSH, &through), (false, 0, &through)]
    {
        let (disk, block) = noting(writeback);
        assert_eq!(
            &writes(&disk, &block, features),
            expected,
            "writeback {writeback}, features {features:#x}"
        );
        assert_eq!(block.config()[WRITEBACK], u8::from(writeback));
    }
}

#[test]
fn the_driver_may_choose_and_its_choice_ends_with_it() {
    let (disk, block) = noting(true);
    block.write_config(WRITEBACK, &[0]);
    assert_eq!(block.config()[WRITEBACK], 1, "nothing was agreed on yet");
    block.0.negotiated.store(F_FLUSH | F_CONFIG_WCE, Ordering::Release);
    for (offset, data) in [(0, &[0; 8][..]), (WRITEBACK + 1, &[0]), (usize::MAX, &[0]), (WRITEBACK, &[])] {
        block.write_config(offset, data);
        assert_eq!(block.config()[WRITEBACK], 1, "{offset}");
    }
    block.write_config(WRITEBACK, &[0]);
    assert_eq!((block.config()[WRITEBACK], disk.take()), (0, vec!["flush"]));
    assert_eq!(writes(&disk, &block, F_FLUSH)[0], ["write", "flush"]);
    block.write_config(WRITEBACK - 1, &[0, 7]);
    assert_eq!((block.config()[WRITEBACK], disk.take()), (1, vec![]));
    block.write_config(WRITEBACK, &[0]);
    block.stop();
    assert_eq!(block.config()[WRITEBACK], 1, "a reset brings back what was configured");
    assert_eq!(disk.take(), ["flush", "flush"]);
}

#[test]
fn a_request_of_several_ranges_is_done_in_order_and_once() {
    let (disk, block) = noting(false);
    let memory = guest_ram();
    let mut driver = Driver::new(&memory, 0, QUEUE_SIZE);
    let mut queues = Queues(vec![Some(driver.device(false, &open_msix(1).1))]);
    let mut handler = block.handler(F_FLUSH, &memory).unwrap();
    memory.write_obj(WRITE_ZEROES, GuestAddress(HEADER)).unwrap();
    driver.offer(&[header(), readable(BODY, 48), status()]);
    handler.on_queue(&mut queues, 0).unwrap();
    handler.quiesce(&mut queues).unwrap();
    assert_eq!(disk.take(), ["zero", "zero", "zero", "flush"]);
    assert_eq!(driver.used(), [(0, 1)]);
}
