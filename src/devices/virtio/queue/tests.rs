//! A queue between a driver and a device that does nothing but give chains back.

use super::*;
use crate::devices::virtio::testing::{DATA, Driver, guest_ram, open_msix, readable, writable};
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
