//! What a driver does wrong, and what it gets.

use std::time::{Duration, Instant};

use proptest::prelude::*;

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
    let broken = Instant::now();
    while function.state() != "needs-reset" && broken.elapsed() < Duration::from_secs(30) {
        std::thread::yield_now();
    }
    assert_eq!(function.read(20, 1), [0x4f]);
    assert_eq!(
        [0, 1, 2].map(|vector| function.wiring.raised(vector)),
        [1, 0, 0],
        "the configuration changed"
    );
    assert_eq!(function.read(function.virtio_capability(3).offset.into(), 1), [2]);
    assert_eq!(function.state(), "needs-reset");

    function.write(20, &[0]);
    assert_eq!(function.told(), Told::Stopped);
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

#[test]
fn rings_that_cannot_be_are_refused_at_driver_ok() {
    // Register, low half, high half.
    for (register, low, high) in [
        (32, 0x1008, 0),
        (40, 0x1001, 0),
        (48, 0x1002, 0),
        (32, HOLE as u32 - 64, 0),
        (40, HOLE as u32, 0),
        (48, HOLE as u32 - 8, 0),
        (48, 0, 1),
        (32, 0xffff_fff0, 0xffff_ffff),
        (40, 0xffff_fffe, 0xffff_ffff),
        (48, 0xffff_fffc, 0xffff_ffff),
    ] {
        let function = Function::new();
        function.decode(true);
        function.set_up_queues(|function| {
            function.write(register, &u32::to_le_bytes(low));
            function.write(register + 4, &u32::to_le_bytes(high));
        });
        function.write(20, &[0xf]);
        assert_eq!(function.read(20, 1), [0x4f], "register {register}: {high:#x}_{low:08x}");
        assert_eq!(function.wiring.raised(0), 1, "the configuration vector says so");
        assert_eq!(function.wiring.doorbells(), vec![0_u64; 0]);
    }
}

#[test]
fn only_a_reset_takes_status_bits_back() {
    let function = Function::new();
    function.decode(true);
    function.bring_up();
    assert!(matches!(function.told(), Told::Started(_)));
    for status in [0xb, 0xf, 7, 0xf, 1, 0xf, 0x8f] {
        function.write(20, &[status]);
    }
    assert!(function.is_silent(), "started once");
    assert_eq!(function.read(20, 1), [0x8f]);
    function.write(20, &[0]);
    assert_eq!(function.told(), Told::Stopped);
}

#[test]
fn nothing_starts_before_features_are_agreed_on() {
    for order in [&[4][..], &[1, 3, 7], &[4, 8], &[0xf], &[8, 0xc]] {
        let function = Function::new();
        function.decode(true);
        for &status in order {
            function.write(20, &[status]);
        }
        assert!(function.is_silent(), "{order:x?}: VERSION_1 was never accepted");
        assert_eq!(function.state(), "inactive");
    }
}

#[test]
fn a_running_devices_queues_cannot_be_changed() {
    let mut function = Function::new();
    function.decode(true);
    function.bring_up();
    function.told();
    function.write(22, &[0, 0]);
    for (register, value) in [(24, 4_u16), (26, 2), (28, 0), (32, 0), (40, 0)] {
        let before = function.read(register, 2);
        function.write(register, &value.to_le_bytes());
        assert_eq!(function.read(register, 2), before, "register {register}");
    }
    function.write(32, &[0; 4]);
    function.drivers[0].offer(&[writable(DATA, 4)]);
    function.ring(0);
    assert_eq!((function.told(), function.drivers[0].used().len()), (Told::Served(0), 1));
}

#[test]
fn a_queue_enabled_too_late_stays_out() {
    let mut function = Function::new();
    function.decode(true);
    function.negotiate();
    function.write(20, &[0xf]);
    assert!(matches!(function.told(), Told::Started(_)), "no queue at all is a driver's choice");
    function.write(22, &[1, 0]);
    function.write(28, &[1, 0]);
    assert_eq!(function.read(28, 2), [0, 0]);
    function.drivers[1].offer(&[writable(DATA, 4)]);
    function.ring(1);
    function.write(20, &[0]);
    assert_eq!(function.told(), Told::Stopped);
    assert_eq!(function.drivers[1].used(), []);
}

