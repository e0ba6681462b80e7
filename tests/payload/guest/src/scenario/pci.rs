//! The bus as a guest's own scan sees it.

use crate::io::{peek, poke};
use crate::pci::{ECAM, Function};
use crate::virtio::common::NUM_QUEUES;
use crate::virtio::rng::Rng;
use crate::{cmdline, println};

/// Prints every function, its BAR, and whatever answers where no function should.
pub(super) fn scan() {
    for page in 0..256_u64 {
        let id: u32 = peek(ECAM + (page << 12));
        if id != u32::MAX {
            println!("function {}.{} {id:#010x}", page / 8, page % 8);
        }
    }
    for function in Function::scan().filter(|function| function.bar() != 0) {
        println!("bar {} {:#x} {:#x}", function.device, function.bar(), function.size_bar());
        println!("vectors {} {}", function.device, function.msix_vectors());
    }
}

/// Reads all configuration space of all functions, `rounds` times.
pub(super) fn read_config() {
    let mut sum = 0_u32;
    for _ in 0..cmdline::number("rounds", 1) {
        for function in Function::scan() {
            for offset in (0..4096).step_by(4) {
                sum = sum.wrapping_add(peek(function.register(offset)));
            }
        }
    }
    println!("done {}", u32::from(sum != 0));
}

/// Moves a running device's BAR, and looks for it at the old and the new place.
pub(super) fn move_bar() {
    let Some(mut rng) = Rng::open() else { return println!("there is no entropy device") };
    println!("before {:?}", rng.fill(16));
    let (function, old) = (rng.device.function, rng.device.common(NUM_QUEUES));
    let home = function.bar();
    function.set_bar(0xd123_4000);
    println!("old {:#x}", peek::<u16>(old));
    println!("new {:#x}", peek::<u16>(rng.device.common(NUM_QUEUES)));
    rng.queue.doorbell = rng.queue.doorbell - u64::from(home) + u64::from(function.bar());
    println!("after {:?}", rng.fill(16));
    function.set_command(0);
    poke(rng.queue.doorbell, 0_u16);
    println!("undecoded {:#x}", peek::<u16>(rng.device.common(NUM_QUEUES)));
    function.enable();
    println!("again {:?}", rng.fill(16));
}
