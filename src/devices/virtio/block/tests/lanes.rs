//! Many requests at once: more than there is room for, limits, pauses, several queues, resizing.

use std::time::{Duration, Instant};

use super::*;
use crate::devices::virtio::Listen;

fn many(io: Io, bytes: Option<Rate>, operations: Option<Rate>) -> Fixture {
    let mut disk = fixture(false);
    let raw = {
        // The fixture's own disk holds the image's lock.
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(1 << 20).unwrap();
        let raw = RawDisk::open(image.path(), Access::WRITE).unwrap();
        disk.image = image;
        raw
    };
    disk.block =
        Block::new(Arc::new(raw), BlockOptions { io, bytes, operations, ..BlockOptions::default() }).unwrap();
    disk.handler = disk.block.handler(F_FLUSH, &disk.memory).unwrap();
    disk
}

/// Write requests to one sector each, whose headers, data and status bytes are their own.
fn offer_writes(disk: &mut Fixture, count: u64) {
    for number in 0..count {
        let place = DATA + 0x1_0000 + number * 1024;
        disk.memory.write_obj(WRITE, GuestAddress(place)).unwrap();
        disk.memory.write_obj(number, GuestAddress(place + 8)).unwrap();
        disk.memory.write_slice(&[number as u8 + 1; 512], GuestAddress(place + 16)).unwrap();
        disk.memory.write_obj(UNTOUCHED, GuestAddress(place + 1000)).unwrap();
        disk.driver.offer(&[readable(place, 528), writable(place + 1000, 1)]);
    }
}

fn check_writes(disk: &Fixture, count: u64) {
    let image = std::fs::read(disk.image.path()).unwrap();
    for number in 0..count {
        assert_eq!(disk.bytes(DATA + 0x1_0000 + number * 1024 + 1000, 1), [STATUS_OK], "{number}");
        let sector = &image[number as usize * 512..][..512];
        assert!(sector.iter().all(|byte| *byte == number as u8 + 1), "{number}");
    }
    let mut heads: Vec<u32> = disk.driver.used().into_iter().map(|(head, _)| head).collect();
    heads.sort_unstable();
    assert_eq!(heads, (0..count as u32).map(|number| number * 2).collect::<Vec<_>>());
}

/// Lets the host's events come until `count` chains are back, as a worker does.
fn work(disk: &mut Fixture, count: usize) {
    let end = Instant::now() + Duration::from_secs(20);
    while disk.driver.used().len() < count {
        assert!(Instant::now() < end, "{} of {count}", disk.driver.used().len());
        let sources = disk.handler.host_sources();
        let mut polled: Vec<libc::pollfd> = sources
            .iter()
            .map(|source| libc::pollfd { fd: source.fd, events: libc::POLLIN, revents: 0 })
            .collect();
        // SAFETY: the array lives through the call.
        unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, 10_000) };
        for (number, source) in polled.iter().enumerate() {
            if source.revents != 0 {
                assert_eq!(disk.handler.on_host(&mut disk.queues, number).unwrap(), Listen::Yes);
            }
        }
    }
}

#[test]
fn a_full_ring_is_served_whoever_does_the_io() {
    for io in [Io::Auto, Io::Threads] {
        let mut disk = many(io, None, None);
        offer_writes(&mut disk, 128);
        disk.handler.on_queue(&mut disk.queues, 0).unwrap();
        work(&mut disk, 128);
        check_writes(&disk, 128);
        assert_eq!(disk.block.counters()()["writes"], 128);
        let engine = if io == Io::Threads { "threads" } else { "io_uring" };
        assert!(disk.block.backend().unwrap().ends_with(&format!("(raw, 1048576 bytes, {engine})")));
    }
}

#[test]
fn what_finds_no_room_stays_in_the_ring_until_there_is() {
    let mut disk = many(Io::Threads, None, None);
    let small = Engine::new(&disk.block.0.disk, Io::Threads, 3).unwrap();
    disk.handler = BlockHandler::new(Arc::clone(&disk.block.0), F_FLUSH, small, None, disk.memory.clone());
    offer_writes(&mut disk, 100);
    disk.handler.on_queue(&mut disk.queues, 0).unwrap();
    work(&mut disk, 100);
    check_writes(&disk, 100);
}

#[test]
fn a_limited_disk_takes_its_time_and_loses_nothing() {
    let rate = |per_second, burst| Some(Rate { per_second, burst });
    for (bytes, operations) in [(None, rate(100, 10)), (rate(100 * 512, 10 * 512), None)] {
        let mut disk = many(Io::Auto, bytes, operations);
        offer_writes(&mut disk, 40);
        let start = Instant::now();
        disk.handler.on_queue(&mut disk.queues, 0).unwrap();
        work(&mut disk, 40);
        assert!(start.elapsed() >= Duration::from_millis(250), "30 requests at 100 a second");
        check_writes(&disk, 40);
        assert!(disk.block.counters()()["throttled"] > 0);
    }
}

