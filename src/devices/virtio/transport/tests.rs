//! A driver's view of a function: configuration space, the BAR, and what it sets in motion.

mod broken;
mod fixture;

use std::sync::Arc;
use std::sync::mpsc::channel;

use vm_memory::{GuestAddress, GuestMemoryMmap};

use self::fixture::{BAR, Function, MOVED, SLOT, Told};
use crate::backend::disk::{Access, RawDisk};
use crate::devices::pci::root::PciFunction;
use crate::devices::registers::PAGE;
use crate::devices::virtio::balloon::{Balloon, BalloonOptions};
use crate::devices::virtio::block::{Block, BlockOptions};
use crate::devices::virtio::testing::{DATA, readable, writable};
use crate::devices::virtio::{F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1};

const PAGE_BYTES: u64 = PAGE as u64;

#[test]
fn the_capability_list_is_what_a_driver_looks_for() {
    let function = Function::new();
    assert_eq!(function.config_u32(0), 0x107f_1af4, "vendor, and 0x1040 + the device type");
    assert_eq!(function.config(8, 1), [1], "a modern device's revision");
    let capabilities = function.capabilities();
    let ids: Vec<u8> = capabilities.iter().map(|&at| function.config(at, 1)[0]).collect();
    assert_eq!(ids, [9, 9, 9, 9, 9, 0x11]);
    let windows: Vec<_> = [1, 2, 3, 4].map(|kind| function.virtio_capability(kind)).to_vec();
    for window in &windows {
        assert_eq!(window.bar, 0);
        assert!(window.len > 0 && window.offset + window.len <= 4 * PAGE_BYTES as u32, "{window:x?}");
        let apart = |other: &fixture::Window| {
            other.offset + other.len <= window.offset || window.offset + window.len <= other.offset
        };
        assert_eq!(windows.iter().filter(|&other| !apart(other)).count(), 1, "overlap: {windows:x?}");
    }
    let [common, notify, isr, device] = windows[..] else { unreachable!() };
    assert!(common.len >= 56 && common.offset.is_multiple_of(4));
    assert!(notify.offset.is_multiple_of(2) && notify.len >= 2 * 4, "two doorbells");
    assert!(isr.len >= 1);
    assert!(device.offset.is_multiple_of(4));
    assert_eq!(function.config_u32(notify.at + 16), 4, "notify_off_multiplier");
    let msix = capabilities[5];
    assert_eq!(function.config_u32(msix) >> 16, 2, "three vectors, none enabled");
    let (table, pending) = (function.config_u32(msix + 4), function.config_u32(msix + 8));
    assert!(table + 3 * 16 <= pending && u64::from(pending) < 4 * PAGE_BYTES);
}

#[test]
fn features_and_the_device_configuration_are_read_through_the_bar() {
    let function = Function::new();
    function.decode(true);
    let mut features = 0;
    for half in [0_u32, 1] {
        function.write(0, &half.to_le_bytes());
        features |= u64::from(function.read_u32(4)) << (32 * half);
    }
    assert_eq!(features, F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC | fixture::FEATURE, "no RING_RESET");
    assert_eq!(function.read(18, 2), [2, 0], "two queues");
    let config = function.virtio_capability(4).offset;
    assert_eq!(function.read(config.into(), 8), [1, 2, 3, 4, 0, 0, 0, 0]);
    function.write(config.into(), &[0xff; 4]);
    assert_eq!(function.read(config.into(), 4), [1, 2, 3, 4], "the driver cannot change it");
    assert_eq!(function.read(21, 1), [0], "nor does it ever change by itself");
}

#[test]
fn a_driver_brings_a_queue_up_and_is_interrupted() {
    let mut function = Function::new();
    function.decode(true);
    function.bring_up();
    assert_eq!(function.told(), Told::Started(F_VERSION_1 | F_EVENT_IDX | fixture::FEATURE));
    assert_eq!(function.read(20, 1), [0xf]);
    function.drivers[1].offer(&[readable(DATA, 4), writable(DATA, 4)]);
    function.ring(1);
    assert_eq!(function.told(), Told::Served(1));
    assert_eq!(function.drivers[1].used(), [(0, 4)]);
    assert_eq!([0, 1, 2].map(|vector| function.wiring.raised(vector)), [0, 0, 1]);
    assert_eq!(function.state(), "active");
}

/// A running function whose device has just used a buffer, so its ISR status is set.
fn served_once() -> Function {
    let mut function = Function::new();
    function.decode(true);
    function.bring_up();
    function.told();
    function.drivers[0].offer(&[writable(DATA, 4)]);
    function.ring(0);
    function.told();
    function
}

