//! The machine, proved by bare-metal guests on whatever `/dev/kvm` is here.
//!
//! Each test builds a plan, boots `tests/payload/guest` in it, and looks at three things: the lines the guest printed, how
//! the machine says it ended, and the machine's own counters.

#[path = "payload/endings.rs"]
mod endings;
#[path = "payload/harness.rs"]
mod harness;