#[test]
fn a_pause_finishes_what_was_begun_and_begins_nothing() {
    for io in [Io::Auto, Io::Threads] {
        let mut disk = many(io, None, Some(Rate { per_second: 5, burst: 20 }));
        offer_writes(&mut disk, 30);
        disk.handler.on_queue(&mut disk.queues, 0).unwrap();
        disk.handler.quiesce(&mut disk.queues).unwrap();
        let used = disk.driver.used().len();
        assert!((20..30).contains(&used), "{used}");
        assert_eq!((disk.handler.engine.in_flight(), disk.queues.get(0).unwrap().kept()), (0, 0));
        disk.handler.quiesce(&mut disk.queues).unwrap();
        assert_eq!(disk.driver.used().len(), used);
    }
}

#[test]
fn a_handler_that_goes_leaves_no_request_behind() {
    let mut disk = many(Io::Auto, None, None);
    offer_writes(&mut disk, 100);
    disk.handler.on_queue(&mut disk.queues, 0).unwrap();
    disk.handler = disk.block.handler(F_FLUSH, &disk.memory).unwrap();
    disk.block.stop();
    let image = std::fs::read(disk.image.path()).unwrap();
    assert!(image[..100 * 512].chunks(512).zip(1_u8..).all(|(sector, value)| sector == [value; 512]));
}

#[test]
fn two_queues_of_one_limited_disk_share_a_handler() {
    let mut disk = many(Io::Auto, None, Some(Rate { per_second: 1000, burst: 4 }));
    let mut second = Driver::new(&disk.memory, 1, QUEUE_SIZE);
    disk.queues.0.push(Some(second.device(false, &open_msix(2).1)));
    offer_writes(&mut disk, 10);
    disk.header(READ, 0);
    second.offer(&[header(), writable(BODY, 512), status()]);
    disk.handler.on_queue(&mut disk.queues, 0).unwrap();
    disk.handler.on_queue(&mut disk.queues, 1).unwrap();
    work(&mut disk, 10);
    let end = Instant::now() + Duration::from_secs(20);
    while second.used().is_empty() {
        assert!(Instant::now() < end);
        disk.handler.on_host(&mut disk.queues, 1).unwrap();
        std::thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(second.used(), [(0, 513)]);
    check_writes(&disk, 10);
}

#[test]
fn a_disk_that_grew_has_a_new_capacity() {
    let disk = many(Io::Auto, None, None);
    let capacity = |block: &Block| u64::from_le_bytes(block.config()[..8].try_into().unwrap());
    assert_eq!(capacity(&disk.block), 2048);
    assert_eq!(disk.block.resize(Some(2 << 20)).unwrap(), 2 << 20);
    assert_eq!(capacity(&disk.block), 4096);
    disk.image.as_file().set_len(3 << 20).unwrap();
    assert_eq!(disk.block.resize(None).unwrap(), 3 << 20);
    assert_eq!(capacity(&disk.block), 6144);
}

#[test]
fn a_queue_per_vcpu_is_what_the_driver_sees() {
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(4096).unwrap();
    let raw = RawDisk::open(image.path(), Access::READ).unwrap();
    let block = Block::new(Arc::new(raw), BlockOptions { queues: 4, ..BlockOptions::default() }).unwrap();
    assert_eq!(block.queue_sizes(), vec![QUEUE_SIZE; 4]);
    assert_eq!(block.config()[34..36], [4, 0]);
}

#[test]
fn a_table_longer_than_the_queue_is_refused_before_it_is_kept() {
    let mut disk = fixture(false);
    disk.header(READ, 0);
    // A table may have 65535 entries: a megabyte of ours for each of 256 requests, which may all share it.
    let mut chain = vec![header()];
    chain.extend((0..MAX_PIECES as u64).map(|_| writable(BODY, 1)));
    chain.push(status());
    disk.driver.offer_indirect(DATA + 0x2_0000, &chain);
    let refused = disk.on_queue().unwrap_err();
    assert!(matches!(refused, Fault::Chain("a request has more buffers than a queue")), "{refused}");
}

#[test]
fn a_chain_that_leads_nowhere_is_no_request() {
    let mut disk = fixture(false);
    disk.header(WRITE, 0);
    disk.driver.store(0, HEADER, 16, 1, 1);
    disk.driver.store(1, BODY, 512, 1, 2);
    // It goes on outside the table, behind what looks like a whole request.
    disk.driver.store(2, STATUS, 1, 3, QUEUE_SIZE);
    disk.driver.offer_head(0);
    assert!(matches!(disk.on_queue(), Err(Fault::Chain(_))));
    assert_eq!(std::fs::read(disk.image.path()).unwrap()[..512], [1; 512], "nothing was written");
}

#[test]
fn a_reset_does_not_fill_the_buckets() {
    let mut disk = many(Io::Threads, None, Some(Rate { per_second: 1, burst: 1 }));
    let mut begun = 0;
    for _ in 0..20 {
        disk.handler = disk.block.handler(F_FLUSH, &disk.memory).unwrap();
        disk.driver.clear();
        disk.driver = Driver::new(&disk.memory, 0, QUEUE_SIZE);
        disk.queues = Queues(vec![Some(disk.driver.device(false, &open_msix(1).1))]);
        offer_writes(&mut disk, 8);
        disk.on_queue().unwrap();
        begun += disk.driver.used().len();
    }
    assert!(begun <= 10, "{begun} requests where two may begin at once and one a second");
}