#[test]
fn the_isr_status_is_cleared_by_reading_it() {
    let function = served_once();
    let isr = u64::from(function.virtio_capability(3).offset);
    assert_eq!(function.read(isr, 1), [1]);
    assert_eq!(function.read(isr, 1), [0]);
}

#[test]
fn doorbells_and_readable_pages_follow_the_bar() {
    let function = Function::new();
    assert_eq!((function.wiring.doorbells(), function.wiring.readable()), (vec![], vec![]));
    function.decode(true);
    assert_eq!(function.wiring.readable(), [(SLOT, BAR)]);
    assert_eq!(function.wiring.doorbells(), vec![0_u64; 0], "nobody listens yet");
    function.bring_up();
    let doorbells = |bar: u64| vec![bar + 3 * PAGE_BYTES, bar + 3 * PAGE_BYTES + 4];
    assert_eq!(function.wiring.doorbells(), doorbells(BAR));
    function.decode(false);
    assert_eq!((function.wiring.doorbells(), function.wiring.readable()), (vec![], vec![]));
    function.move_bar(MOVED);
    function.decode(true);
    assert_eq!(function.wiring.doorbells(), doorbells(MOVED));
    assert_eq!(function.wiring.readable(), [(SLOT, MOVED)]);
    function.move_bar(BAR);
    assert_eq!(function.wiring.doorbells(), doorbells(BAR), "moved while it decodes");
    function.write(20, &[0]);
    assert_eq!(function.wiring.doorbells(), vec![0_u64; 0], "a reset device has no doorbell");
    assert_eq!(function.wiring.readable(), [(SLOT, BAR)]);
    assert_eq!(function.wiring.refused(), 0);
}

#[test]
fn a_thousand_resets_cost_nothing() {
    let mut function = Function::new();
    function.decode(true);
    let open_descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = open_descriptors();
    for _ in 0..1000 {
        function.bring_up();
        assert!(matches!(function.told(), Told::Started(_)));
        function.drivers[0].offer(&[writable(DATA, 4)]);
        function.ring(0);
        assert_eq!(function.told(), Told::Served(0));
        function.write(20, &[0]);
        assert_eq!(function.told(), Told::Stopped);
        function.new_rings();
    }
    // Other tests open descriptors too, but not one per round.
    assert!(open_descriptors() < before + 500);
    assert_eq!((function.wiring.refused(), function.wiring.raised(1)), (0, 1000));
}

#[test]
fn a_masked_interrupt_waits_for_the_mask_and_dies_with_a_reset() {
    let mut function = Function::new();
    function.decode(true);
    function.bring_up();
    function.told();
    let mask = |function: &Function, on: u8| function.write(PAGE_BYTES + 16 + 12, &[on, 0, 0, 0]);
    for reset in [false, true] {
        mask(&function, 1);
        function.drivers[0].offer(&[writable(DATA, 4)]);
        function.ring(0);
        assert_eq!(function.told(), Told::Served(0));
        assert_eq!((function.wiring.raised(1), function.read(PAGE_BYTES + PAGE_BYTES / 2, 1)), (0, vec![2]));
        if reset {
            function.write(20, &[0]);
        }
        mask(&function, 0);
        assert_eq!(function.wiring.raised(1), u64::from(!reset));
        assert_eq!(function.read(PAGE_BYTES + PAGE_BYTES / 2, 1), [0]);
        function.drivers[0].set_used_event(1);
    }
}

#[test]
fn the_bar_is_reached_through_configuration_space() {
    let function = Function::new();
    let access = function.virtio_capability(5).at;
    let aim = |offset: u32, len: u32| {
        function.config_write(access + 4, &[0]);
        function.config_write(access + 8, &offset.to_le_bytes());
        function.config_write(access + 12, &len.to_le_bytes());
    };
    aim(18, 2);
    assert_eq!(function.config(access + 16, 2), [2, 0], "two queues, while the BAR decodes nothing");
    aim(20, 1);
    function.config_write(access + 16, &[1]);
    function.config_write(access + 16, &[3]);
    assert_eq!(function.config(access + 16, 1), [3], "the device status");
    aim(8, 4);
    function.config_write(access + 16, &1_u32.to_le_bytes());
    aim(12, 4);
    function.config_write(access + 16, &1_u32.to_le_bytes());
    assert_eq!(function.config(access + 16, 4), [1, 0, 0, 0], "VERSION_1");

    let before = function.config(access + 16, 4);
    for (offset, len) in [(0, 0), (0, 3), (1, 2), (2, 4), (0, 8), (0, u32::MAX)] {
        aim(offset, len);
        function.config_write(access + 16, &[0; 4]);
    }
    aim(u32::MAX - 3, 4);
    function.config_write(access + 16, &[0; 4]);
    assert_eq!(function.config(access + 16, 4), [0xff; 4], "beyond the BAR");
    aim(12, 4);
    assert_eq!(function.config(access + 16, 4), before, "nothing of that reached the device");
}

