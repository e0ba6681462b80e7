//! Disks that are used as intended.

use super::DEVICE_VECTOR;
use crate::io::{peek, poke};
use crate::virtio::disk::{Disk, F_FLUSH, FLUSH, GET_ID, KIND, READ, SECTOR, WRITE_OUT};
use crate::virtio::queue::WRITE;
use crate::virtio::{Device, F_EVENT_IDX, F_INDIRECT, F_VERSION_1};
use crate::{cmdline, print, println};

/// Every kind of request, good and bad, to the first disk.
pub(super) fn every_request() {
    let Some(mut disk) = Disk::open(0, Some(DEVICE_VECTOR)) else { return println!("there is no disk") };
    let last = disk.capacity();
    println!("capacity {last}");
    println!("offered {:#x}", disk.device.offered());
    println!("read {:?} {:#x}", disk.request(READ, 1, SECTOR), peek::<u64>(disk.data));
    (0..u64::from(SECTOR)).for_each(|at| poke(disk.data + at, at as u8));
    println!("write {:?}", disk.request(WRITE_OUT, 2, SECTOR));
    println!("flush {:?}", disk.request(FLUSH, 0, 0));
    poke(disk.data, [0_u8; 20]);
    println!("id {:?} {}", disk.request(GET_ID, 0, 20), text(disk.data));
    println!("large {:?}", disk.request(READ, 0, 8 * SECTOR));
    for (name, kind, sector, len) in [
        ("beyond", READ, last, SECTOR),
        ("across", READ, last - 1, 2 * SECTOR),
        ("far", READ, u64::MAX, SECTOR),
        ("wraps", WRITE_OUT, u64::MAX / 512, SECTOR),
        ("partial", READ, 0, 100),
        ("empty", READ, 0, 0),
        ("unknown", 77, 0, SECTOR),
    ] {
        println!("{name} {:?}", disk.request(kind, sector, len));
    }
    println!("last {:?}", disk.request(READ, last - 1, SECTOR));
}

fn text(address: u64) -> &'static str {
    let len = (0..20).take_while(|&at| peek::<u8>(address + at) != 0).count();
    // SAFETY: twenty bytes of the data buffer, which no request is using.
    let bytes = unsafe { core::slice::from_raw_parts(address as *const u8, len) };
    core::str::from_utf8(bytes).unwrap_or("?")
}

/// The same reads with every combination of ring features, by interrupt and by polling.
pub(super) fn feature_sets() {
    let Some(mut device) = Device::find(KIND, 0) else { return println!("there is no disk") };
    for vector in [None, Some(DEVICE_VECTOR)] {
        if let Some(vector) = vector {
            device.use_interrupts(vector);
        }
        for features in [0, F_EVENT_IDX, F_INDIRECT, F_EVENT_IDX | F_INDIRECT] {
            let mut disk = Disk::start_with(device, F_VERSION_1 | features);
            let good = (0..40).filter(|&sector| disk.request(READ, sector, SECTOR) == Ok((0, 513))).count();
            println!("features {features:#x} {} {good}", vector.is_some());
        }
    }
}

/// `count` reads, one after the other, each waited for with `hlt`.
pub(super) fn reads() {
    let Some(mut disk) = Disk::open(0, Some(DEVICE_VECTOR)) else { return println!("there is no disk") };
    let count = cmdline::number("count", 1);
    let good = (0..count).filter(|sector| disk.request(READ, sector % 64, SECTOR) == Ok((0, 513))).count();
    println!("all {}", good as u64 == count);
}

/// Resets and starts the disk `count` times, with a read each time.
pub(super) fn resets() {
    let Some(mut disk) = Disk::open(0, Some(DEVICE_VECTOR)) else { return println!("there is no disk") };
    let count = cmdline::number("count", 1);
    let mut good = 0;
    for round in 0..count {
        disk = Disk::start(disk.device);
        good += u64::from(disk.request(READ, round % 64, SECTOR) == Ok((0, 513)));
    }
    println!("good {good}");
}

/// Resets the disk `count` times right after it was given a ring full of reads.
pub(super) fn resets_in_flight() {
    let Some(mut disk) = Disk::open(0, Some(DEVICE_VECTOR)) else { return println!("there is no disk") };
    for _ in 0..cmdline::number("count", 1) {
        disk = Disk::start_with(disk.device, F_VERSION_1);
        disk.set_header(READ, 0);
        disk.queue
            .chain(0, &[(disk.header, 16, 0), (disk.data, 16 * SECTOR, WRITE), (disk.status, 1, WRITE)]);
        (0..disk.queue.size).for_each(|_| disk.queue.offer(0));
        disk.queue.ring();
        disk.device.reset();
    }
    println!("after {:?}", Disk::start(disk.device).request(READ, 0, SECTOR));
}

/// Data of one request of [`fill`], in bytes and in sectors.
const CHUNK_BYTES: u32 = 64 << 10;
const CHUNK_SECTORS: u64 = (CHUNK_BYTES / SECTOR) as u64;

/// Writes the whole disk, each chunk with its number. Whenever a write fails, says so and waits for a line of input.
pub(super) fn fill() {
    let Some(mut disk) = Disk::open(0, Some(DEVICE_VECTOR)) else { return println!("there is no disk") };
    let chunks = disk.capacity() / CHUNK_SECTORS;
    let mut chunk = 0;
    while chunk < chunks {
        poke(disk.data, chunk + 1);
        match disk.request(WRITE_OUT, chunk * CHUNK_SECTORS, CHUNK_BYTES) {
            Ok((0, _)) => chunk += 1,
            other => {
                println!("failed {other:?}");
                println!("full");
                while print::read_byte() != Some(b'\n') {}
            }
        }
    }
    let mut good = 0;
    for chunk in 0..chunks {
        poke(disk.data, 0_u64);
        let read = disk.request(READ, chunk * CHUNK_SECTORS, CHUNK_BYTES);
        good += u64::from(read.is_ok() && peek::<u64>(disk.data) == chunk + 1);
    }
    println!("good {good} of {chunks}");
}

/// Writes 4 KiB with the step's number here and there, and says after every eighth that all of them were flushed.
pub(super) fn churn() {
    let Some(device) = Device::find(KIND, 0) else { return println!("there is no disk") };
    let mut disk = Disk::start_with(device, F_VERSION_1 | F_EVENT_IDX | F_INDIRECT | F_FLUSH);
    let places = disk.capacity() / CHUNK_SECTORS;
    for step in 0..places {
        // An odd factor and a power of two: every place comes once.
        let place = step * 40_503 % places;
        poke(disk.data, step + 1);
        let written = disk.request(WRITE_OUT, place * CHUNK_SECTORS, 8 * SECTOR);
        if step % 8 == 7 {
            let flushed = disk.request(FLUSH, 0, 0);
            println!("flushed {step} {}", written == Ok((0, 1)) && flushed == Ok((0, 1)));
        }
    }
}
