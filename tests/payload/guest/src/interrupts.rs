//! The IDT and the local APIC in xAPIC mode (SDM Vol. 3A §11.4).

use crate::{gate, io};

const LAPIC: u64 = 0xfee0_0000;
const LAPIC_ID: u64 = LAPIC + 0x20;
const SPURIOUS: u64 = LAPIC + 0xf0;
const ICR_LOW: u64 = LAPIC + 0x300;
const ICR_HIGH: u64 = LAPIC + 0x310;
/// Software enable, spurious vector 0xff.
const ENABLE: u32 = 0x1ff;
const STUB_BYTES: u64 = 16;
/// Present, ring 0, interrupt gate, in the kernel's code segment.
const GATE: u64 = 0x8e00_0010_0000;

unsafe extern "C" {
    static interrupt_stubs: u8;
    static mut interrupt_descriptors: [[u64; 2]; 256];
    static interrupt_counts: [u32; 256];
}

/// Fills the IDT. Gate calls work from here on; interrupts are still off.
pub fn install() {
    let stubs = &raw const interrupt_stubs as u64;
    let table = &raw mut interrupt_descriptors as u64;
    for vector in 0..256 {
        let stub = stubs + vector * STUB_BYTES;
        let low = (stub & 0xffff) | GATE | (stub & 0xffff_0000) << 32;
        io::poke(table + vector * 16, low);
        io::poke(table + vector * 16 + 8, stub >> 32);
    }
}

/// Switches this CPU's APIC on and lets interrupts in.
pub fn enable() {
    io::poke(SPURIOUS, ENABLE);
    gate::set_interrupts(true);
}

/// Where the count of a vector is.
#[must_use]
pub fn counter(vector: u8) -> u64 {
    &raw const interrupt_counts as u64 + u64::from(vector) * 4
}

/// How often a vector fired.
#[must_use]
pub fn count(vector: u8) -> u32 {
    io::peek(counter(vector))
}

/// This CPU's APIC id by its own register.
#[must_use]
pub fn apic_id() -> u32 {
    io::peek::<u32>(LAPIC_ID) >> 24
}

/// Sends an interprocessor interrupt.
pub fn send_ipi(apic_id: u32, command: u32) {
    io::poke(ICR_HIGH, apic_id << 24);
    io::poke(ICR_LOW, command);
}