#[test]
fn aiming_the_access_window_at_the_isr_status_does_not_clear_it() {
    let function = served_once();
    let (access, isr) = (function.virtio_capability(5).at, function.virtio_capability(3).offset);
    function.config_write(access + 12, &1_u32.to_le_bytes());
    function.config_write(access + 8, &isr.to_le_bytes());
    function.config_write(access + 12, &1_u32.to_le_bytes());
    assert_eq!(function.config(access + 16, 1), [1]);
    assert_eq!(function.read(isr.into(), 1), [1], "it is for the driver to read");
}

#[test]
fn a_changed_configuration_is_a_new_generation_and_an_interrupt() {
    let function = Function::new();
    function.decode(true);
    function.bring_up();
    let config = u64::from(function.virtio_capability(4).offset);
    assert_eq!((function.read(21, 1), function.read(config, 4)), (vec![0], vec![1, 2, 3, 4]));
    function.pci.announce_config_change();
    assert_ne!(function.read(21, 1), [0]);
    assert_eq!(function.wiring.raised(0), 1);
    function.write(config + 2, &[9]);
    assert_eq!(function.told_of_config(), (2, vec![9]));
    assert_eq!(function.read(config, 4), [1, 2, 3, 4], "what the device makes of it");
    assert_eq!(function.wiring.raised(0), 0, "the driver knows what it wrote");
}

#[test]
fn a_balloon_s_target_reaches_the_driver_and_its_answer_ends_with_a_reset() {
    let options = BalloonOptions { deflate_on_oom: true, free_page_reporting: true };
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 64 << 20)]).unwrap();
    let balloon = Arc::new(Balloon::new(options, &memory).unwrap());
    let function = Function::of(Arc::clone(&balloon) as _, channel().1);
    function.decode(true);
    balloon.set_target(60 << 20).unwrap();
    function.bring_up();
    let config = u64::from(function.virtio_capability(4).offset);
    assert_eq!(function.read_u32(config), 4 << 8, "a target that was set before there was a driver");
    assert_eq!(function.wiring.raised(0), 1);
    balloon.set_target(32 << 20).unwrap();
    assert_eq!((function.read_u32(config), function.wiring.raised(0)), (32 << 8, 1));
    function.write(config + 4, &7_u32.to_le_bytes());
    assert_eq!((function.read_u32(config + 4), balloon.facts().balloon_bytes), (7, 7 << 12));
    function.write(20, &[0]);
    assert_eq!(
        (function.read_u32(config + 4), balloon.facts().balloon_bytes),
        (0, 0),
        "of a driver that is gone"
    );
    assert_eq!(function.read_u32(config), 32 << 8, "the target is the host's");
}

#[test]
fn a_driver_is_told_that_its_disk_has_another_size() {
    let image = tempfile::NamedTempFile::new().unwrap();
    let resize = |block: &Block, mib: u64| {
        image.as_file().set_len(mib << 20).unwrap();
        assert_eq!(block.resize(None).unwrap(), mib << 20);
    };
    image.as_file().set_len(1 << 20).unwrap();
    // Read-only, because that is the feature bit this driver accepts.
    let disk = Arc::new(RawDisk::open(image.path(), Access::READ).unwrap());
    let block = Arc::new(Block::new(disk, BlockOptions { queues: 2, ..BlockOptions::default() }).unwrap());
    let function = Function::of(Arc::clone(&block) as _, channel().1);
    function.decode(true);
    function.write(20, &[0]);
    let capacity = || function.read_u32(function.virtio_capability(4).offset.into());
    assert_eq!(capacity(), 1 << 11, "as the driver finds it");
    resize(&block, 2);
    function.bring_up();
    assert_eq!(
        (capacity(), function.wiring.raised(0)),
        (2 << 11, 1),
        "it was resized before there was a driver"
    );
    let generation = function.read(21, 1);
    resize(&block, 5);
    assert_eq!((capacity(), function.wiring.raised(0)), (5 << 11, 1));
    assert_ne!(function.read(21, 1), generation);
    resize(&block, 5);
    assert_eq!(function.wiring.raised(0), 0, "nothing has changed");
    function.write(20, &[0]);
    function.wiring.raised(0);
    resize(&block, 1);
    assert_eq!(capacity(), 1 << 11, "for the next driver");
}

#[test]
fn doorbells_are_counted() {
    let mut function = Function::new();
    function.decode(true);
    function.bring_up();
    function.told();
    for expected in 1..=3 {
        function.drivers[0].offer(&[writable(DATA, 4)]);
        function.ring(0);
        assert_eq!(function.told(), Told::Served(0));
        assert_eq!(function.pci.facts().counters["notifications"], expected);
    }
}
