//! How a machine ends, and that it can always be stopped.

use std::time::Instant;

use nestling::status::model::EndReason;

use crate::harness::Guest;

fn ending(how: &str) -> Guest {
    Guest::new(&format!("ending how={how}"))
}

#[test]
fn a_guest_prints_on_com1_and_powers_off() {
    let outcome = Guest::new("hello").run();
    assert_eq!(outcome.end, EndReason::PowerOff, "{:?}", outcome);
    assert_eq!(outcome.lines, ["hello from the guest"]);
}

#[test]
fn the_reset_register_is_a_reset() {
    assert_eq!(ending("reset").run().end, EndReason::Reset);
}

#[test]
fn a_triple_fault_is_named() {
    assert_eq!(ending("triple-fault").run().end, EndReason::TripleFault);
}
