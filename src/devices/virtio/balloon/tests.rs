//! The balloon's queues from a driver's end.

use std::fs::File;
use std::os::fd::FromRawFd;
use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::*;
use crate::devices::pci::msix::Msix;
use crate::devices::virtio::testing::{
    Buffer, DATA, Driver, HIGH_RAM, HOLE, RAM_BYTES, guest_ram, open_msix, readable, writable,
};
use crate::devices::virtio::{Listen, QueueHandler};
use crate::devices::wiring::mock::MockWiring;

mod random;

const ALL: BalloonOptions = BalloonOptions { deflate_on_oom: true, free_page_reporting: true };
const HUGE: u64 = 2 << 20;

/// A balloon whose driver accepted `features` and enabled as many queues as it needs.
struct Fixture {
    memory: GuestMemoryMmap,
    balloon: Balloon,
    layout: Layout,
    handler: BalloonHandler,
    drivers: Vec<Driver>,
    queues: Queues,
    wiring: Arc<MockWiring>,
    _msix: Arc<Msix>,
}

fn fixture(features: u64, enabled: &[usize]) -> Fixture {
    let (memory, (wiring, msix)) = (guest_ram(), open_msix(5));
    for (start, end) in [(0x1_0000, HOLE), (HIGH_RAM, HIGH_RAM + RAM_BYTES)] {
        memory.write_slice(&vec![7; (end - start) as usize], GuestAddress(start)).unwrap();
    }
    let drivers: Vec<Driver> = (0..5).map(|index| Driver::new(&memory, index, 64)).collect();
    let queue =
        |(index, driver): (usize, &Driver)| enabled.contains(&index).then(|| driver.device(true, &msix));
    let queues = Queues(drivers.iter().enumerate().map(queue).collect());
    let balloon = Balloon::new(ALL, &memory).unwrap();
    let layout = Layout::of(features, &queues);
    let handler = BalloonHandler::new(Arc::clone(&balloon.0), layout, features).unwrap();
    Fixture { memory, balloon, layout, handler, drivers, queues, wiring, _msix: msix }
}

impl Fixture {
    /// Sends page numbers on a queue; the chain comes back.
    fn tell(&mut self, queue: usize, pages: &[u64]) {
        let bytes: Vec<u8> = pages.iter().flat_map(|page| (*page as u32).to_le_bytes()).collect();
        self.memory.write_slice(&bytes, GuestAddress(DATA)).unwrap();
        self.offer(queue, &[readable(DATA, bytes.len() as u32)]).unwrap();
    }

    fn offer(&mut self, queue: usize, chain: &[Buffer]) -> Result<(), Fault> {
        let before = self.drivers[queue].used().len();
        self.drivers[queue].offer(chain);
        self.handler.on_queue(&mut self.queues, queue)?;
        assert_eq!(self.drivers[queue].used().len(), before + 1);
        Ok(())
    }

    fn byte(&self, address: u64) -> u8 {
        self.memory.read_obj(GuestAddress(address)).unwrap()
    }

    fn counter(&self, name: &str) -> u64 {
        self.balloon.counters()()[name]
    }

    fn wait_for_timer(&mut self) {
        let mut poll =
            libc::pollfd { fd: self.handler.host_sources()[0].fd, events: libc::POLLIN, revents: 0 };
        // SAFETY: one pollfd of this stack frame.
        assert_eq!(unsafe { libc::poll(&raw mut poll, 1, 30_000) }, 1, "a timer runs");
        assert_eq!(self.handler.on_host(&mut self.queues, 0).unwrap(), Listen::Yes);
        // SAFETY: as above.
        assert_eq!(unsafe { libc::poll(&raw mut poll, 1, 0) }, 0, "and is quiet afterwards");
    }
}

fn page(address: u64) -> u64 {
    address / PAGE
}

#[test]
fn a_huge_page_goes_back_at_once_when_it_is_whole() {
    let mut balloon = fixture(F_MUST_TELL_HOST, &[0, 1]);
    let pages: Vec<u64> = (page(HIGH_RAM)..page(HIGH_RAM + HUGE)).collect();
    balloon.tell(INFLATE, &pages[..256]);
    assert_eq!(balloon.byte(HIGH_RAM), 7, "half of it waits");
    balloon.tell(INFLATE, &pages[256..]);
    assert_eq!((balloon.byte(HIGH_RAM), balloon.byte(HIGH_RAM + HUGE - 1)), (0, 0));
    assert_eq!(balloon.counter("bytes_inflated"), HUGE);
    assert_eq!(balloon.counter("bytes_released"), HUGE);
}

