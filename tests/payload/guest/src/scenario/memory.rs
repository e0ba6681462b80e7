//! RAM is where the memory map says, and nowhere else.

use crate::io::{peek, poke};
use crate::{cmdline, println};

/// Everything below is taken by the payload and the boot loader's tables.
const FREE: u64 = 8 << 20;
const RAM: u32 = 1;
const PROBES: [u64; 4] = [0xd000_0000, 0xe010_0000, 0xfeb0_0000, 0xffff_f000];

/// Prints the map; writes a pattern at both ends of every run of RAM, then reads all of them; reads where no RAM is.
pub(super) fn run() {
    println!("magic {:#x}", peek::<u32>(cmdline::start_info()));
    let ram = || cmdline::memory_map().filter(|entry| entry.kind == RAM && entry.start + entry.size > FREE);
    for entry in cmdline::memory_map() {
        println!("map {:#x} {:#x} {}", entry.start, entry.size, entry.kind);
    }
    let ends = || ram().flat_map(|entry| [entry.start.max(FREE), entry.start + entry.size - 8]);
    ends().for_each(|address| poke(address, pattern(address)));
    for address in ends() {
        let right = peek::<u64>(address) == pattern(address);
        println!("ram {address:#x} {}", if right { "ok" } else { "wrong" });
    }
    let after_ram = ram().map(|entry| entry.start + entry.size);
    for address in after_ram.chain(PROBES) {
        poke(address, 0_u32);
        println!("hole {address:#x} {:#x}", peek::<u32>(address));
    }
}

fn pattern(address: u64) -> u64 {
    address.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}
