//! Descriptor chains no honest driver sends. After each one the disk must either have answered or ask for a reset, and
//! must work again once it was reset.

use crate::io::poke;
use crate::virtio::disk::{Disk, KIND, READ, SECTOR, WRITE_OUT};
use crate::virtio::queue::{Descriptor, INDIRECT, NEXT, WRITE, describe};
use crate::virtio::{Device, F_EVENT_IDX, F_INDIRECT, F_VERSION_1};
use crate::{heap, println};

type Case = (&'static str, fn(&mut Disk));

const HOLE: u64 = 0xd000_0000;
const ECAM: u64 = 0xe000_0000;

/// Runs every case.
pub(super) fn run() {
    let Some(device) = Device::find(KIND, 0) else { return println!("there is no disk") };
    for &(name, abuse) in RINGS.iter().chain(CHAINS).chain(BUFFERS).chain(INDIRECT_TABLES) {
        let mut disk = Disk::start_with(device, F_VERSION_1 | F_EVENT_IDX | F_INDIRECT);
        disk.set_header(READ, 0);
        abuse(&mut disk);
        disk.queue.ring();
        match disk.device.wait(&mut disk.queue) {
            Ok((head, written)) => println!("case {name} used {head} {written}"),
            Err(_) => println!("case {name} needs-reset"),
        }
        let mut disk = Disk::start(device);
        println!("after {name} {:?}", disk.request(READ, 0, SECTOR));
    }
}

/// The available ring itself is wrong.
const RINGS: &[Case] = &[
    ("index-jumps", |disk| jump(disk, 17)),
    ("index-jumps-far", |disk| jump(disk, 0x8000)),
    ("index-goes-back", |disk| jump(disk, 0xffff)),
    ("head-is-no-descriptor", |disk| disk.queue.offer(16)),
    ("head-is-far-away", |disk| disk.queue.offer(0xffff)),
    ("same-head-sixteen-times", |disk| {
        let parts = [(disk.header, 16, 0), (disk.data, SECTOR, WRITE), (disk.status, 1, WRITE)];
        disk.queue.chain(0, &parts);
        (0..16).for_each(|_| disk.queue.offer(0));
    }),
];

fn jump(disk: &mut Disk, to: u16) {
    poke(disk.queue.rings.driver + 2, to);
}

/// The links are wrong.
const CHAINS: &[Case] = &[
    ("points-to-itself", |disk| link(disk, &[(disk.header, 16, NEXT, 0)])),
    ("runs-in-a-circle", |disk| {
        link(
            disk,
            &[
                (disk.header, 16, NEXT, 1),
                (disk.data, SECTOR, NEXT | WRITE, 2),
                (disk.data, SECTOR, NEXT | WRITE, 1),
            ],
        );
    }),
    ("next-is-no-descriptor", |disk| link(disk, &[(disk.header, 16, NEXT, 16)])),
    ("next-is-far-away", |disk| link(disk, &[(disk.header, 16, NEXT, 0xffff)])),
    ("unknown-flags", |disk| link(disk, &[(disk.header, 16, 0xfff8, 0)])),
    ("no-status", |disk| link(disk, &[(disk.header, 16, 0, 0)])),
    ("only-status", |disk| link(disk, &[(disk.status, 1, WRITE, 0)])),
    ("status-before-header", |disk| {
        link(disk, &[(disk.status, 1, WRITE | NEXT, 1), (disk.header, 16, 0, 0)]);
    }),
];

fn link(disk: &mut Disk, parts: &[(u64, u32, u16, u16)]) {
    for (index, &(address, len, flags, next)) in (0..).zip(parts) {
        disk.queue.describe(index, Descriptor { address, len, flags, next });
    }
    disk.queue.offer(0);
}

/// The buffers are wrong.
const BUFFERS: &[Case] = &[
    ("short-header", |disk| send(disk, [(disk.header, 15), (disk.data, SECTOR), (disk.status, 1)])),
    ("empty-header", |disk| send(disk, [(disk.header, 0), (disk.data, SECTOR), (disk.status, 1)])),
    ("empty-data", |disk| send(disk, [(disk.header, 16), (disk.data, 0), (disk.status, 1)])),
    ("empty-status", |disk| send(disk, [(disk.header, 16), (disk.data, SECTOR), (disk.status, 0)])),
    ("all-empty", |disk| send(disk, [(disk.header, 0), (disk.data, 0), (disk.status, 0)])),
    ("empty-data-nowhere", |disk| send(disk, [(disk.header, 16), (u64::MAX, 0), (disk.status, 1)])),
    ("header-in-the-hole", |disk| send(disk, [(HOLE, 16), (disk.data, SECTOR), (disk.status, 1)])),
    ("data-in-the-hole", |disk| send(disk, [(disk.header, 16), (HOLE, SECTOR), (disk.status, 1)])),
    ("data-in-ecam", |disk| send(disk, [(disk.header, 16), (ECAM, SECTOR), (disk.status, 1)])),
    ("status-in-the-hole", |disk| send(disk, [(disk.header, 16), (disk.data, SECTOR), (HOLE, 1)])),
    ("data-beyond-ram", |disk| send(disk, [(disk.header, 16), (1 << 40, SECTOR), (disk.status, 1)])),
    ("data-across-the-end-of-ram", |disk| {
        send(disk, [(disk.header, 16), ((64 << 20) - 256, SECTOR), (disk.status, 1)]);
    }),
    ("data-wraps-around", |disk| send(disk, [(disk.header, 16), (u64::MAX - 255, SECTOR), (disk.status, 1)])),
    ("status-wraps-around", |disk| send(disk, [(disk.header, 16), (disk.data, SECTOR), (u64::MAX, 2)])),
    ("data-of-4-gib", |disk| send(disk, [(disk.header, 16), (disk.data, u32::MAX), (disk.status, 1)])),
    ("status-of-4-gib", |disk| send(disk, [(disk.header, 16), (disk.data, SECTOR), (disk.status, u32::MAX)])),
    ("header-of-4-gib", |disk| send(disk, [(disk.header, u32::MAX), (disk.data, SECTOR), (disk.status, 1)])),
    ("data-is-the-ring-itself", |disk| {
        send(disk, [(disk.header, 16), (disk.queue.rings.desc & !0xfff, SECTOR), (disk.status, 1)]);
    }),
    ("write-from-the-hole", |disk| {
        disk.set_header(WRITE_OUT, 3);
        let parts = [(disk.header, 16, 0), (HOLE, SECTOR, 0), (disk.status, 1, WRITE)];
        disk.queue.chain(0, &parts);
        disk.queue.offer(0);
    }),
    ("fifteen-times-all-of-ram", |disk| {
        for index in 0..15 {
            disk.queue
                .describe(index, Descriptor { address: 0, len: 64 << 20, flags: NEXT, next: index + 1 });
        }
        disk.queue.describe(15, Descriptor { address: disk.status, len: 1, flags: WRITE, next: 0 });
        disk.queue.offer(0);
    }),
];

fn send(disk: &mut Disk, [header, data, status]: [(u64, u32); 3]) {
    let parts = [(header.0, header.1, 0), (data.0, data.1, WRITE), (status.0, status.1, WRITE)];
    disk.queue.chain(0, &parts);
    disk.queue.offer(0);
}

/// Indirect tables are wrong.
const INDIRECT_TABLES: &[Case] = &[
    ("table-of-odd-length", |disk| table(disk, 0, 47)),
    ("table-of-length-0", |disk| table(disk, 0, 0)),
    ("table-of-4-gib", |disk| table(disk, 0, 0xffff_fff0)),
    ("table-of-65535", |disk| table(disk, 0, 65_535 * 16)),
    ("table-of-65536", |disk| table(disk, 0, 65_536 * 16)),
    ("table-in-the-hole", |disk| table(disk, HOLE, 48)),
    ("table-beyond-ram", |disk| table(disk, 1 << 52, 48)),
    ("table-wraps-around", |disk| table(disk, u64::MAX - 15, 48)),
    ("table-unaligned", |disk| table(disk, heap::take(64, 16) + 1, 48)),
    ("table-inside-a-table", |disk| nested(disk, INDIRECT)),
    ("table-inside-a-table-and-next", |disk| nested(disk, INDIRECT | NEXT)),
    ("table-of-itself", |disk| {
        let desc = disk.queue.rings.desc;
        table(disk, desc, 48);
    }),
    ("table-and-next", |disk| {
        let address = good_table(disk);
        disk.queue.describe(0, Descriptor { address, len: 48, flags: INDIRECT | NEXT, next: 1 });
        disk.queue.describe(1, Descriptor { address: disk.data, len: SECTOR, flags: WRITE, next: 0 });
        disk.queue.offer(0);
    }),
    ("table-the-device-writes", |disk| {
        let address = good_table(disk);
        disk.queue.describe(0, Descriptor { address, len: 48, flags: INDIRECT | WRITE, next: 0 });
        disk.queue.offer(0);
    }),
    ("table-runs-in-a-circle", |disk| {
        let address = good_table(disk);
        describe(address, 2, Descriptor { address: disk.status, len: 1, flags: WRITE | NEXT, next: 0 });
        table(disk, address, 48);
    }),
];

/// A good request in a table of three; 0 means that nothing more is wrong with where the table is.
fn good_table(disk: &Disk) -> u64 {
    let table = heap::take(48, 16);
    describe(table, 0, Descriptor { address: disk.header, len: 16, flags: NEXT, next: 1 });
    describe(table, 1, Descriptor { address: disk.data, len: SECTOR, flags: NEXT | WRITE, next: 2 });
    describe(table, 2, Descriptor { address: disk.status, len: 1, flags: WRITE, next: 0 });
    table
}

fn table(disk: &mut Disk, address: u64, len: u32) {
    let address = if address == 0 { good_table(disk) } else { address };
    disk.queue.describe(0, Descriptor { address, len, flags: INDIRECT, next: 0 });
    disk.queue.offer(0);
}

fn nested(disk: &mut Disk, flags: u16) {
    let (outer, inner) = (heap::take(48, 16), good_table(disk));
    describe(outer, 0, Descriptor { address: disk.header, len: 16, flags: NEXT, next: 1 });
    describe(outer, 1, Descriptor { address: inner, len: 48, flags, next: 2 });
    describe(outer, 2, Descriptor { address: disk.status, len: 1, flags: WRITE, next: 0 });
    table(disk, outer, 48);
}
