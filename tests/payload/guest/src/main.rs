//! The payload's entry points: what only a freestanding binary may define. Everything else is in the library.
//!
//! Where panics unwind, which is so in the `dev` profile, nothing can be without std: there this is only checked, not run.
#![cfg_attr(panic = "abort", no_std)]
#![no_main]

mod memory_functions;

use nestling_payload::{power, println, scenario, smp};

core::arch::global_asm!(include_str!("start.s"), include_str!("tables.s"), options(att_syntax));

/// The first Rust code of every CPU, in ring 3 on its own stack.
#[unsafe(no_mangle)]
extern "C" fn rust_start(cpu: u32) -> ! {
    if cpu == 0 { scenario::run() } else { smp::arrive(cpu) }
}

/// Any exception that is not a gate call.
#[unsafe(no_mangle)]
extern "C" fn rust_exception(vector: u64, error: u64, rip: u64, cr2: u64) -> ! {
    println!("EXCEPTION {vector} error {error:#x} at {rip:#x} cr2 {cr2:#x}");
    power::reset()
}

#[cfg(panic = "abort")]
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    println!("PANIC {info}");
    power::reset()
}