#[test]
fn accesses_of_the_wrong_width_or_across_registers_change_nothing() {
    let function = Function::new();
    function.decode(true);
    function.open_vectors();
    let registers = function.read(0, 60);
    for (offset, len) in [(32, 8), (20, 2), (20, 4), (22, 1), (23, 2), (33, 4), (30, 4), (58, 8), (59, 1)] {
        function.write(offset, &[0xff; 8][..len]);
        assert_eq!(function.read(0, 60), registers, "{len} bytes at {offset}");
    }
    // Across two pages, into the pending bits, past the end of the BAR.
    for (offset, len) in
        [(0xfff, 2), (0xffc, 8), (0x1ffe, 4), (0x1800, 4), (0x2ffc, 8), (0x3ffe, 4), (0x3fff, 1)]
    {
        function.write(offset, &[0xff; 8][..len]);
        function.read(offset, len);
    }
    assert_eq!(function.read(0, 60), registers);
    assert_eq!(function.read(0x1800, 8), [0; 8]);
    assert_eq!(function.read(0x3ffe, 4), [0xff; 4], "partly beyond the BAR is nobody's");
    assert!(function.is_silent());
}

#[test]
fn configuration_writes_of_every_size_and_place_change_only_what_may_change() {
    let function = Function::new();
    let fixed: Vec<u64> =
        function.capabilities().iter().flat_map(|&at| [at, at + 1]).chain([0, 1, 2, 3, 8, 0x34]).collect();
    let before: Vec<_> = fixed.iter().map(|&at| function.config(at, 1)).collect();
    for len in [1, 2, 4, 8] {
        for offset in (0..0x104).chain([0xffd, 0xfff]) {
            function.config_write(offset, &[0xff; 8][..len]);
        }
    }
    let after: Vec<_> = fixed.iter().map(|&at| function.config(at, 1)).collect();
    assert_eq!(before, after);
    assert_eq!(function.config(0x10, 4), [0, 0xc0, 0xff, 0xff], "the BAR is 16 KiB");
    assert_eq!(function.wiring.readable(), vec![], "a BAR being sized answers nowhere");
    for (offset, byte) in (0x10..).zip((MOVED as u32).to_le_bytes()) {
        function.config_write(offset, &[byte]);
    }
    assert_eq!(function.bar(), MOVED, "byte by byte");
    assert_eq!(function.read(18, 2), [2, 0]);
}

#[test]
fn two_functions_at_one_address_do_no_harm() {
    let function = Function::new();
    function.decode(true);
    function.bring_up();
    assert!(function.wiring.attach_for_another(MOVED + 0x3000));
    function.move_bar(MOVED);
    function.write(20, &[0]);
    function.move_bar(BAR);
    assert_eq!(function.wiring.doorbells(), [MOVED + 0x3000], "the other's doorbell is still its own");
}

#[derive(Debug, Clone)]
enum Abuse {
    Config(u64, Vec<u8>),
    Bar(u64, Vec<u8>),
    Read(u64, usize),
}

fn abuse() -> impl Strategy<Value = Abuse> {
    let data =
        prop_oneof![1 => Just(1_usize), 1 => Just(2), 3 => Just(4), 1 => Just(8)].prop_flat_map(|len| {
            prop_oneof![
                prop::collection::vec(any::<u8>(), len),
                (0..32_u8).prop_map(move |low| {
                    let mut data = vec![0; len];
                    data[0] = low;
                    data
                })
            ]
        });
    let register =
        prop_oneof![8 => 0..64_u64, 2 => 0x1000..0x1040_u64, 1 => 0x2ff8..0x3010_u64, 1 => 0..0x4000_u64];
    prop_oneof![
        2 => (prop_oneof![4 => 0..0x100_u64, 1 => 0..0x1000_u64], data.clone()).prop_map(|(at, data)| Abuse::Config(at, data)),
        6 => (register.clone(), data).prop_map(|(at, data)| Abuse::Bar(at, data)),
        1 => (register, 1..=8_usize).prop_map(|(at, len)| Abuse::Read(at, len)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_order_of_accesses_breaks_the_function_for_good(steps in prop::collection::vec(abuse(), 0..200)) {
        let function = Function::new();
        function.decode(true);
        function.set_up();
        for step in steps {
            match step {
                Abuse::Config(at, data) => function.config_write(at, &data),
                Abuse::Bar(at, data) => function.write(at, &data),
                Abuse::Read(at, len) => drop(function.read(at, len)),
            }
        }
        function.decode(false);
        function.move_bar(BAR);
        function.decode(true);
        function.write(20, &[0]);
        prop_assert_eq!(function.read(20, 1), [0]);
        function.bring_up();
        prop_assert_eq!(function.state(), "active");
        prop_assert_eq!(function.wiring.refused(), 0);
    }
}
