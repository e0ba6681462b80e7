//! Every CPU comes up, knows who it is, and shares memory with the others.

use core::sync::atomic::Ordering;

use crate::smp::{COUNTER, Identity, arrived, identity, start};
use crate::{cmdline, println};

/// Starts the others and prints who is there.
pub(super) fn run() {
    start(cmdline::number("cpus", 1) as u32, None);
    for Identity { initial, extended, local } in core::iter::once(identity()).chain(arrived()) {
        println!("cpu {initial} {extended} {local}");
    }
    println!("counter {}", COUNTER.load(Ordering::SeqCst));
}