#[test]
fn single_pages_go_back_after_a_quiet_moment_but_not_when_the_guest_took_them_again() {
    let mut balloon = fixture(F_MUST_TELL_HOST, &[0, 1]);
    balloon.tell(INFLATE, &[page(HIGH_RAM) + 3, page(HIGH_RAM) + 5]);
    balloon.tell(DEFLATE, &[page(HIGH_RAM) + 3]);
    assert_eq!(balloon.byte(HIGH_RAM + 5 * PAGE), 7);
    balloon.wait_for_timer();
    assert_eq!(balloon.byte(HIGH_RAM + 5 * PAGE), 0);
    assert_eq!(balloon.byte(HIGH_RAM + 3 * PAGE), 7, "the guest has it again");
    assert_eq!((balloon.counter("bytes_released"), balloon.counter("bytes_deflated")), (PAGE, PAGE));
}

#[test]
fn a_driver_that_need_not_tell_loses_its_pages_at_once_and_never_later() {
    let mut balloon = fixture(0, &[0, 1]);
    let pages: Vec<u64> = (page(HIGH_RAM)..page(HIGH_RAM + HUGE)).collect();
    balloon.tell(INFLATE, &pages[..511]);
    assert_eq!((balloon.byte(HIGH_RAM), balloon.byte(HIGH_RAM + HUGE - 1)), (0, 7));
    balloon.memory.write_obj(9_u8, GuestAddress(HIGH_RAM)).unwrap();
    balloon.tell(INFLATE, &pages[511..]);
    assert_eq!(balloon.byte(HIGH_RAM + HUGE - 1), 0);
    assert_eq!(balloon.byte(HIGH_RAM), 9, "it used that page again and said nothing");
}

#[test]
fn pages_that_are_no_ram_are_refused_and_the_rest_is_taken() {
    let mut balloon = fixture(0, &[0, 1]);
    let outside = [page(HOLE), page(HIGH_RAM + RAM_BYTES), u64::from(u32::MAX)];
    balloon.tell(INFLATE, &[&outside[..], &[page(HIGH_RAM), page(HIGH_RAM)]].concat());
    assert_eq!(balloon.byte(HIGH_RAM), 0);
    assert_eq!(balloon.counter("bytes_refused"), 3 * PAGE);
    balloon.tell(DEFLATE, &outside);
    assert_eq!(balloon.counter("bytes_refused"), 6 * PAGE);
    // An empty list, a list with half a number, and a buffer to write into.
    balloon.tell(INFLATE, &[]);
    balloon.offer(INFLATE, &[readable(DATA, 3), writable(DATA, 400)]).unwrap();
    assert_eq!(balloon.counter("bytes_inflated"), 2 * PAGE);
}

#[test]
fn a_list_no_driver_sends_is_a_fault() {
    for chain in [
        vec![readable(HOLE - 4, 8)],
        vec![readable(u64::MAX - 3, 4)],
        vec![readable(HIGH_RAM, 64 << 10), readable(HIGH_RAM, 4)],
        vec![readable(HIGH_RAM, u32::MAX)],
    ] {
        let mut balloon = fixture(F_MUST_TELL_HOST, &[0, 1]);
        assert!(balloon.offer(INFLATE, &chain).is_err(), "{chain:?}");
    }
    let mut balloon = fixture(F_MUST_TELL_HOST, &[0, 1]);
    // The next descriptor is none of the ring's.
    balloon.drivers[0].store(0, DATA, 4, 1, 999);
    balloon.drivers[0].offer_head(0);
    assert!(balloon.handler.on_queue(&mut balloon.queues, INFLATE).is_err());
}

#[test]
fn queues_are_where_linux_and_the_specification_put_them() {
    let all = F_STATS_VQ | F_REPORTING;
    for (features, enabled, statistics, reporting) in [
        (0, &[0, 1][..], None, None),
        (F_STATS_VQ, &[0, 1, 2], Some(2), None),
        (F_REPORTING, &[0, 1, 2], None, Some(2)),
        (all, &[0, 1, 2, 3], Some(2), Some(3)),
        (F_REPORTING, &[0, 1, 4], None, Some(4)),
        (all, &[0, 1, 2, 4], Some(2), Some(4)),
        (all, &[0, 1, 2, 3, 4], Some(2), Some(4)),
    ] {
        let mut balloon = fixture(features, enabled);
        assert_eq!(balloon.layout, Layout { statistics, reporting }, "{features} {enabled:?}");
        if let Some(index) = reporting {
            balloon.offer(index, &[writable(HIGH_RAM, HUGE as u32)]).unwrap();
            assert_eq!((balloon.byte(HIGH_RAM), balloon.counter("bytes_reported")), (0, HUGE));
        }
        if let Some(index) = statistics {
            balloon.drivers[index].offer(&[readable(DATA, 20)]);
            balloon.handler.on_queue(&mut balloon.queues, index).unwrap();
            assert_eq!(balloon.drivers[index].used(), [], "kept until we want news");
            assert_eq!(balloon.counter("statistics"), 1);
        }
    }
}

