//! What a driver does wrong, and what it gets.

use super::fixture::{BAR, Function, MOVED, Told};
use crate::devices::virtio::testing::{DATA, HOLE, writable};

#[test]
fn a_broken_ring_asks_for_a_reset_and_a_reset_heals() {
    let mut function = Function::new();
    function.decode(true);
    function.bring_up();
    function.told();
    function.drivers[0].set_available(100);
    function.ring(0);
    assert_eq!(function.told(), Told::Stopped);
    assert_eq!(function.read(20, 1), [0x4f]);
    assert_eq!(
        [0, 1, 2].map(|vector| function.wiring.raised(vector)),
        [1, 0, 0],
        "the configuration changed"
    );
    assert_eq!(function.read(function.virtio_capability(3).offset.into(), 1), [2]);
    assert_eq!(function.state(), "needs-reset");

    function.write(20, &[0]);
    assert_eq!((function.read(20, 1), function.state().as_str()), (vec![0], "inactive"));
    function.new_rings();
    function.bring_up();
    assert!(matches!(function.told(), Told::Started(_)));
    function.drivers[0].offer(&[writable(DATA, 4)]);
    function.ring(0);
    assert_eq!(function.told(), Told::Served(0));
    assert_eq!(function.read(20, 1), [0xf]);
}

#[test]
fn a_device_that_started_often_still_says_what_broke_it() {
    let mut function = Function::new();
    function.decode(true);
    for _ in 0..20 {
        function.bring_up();
        function.write(20, &[0]);
        function.new_rings();
    }
    assert!(function.pci.complaints.may_speak(), "nothing was wrong so far");
}
