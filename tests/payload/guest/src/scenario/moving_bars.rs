//! One CPU reads from a disk while another moves the disk's BAR, and switches it off, over and over.

use core::sync::atomic::{AtomicBool, Ordering};

use crate::io::peek;
use crate::pci::Function;
use crate::virtio::disk::{Disk, KIND, READ, SECTOR};
use crate::virtio::queue::WRITE;
use crate::virtio::{Device, rng};
use crate::{cmdline, println, smp};

static DONE: AtomicBool = AtomicBool::new(false);

/// RAM, another device's BAR, ECAM, IOAPIC, local APIC, the end of the address space, nowhere.
const PLACES: [u32; 8] =
    [0x0200_0000, 0xc000_4000, 0xe000_0000, 0xfec0_0000, 0xfee0_0000, 0xffff_8000, 0xd000_0000, 0];

/// Reads until the other CPU has moved enough.
pub(super) fn run() {
    let Some(mut disk) = Disk::open(0, None) else { return println!("there is no disk") };
    println!("begin");
    smp::start(2, Some(move_around));
    let mut reads = 0_u32;
    while !DONE.load(Ordering::SeqCst) || reads < 10 {
        read_stubbornly(&mut disk);
        reads += 1;
    }
    println!("end");
    println!("enough {}", reads >= 10);
    println!("after {:?}", Disk::start(disk.device).request(READ, 0, SECTOR));
    println!("rng {:?}", rng::Rng::open().map(|mut rng| rng.fill(16)));
}

/// A read whose doorbell may ring in the void: rings until the request is done, and looks at nothing but memory.
fn read_stubbornly(disk: &mut Disk) {
    disk.set_header(READ, 0);
    let parts = [(disk.header, 16, 0), (disk.data, SECTOR, WRITE), (disk.status, 1, WRITE)];
    disk.queue.chain(0, &parts);
    disk.queue.offer(0);
    while disk.queue.take().is_none() {
        disk.queue.ring();
        core::hint::spin_loop();
    }
    assert!(peek::<u8>(disk.status) == 0, "a read failed");
}

fn move_around(_cpu: u32) {
    let Some(function) = Device::find(KIND, 0).map(|disk| disk.function) else { return };
    let home = function.bar();
    for round in 0..cmdline::number("moves", 100) {
        let place = PLACES[(round % PLACES.len() as u64) as usize];
        visit(function, place, round % 2 == 0);
        function.set_bar(home);
        function.enable();
    }
    DONE.store(true, Ordering::SeqCst);
}

fn visit(function: Function, place: u32, decoding: bool) {
    if !decoding {
        function.set_command(0);
    }
    function.set_bar(place);
    function.enable();
}