#[test]
fn a_queue_without_its_feature_is_not_served() {
    let mut balloon = fixture(0, &[0, 1, 2, 3, 4]);
    for index in 2..5 {
        balloon.drivers[index].offer(&[writable(HIGH_RAM, PAGE as u32)]);
        balloon.handler.on_queue(&mut balloon.queues, index).unwrap();
        assert_eq!(balloon.drivers[index].used(), []);
    }
    assert_eq!(balloon.byte(HIGH_RAM), 7);
}

#[test]
fn reported_pages_are_dropped_within_ram_and_given_back() {
    let mut balloon = fixture(F_REPORTING, &[0, 1, 2]);
    let chain = [
        writable(HIGH_RAM, 0x4000),
        writable(HIGH_RAM + 0x2000, 0x4000),
        writable(HOLE, 0x1000),
        writable(HIGH_RAM + 0x8800, 0x1000),
        writable(u64::MAX - 0xfff, 0x2000),
        writable(HIGH_RAM + 0x2_0000, 0),
    ];
    balloon.offer(2, &chain).unwrap();
    assert_eq!(balloon.drivers[2].used(), [(0, 0)]);
    assert_eq!(balloon.counter("bytes_reported"), 0x6000, "an overlap counts once");
    assert_eq!(balloon.counter("bytes_refused"), 0x2000 + 0xfff);
    assert_eq!(balloon.byte(HIGH_RAM + 0x5fff), 0);
    assert_eq!((balloon.byte(HIGH_RAM + 0x8800), balloon.byte(HIGH_RAM + 0x9000)), (7, 7));
    assert!(balloon.offer(2, &[readable(HIGH_RAM + 0x1_0000, 0x1000)]).is_err());
    assert_eq!(balloon.byte(HIGH_RAM + 0x1_0000), 7);
}

#[test]
fn poisoned_pages_stay_what_they_are() {
    let features = F_REPORTING | F_PAGE_POISON;
    let mut balloon = fixture(features, &[0, 1, 2]);
    balloon.balloon.write_config(POISON, &[0xaa; 4]);
    balloon.offer(2, &[writable(HIGH_RAM, 0x1000)]).unwrap();
    assert_eq!((balloon.byte(HIGH_RAM), balloon.counter("bytes_reported")), (7, 0));
    balloon.balloon.write_config(POISON, &[0; 4]);
    balloon.offer(2, &[writable(HIGH_RAM, 0x1000)]).unwrap();
    assert_eq!((balloon.byte(HIGH_RAM), balloon.counter("bytes_reported")), (0, 0x1000));
    // A driver without the feature has nothing to say about it.
    let mut balloon = fixture(F_REPORTING, &[0, 1, 2]);
    balloon.balloon.write_config(POISON, &[0xaa; 4]);
    balloon.offer(2, &[writable(HIGH_RAM, 0x1000)]).unwrap();
    assert_eq!(balloon.byte(HIGH_RAM), 0);
}

#[test]
fn statistics_are_asked_for_by_giving_the_chain_back() {
    let mut balloon = fixture(F_STATS_VQ, &[0, 1, 2]);
    let ask = |balloon: &mut Fixture| {
        balloon.balloon.0.ask.write(1).unwrap();
        balloon.handler.on_host(&mut balloon.queues, 1).unwrap();
    };
    ask(&mut balloon);
    assert_eq!(balloon.drivers[2].used(), [], "there is no chain yet");
    for (round, free) in [(1_usize, 1000_u64), (2, 2000)] {
        let entry = [&4_u16.to_le_bytes()[..], &free.to_le_bytes()].concat();
        balloon.memory.write_slice(&entry, GuestAddress(DATA)).unwrap();
        balloon.drivers[2].offer(&[readable(DATA, 10)]);
        balloon.handler.on_queue(&mut balloon.queues, 2).unwrap();
        assert_eq!(balloon.balloon.facts().guest.unwrap().values["free_bytes"], free);
        assert_eq!((balloon.wiring.raised(2), balloon.drivers[2].used().len()), (0, round - 1));
        balloon.drivers[2].set_used_event(round as u16 - 1);
        ask(&mut balloon);
        ask(&mut balloon);
        assert_eq!((balloon.wiring.raised(2), balloon.drivers[2].used().len()), (1, round));
    }
    // A second chain is not needed, and one that is too long is read in part.
    balloon.drivers[2].offer(&[readable(HIGH_RAM, 0x1_0000)]);
    balloon.drivers[2].offer(&[readable(DATA, 10), writable(DATA, 10)]);
    balloon.handler.on_queue(&mut balloon.queues, 2).unwrap();
    assert_eq!(balloon.drivers[2].used().len(), 3);
}

