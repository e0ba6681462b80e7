//! A bare-metal guest for the tests of the virtual machine.
//!
//! One binary, many scenarios: `scenario=NAME` on the kernel command line picks one. It prints what it saw, a line per
//! fact, and ends the machine. The tests compare the lines; the guest judges as little as possible.
//!
//! | module | what it has |
//! |---|---|
//! | [`io`], [`gate`] | ports and memory; the few things ring 0 is needed for |
//! | [`print`], [`power`], [`cmdline`] | COM1, the ways to end, what the boot loader passed |
//! | [`interrupts`], [`smp`] | IDT and local APIC; the other CPUs |
//! | [`pci`], [`virtio`] | configuration space, BARs, MSI-X; virtio 1.x drivers |
//! | [`heap`], [`random`] | memory for rings and buffers; repeatable noise |
//! | [`scenario`] | what is tested |
#![no_std]

pub mod cmdline;
pub mod gate;
pub mod heap;
pub mod interrupts;
pub mod io;
pub mod pci;
pub mod power;
pub mod print;
pub mod random;
pub mod scenario;
pub mod smp;
pub mod virtio;
