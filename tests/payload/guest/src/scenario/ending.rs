//! The ways a guest's life ends, and the ways it does not.

use crate::{cmdline, gate, io, power, println, smp};

/// Ends as `how` says.
pub(super) fn run(how: &str) {
    println!("ending by {how}");
    match how {
        "reset" => power::reset(),
        "triple-fault" => gate::triple_fault(),
        "panic" => panic_like_linux(),
        "jump-to-nothing" => gate::jump(0xd000_0000),
        "spin" => all_cpus(|_| gate::spin()),
        "spin-ring3" => all_cpus(|_| spin_in_ring_3()),
        "halt" => all_cpus(|_| gate::halt_forever()),
        _ => {}
    }
}

fn panic_like_linux() -> ! {
    const MESSAGE: &[u8] = b"Kernel panic - not syncing: test\0";
    (0..).zip(MESSAGE).for_each(|(at, &byte)| io::poke(0x50_0000 + at, byte));
    power::reset_after_panic()
}

fn spin_in_ring_3() -> ! {
    loop {
        core::hint::spin_loop();
    }
}

/// Makes every CPU do the same for ever.
fn all_cpus(what: fn(u32)) {
    let cpus = cmdline::number("cpus", 1) as u32;
    smp::start(cpus, Some(what));
    println!("all {cpus} are there");
    what(0);
}
