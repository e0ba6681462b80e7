//! A queue between a driver and a device that does nothing but give chains back.

use super::*;
use crate::devices::virtio::testing::{DATA, Driver, HOLE, guest_ram, open_msix, readable, writable};
use crate::devices::wiring::mock::MockWiring;

struct Fixture {
    driver: Driver,
    queue: DeviceQueue,
    wiring: Arc<MockWiring>,
}

fn fixture(size: u16, event_idx: bool) -> Fixture {
    let (wiring, msix) = open_msix(1);
    let driver = Driver::new(&guest_ram(), 0, size);
    let queue = driver.device(event_idx, &msix);
    Fixture { driver, queue, wiring }
}

impl Fixture {
    fn offer(&mut self, chains: usize) {
        for _ in 0..chains {
            self.driver.offer(&[readable(DATA, 8), writable(DATA + 8, 8)]);
        }
    }

    fn serve(&mut self) -> Result<(), Fault> {
        self.queue.serve(|_, _| Ok(8))
    }

    fn interrupts(&self) -> u64 {
        self.wiring.raised(0)
    }
}

#[test]
fn an_interrupt_announces_a_batch_and_nothing_announces_nothing() {
    for event_idx in [false, true] {
        let mut test = fixture(8, event_idx);
        test.serve().unwrap();
        assert_eq!(test.interrupts(), 0, "event_idx {event_idx}: no chain, no interrupt");
        test.offer(3);
        test.serve().unwrap();
        assert_eq!(test.interrupts(), 1, "event_idx {event_idx}: one for three");
        assert_eq!(test.driver.used().len(), 3);
        test.serve().unwrap();
        assert_eq!(test.interrupts(), 0, "event_idx {event_idx}: announced already");
    }
}

#[test]
fn a_driver_without_event_idx_mutes_the_queue_by_its_flag() {
    let mut test = fixture(8, false);
    test.driver.forbid_interrupts();
    test.offer(2);
    test.serve().unwrap();
    assert_eq!((test.driver.used().len(), test.interrupts()), (2, 0));
}

#[test]
fn event_idx_interrupts_exactly_when_the_used_index_passes_the_drivers_mark() {
    // Chains served before, the driver's mark, chains in the batch, whether that interrupts.
    for (before, mark, batch, wanted) in [
        (0, 0, 1, true),
        (0, 1, 1, false),
        (0, 1, 2, true),
        (0, 7, 8, true),
        (0, 8, 8, false),
        (3, 2, 4, false),
        (3, 3, 1, true),
        (3, 6, 4, true),
        (3, 7, 4, false),
        (3, 0x8000, 4, false),
    ] {
        let mut test = fixture(8, true);
        test.offer(before);
        test.serve().unwrap();
        test.interrupts();
        test.driver.set_used_event(mark);
        test.offer(batch);
        test.serve().unwrap();
        assert_eq!(test.interrupts(), u64::from(wanted), "{before} served, mark {mark}, then {batch}");
    }
}

#[test]
fn event_idx_works_across_the_wrap_of_the_index() {
    let mut test = fixture(8, true);
    for _ in 0..(1 << 16) / 8 - 1 {
        test.offer(8);
        test.serve().unwrap();
    }
    test.interrupts();
    test.driver.set_used_event(1);
    test.offer(8);
    test.serve().unwrap();
    assert_eq!(test.interrupts(), 0);
    test.offer(2);
    test.serve().unwrap();
    assert_eq!(test.interrupts(), 1);
    assert_eq!(test.driver.avail_event(), test.driver.available());
}

#[test]
fn a_drained_queue_asks_for_its_doorbell_and_a_busy_one_does_not() {
    let mut test = fixture(8, false);
    test.offer(1);
    let mut muted_inside = false;
    let driver = &test.driver;
    let serve = |_: &GuestMemoryMmap, _: Chain<'_>| {
        muted_inside = driver.forbids_doorbells();
        Ok(0)
    };
    test.queue.serve(serve).unwrap();
    assert!(muted_inside && !test.driver.forbids_doorbells());
}

#[test]
fn an_endless_driver_gets_a_rings_worth_and_then_its_doorbell_rings() {
    let mut test = fixture(8, true);
    test.offer(8);
    let (driver, mut served) = (&mut test.driver, 0);
    let endless = |_: &GuestMemoryMmap, _: Chain<'_>| {
        served += 1;
        driver.offer(&[readable(DATA, 8)]);
        Ok(0)
    };
    test.queue.serve(endless).unwrap();
    assert_eq!(served, 8);
    assert_eq!(test.queue.notify().read().unwrap(), 1);
    test.serve().unwrap();
    assert_eq!(test.driver.used().len(), 16);
    assert!(test.queue.notify().read().is_err(), "nothing is left: it does not ring");
}