#[test]
fn a_target_is_what_the_guest_keeps() {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 256 << 20)]).unwrap();
    let balloon = Balloon::new(ALL, &memory).unwrap();
    assert_eq!(balloon.facts().target_bytes, 256 << 20);
    for (bytes, pages) in
        [(128 << 20, 128 << 8), ((128 << 20) + 1, (128 << 8) - 1), (32 << 20, 224 << 8), (256 << 20, 0)]
    {
        balloon.set_target(bytes).unwrap();
        assert_eq!(balloon.config()[..4], u32::to_le_bytes(pages), "{bytes}");
    }
    let error = TargetError { least_bytes: 32 << 20, size_bytes: 256 << 20 };
    for bytes in [0, (32 << 20) - 1, (256 << 20) + 1, u64::MAX] {
        assert_eq!(balloon.set_target(bytes), Err(error));
    }
    assert_eq!(error.to_string(), "the guest's memory can be set from 32 MiB to its size, 256 MiB");
}

#[test]
fn the_driver_writes_two_fields_and_no_others() {
    let memory = guest_ram();
    let balloon = Balloon::new(ALL, &memory).unwrap();
    balloon.write_config(0, &[0xff; 4]);
    balloon.write_config(8, &[0xff; 4]);
    balloon.write_config(16, &[0xff; 4]);
    balloon.write_config(usize::MAX, &[0xff; 4]);
    assert_eq!(balloon.config(), [0; 16]);
    balloon.write_config(ACTUAL, &300_u32.to_le_bytes());
    balloon.write_config(POISON, &[1, 2]);
    balloon.write_config(POISON + 3, &[4, 5]);
    assert_eq!(balloon.config()[4..], [44, 1, 0, 0, 0, 0, 0, 0, 1, 2, 0, 4]);
    assert_eq!(balloon.facts().balloon_bytes, 300 * PAGE);
    balloon.stop();
    assert_eq!(balloon.config(), [0; 16], "a reset forgets what the driver said");
}

#[test]
fn options_are_features() {
    let memory = guest_ram();
    let features = |deflate_on_oom, free_page_reporting| {
        Balloon::new(BalloonOptions { deflate_on_oom, free_page_reporting }, &memory).unwrap().features()
    };
    assert_eq!(features(false, false), 0b11);
    assert_eq!(features(true, false), 0b111);
    assert_eq!(features(false, true), 0b11_0011);
}

#[test]
fn hugetlb_pages_are_not_given_back() {
    let flags = libc::MFD_CLOEXEC | libc::MFD_HUGETLB | libc::MFD_HUGE_2MB;
    // SAFETY: the name is a C string.
    let fd = unsafe { libc::memfd_create(c"ram".as_ptr(), flags) };
    assert!(fd >= 0, "{}", io::Error::last_os_error());
    // SAFETY: the descriptor is new and nobody else's.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(2 << 20).unwrap();
    let whole = (GuestAddress(0), 2 << 20, Some(vm_memory::FileOffset::new(file, 0)));
    // Mapped, and never touched: this machine may have no such page.
    let memory = GuestMemoryMmap::from_ranges_with_files([whole]).unwrap();
    let balloon = Balloon::new(ALL, &memory).unwrap();
    assert_eq!(balloon.features() & (F_REPORTING | F_PAGE_POISON), 0, "it does not ask for free pages");
    let layout = Layout { statistics: None, reporting: None };
    let handler = BalloonHandler::new(Arc::clone(&balloon.0), layout, F_MUST_TELL_HOST).unwrap();
    let mut all = [0..1 << 20, 1 << 20..2 << 20];
    assert_eq!(handler.give(&memory, &mut all), 0);
    assert_eq!(balloon.counters()()["bytes_released"], 0);
}
