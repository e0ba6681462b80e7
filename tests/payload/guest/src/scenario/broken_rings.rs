//! Queues that are where no queue can be, and a set-up in the wrong order.

use crate::io::{peek, poke};
use crate::println;
use crate::virtio::disk::{Disk, KIND, READ, SECTOR};
use crate::virtio::{Device, F_VERSION_1, Rings, common};

const SIZE: u16 = 16;
const FEATURES: u64 = F_VERSION_1;

/// Runs every case.
pub(super) fn run() {
    let Some(device) = Device::find(KIND, 0) else { return println!("there is no disk") };
    for (name, bad) in BAD_ADDRESSES {
        for part in 0..3 {
            let mut rings = Rings::new(SIZE);
            *[&mut rings.desc, &mut rings.driver, &mut rings.device][part] = bad;
            let outcome = start_with(device, rings);
            println!("place {name} {part} {outcome}");
            still_works(device, name);
        }
    }
    for (name, abuse) in ORDERS {
        abuse(device);
        println!("order {name}");
        still_works(device, name);
    }
}

fn still_works(device: Device, name: &str) {
    println!("after {name} {:?}", Disk::start(device).request(READ, 0, SECTOR));
}

/// Beyond RAM, in holes, in registers, at the end of everything. The machine has 64 MiB.
const BAD_ADDRESSES: [(&str, u64); 10] = [
    ("end-of-ram", (64 << 20) - 16),
    ("after-ram", 64 << 20),
    ("bar", 0xc000_0000),
    ("hole", 0xd000_0000),
    ("ecam", 0xe000_0000),
    ("lapic", 0xfee0_0000),
    ("high", 1 << 40),
    ("top", u64::MAX - 15),
    ("unaligned", (16 << 20) + 1),
    ("wraps", u64::MAX - 4095),
];

fn start_with(device: Device, rings: Rings) -> &'static str {
    let negotiated = device.negotiate(FEATURES);
    device.place_queue(0, SIZE, rings);
    device.enable_queue();
    device.start();
    poke(device.doorbell(0), 0_u16);
    match (negotiated, device.needs_reset()) {
        (true, true) => "needs-reset",
        (true, false) => "accepted",
        (false, _) => "refused",
    }
}

type Order = (&'static str, fn(Device));

const ORDERS: [Order; 8] = [
    ("driver-ok-without-queues", |device| {
        let _ = device.negotiate(FEATURES);
        device.start();
        (0..100).for_each(|_| poke(device.doorbell(0), 0_u16));
    }),
    ("driver-ok-without-anything", |device| {
        device.reset();
        device.set_status(common_status());
        (0..100).for_each(|_| poke(device.doorbell(0), 0_u16));
    }),
    ("driver-ok-again-and-again", |device| {
        let _ = Disk::start_with(device, FEATURES);
        for _ in 0..100 {
            device.set_status(0x0b);
            device.set_status(0x0f);
        }
    }),
    ("features-after-driver-ok", |device| {
        let _ = Disk::start_with(device, FEATURES);
        poke(device.common(common::DRIVER_FEATURE_SELECT), 0_u32);
        poke(device.common(common::DRIVER_FEATURE), u32::MAX);
        println!("features {:#x}", peek::<u32>(device.common(common::DRIVER_FEATURE)));
    }),
    ("queue-changes-while-enabled", |device| {
        let mut disk = Disk::start_with(device, FEATURES);
        device.place_queue(0, 2, Rings { desc: 0xd000_0000, driver: 1, device: u64::MAX });
        device.enable_queue();
        println!("size {}", peek::<u16>(device.common(common::QUEUE_SIZE)));
        println!("changed {:?}", disk.request(READ, 0, SECTOR));
    }),
    ("queue-enable-is-not-undone", |device| {
        let mut disk = Disk::start_with(device, FEATURES);
        poke(device.common(common::QUEUE_SELECT), 0_u16);
        poke(device.common(common::QUEUE_ENABLE), 0_u16);
        println!("enabled {}", peek::<u16>(device.common(common::QUEUE_ENABLE)));
        println!("changed {:?}", disk.request(READ, 0, SECTOR));
    }),
    ("overlapping-rings", |device| {
        let rings = Rings::new(SIZE);
        let one = Rings { desc: rings.desc, driver: rings.desc, device: rings.desc };
        let _ = start_with(device, one);
        (0..20_u16).for_each(|index| {
            poke(rings.desc + 2, index);
            poke(device.doorbell(0), 0_u16);
        });
    }),
    ("status-noise", |device| {
        for status in (0..=255_u8).rev() {
            device.set_status(status);
        }
    }),
];

fn common_status() -> u8 {
    crate::virtio::DRIVER_OK | crate::virtio::FEATURES_OK | 3
}