#[test]
fn one_chain_at_a_time_and_the_doorbell_when_there_is_none() {
    let mut test = fixture(8, true);
    test.offer(2);
    assert!(test.queue.serve_one(|_, _| Ok(3)).unwrap());
    assert_eq!(test.driver.used(), [(0, 3)]);
    assert_eq!(test.interrupts(), 1);
    assert_eq!(test.driver.avail_event(), 0, "more is there: no doorbell is needed");
    assert!(test.queue.serve_one(|_, _| Ok(4)).unwrap());
    assert!(!test.queue.serve_one(|_, _| unreachable!()).unwrap());
    assert_eq!(test.driver.used(), [(0, 3), (2, 4)]);
    assert_eq!(test.driver.avail_event(), 2, "the next chain rings");
}

#[test]
fn impossible_rings_are_faults_and_nothing_is_given_back() {
    for available in [9, 0x8000, 0xffff] {
        let mut test = fixture(8, true);
        test.driver.set_available(available);
        assert!(matches!(test.serve(), Err(Fault::Ring(_))), "{available} available in a ring of 8");
        assert!(test.queue.serve_one(|_, _| Ok(0)).is_err());
    }
    let mut test = fixture(8, true);
    test.driver.offer_head(8);
    assert!(test.serve().is_err(), "there is no descriptor 8");
    assert_eq!(test.driver.used(), []);
}

#[test]
fn a_fault_in_a_chain_ends_the_batch() {
    let mut test = fixture(8, true);
    test.offer(3);
    let mut left = 2;
    let result = test.queue.serve(|_, _| {
        left -= 1;
        if left == 0 { Err(Fault::Chain("bad")) } else { Ok(1) }
    });
    assert!(result.is_err());
    assert_eq!(test.driver.used(), [(0, 1)]);
}

#[test]
fn chains_that_belong_together_are_seen_together_and_announced_once() {
    let (memory, (wiring, msix)) = (guest_ram(), open_msix(1));
    let mut driver = Driver::new(&memory, 0, 4);
    let mut queue = driver.device(true, &msix);
    // Three rounds of three: the ring of four wraps.
    for round in 0..3_u16 {
        for _ in 0..3 {
            driver.offer(&[writable(DATA, 8)]);
        }
        // The driver names the second chain of the round: not the last.
        driver.set_used_event(3 * round + 1);
        let mut used = Vec::new();
        while let Some(chain) = queue.pop_quietly().unwrap() {
            used.push((chain.head_index(), u32::from(round)));
        }
        queue.give_back_together(&used).unwrap();
        queue.announce().unwrap();
        assert_eq!(wiring.raised(0), 1, "round {round}");
        let seen = driver.used();
        assert_eq!(seen.len(), 3 * usize::from(round + 1));
        let heads: Vec<(u32, u32)> = used.iter().map(|&(head, len)| (head.into(), len)).collect();
        assert_eq!(seen[seen.len() - 3..], heads);
        queue.announce().unwrap();
        assert_eq!(wiring.raised(0), 0, "nothing is new");
    }
    queue.give_back_together(&[]).unwrap();
    assert!(queue.give_back_together(&[(0, 0), (4, 0)]).is_err(), "no such descriptor");
}

#[test]
fn a_ring_that_is_not_wholly_in_memory_is_refused() {
    let memory = guest_ram();
    let queue = |address: u64| {
        let mut queue = Queue::new(8).unwrap();
        queue.set_desc_table_address(Some(0x1000), None);
        queue.set_avail_ring_address(Some(0x2000), None);
        queue.set_used_ring_address(Some(address as u32), None);
        queue.set_ready(true);
        let interrupt = fixture(8, true).queue.interrupt;
        DeviceQueue::new(queue, memory.clone(), interrupt, EventFd::new(0).unwrap())
    };
    // Flags, index, eight elements of 8 bytes, the event: 70 bytes.
    assert!(queue(HOLE - 72).is_ok());
    for address in [HOLE - 68, HOLE - 4, HOLE] {
        assert!(matches!(queue(address), Err(Fault::Chain(_))), "{address:x}");
    }
}

#[test]
fn chains_seen_before_they_are_taken_are_no_more_than_the_ring_has() {
    let mut test = fixture(4, true);
    test.offer(3);
    assert!(test.queue.pop().unwrap().is_some());
    // The driver claims more while two are seen and not taken: they are served, and then it is found out.
    test.driver.set_available(8);
    assert!(test.queue.pop_quietly().unwrap().is_some());
    test.queue.put_back(1);
    assert!(test.queue.pop_quietly().unwrap().is_some());
    assert!(test.queue.pop_quietly().unwrap().is_some());
    assert!(matches!(test.queue.pop_quietly(), Err(Fault::Ring(_))));
    assert!(matches!(test.queue.pop(), Err(Fault::Ring(_))), "again");
}
