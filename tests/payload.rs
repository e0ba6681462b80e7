//! The machine, proved by bare-metal guests on whatever `/dev/kvm` is here.
//!
//! Each test builds a plan, boots `tests/payload/guest` in it, and looks at three things: the lines the guest printed, how
//! the machine says it ended, and the machine's own counters.
//!
//! The payload is built on the way; `NESTLING_PAYLOAD` names one that is built already, for a machine without cargo:
//!
//! ```text
//! nestling-node run --env NESTLING_PAYLOAD=P --file P target/…/deps/payload-… --test-threads=1 --skip never_exits --skip commands::
//! ```
//!
//! (Bochs does not take interrupts from a guest that spins with its own switched off, so that one test hangs there.)

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking, its helpers too"
)]

#[path = "payload/commands.rs"]
mod commands;
#[path = "payload/devices.rs"]
mod devices;
#[path = "payload/disks.rs"]
mod disks;
#[path = "payload/endings.rs"]
mod endings;
#[path = "payload/harness.rs"]
mod harness;
#[path = "payload/hostile.rs"]
mod hostile;
#[path = "payload/machine.rs"]
mod machine;
#[path = "payload/slow_file.rs"]
mod slow_file;
#[path = "payload/stuck.rs"]
mod stuck;
