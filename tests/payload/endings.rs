//! How a machine ends, and that it can always be stopped.

use std::time::{Duration, Instant};

use nestling::status::model::EndReason;

use crate::harness::Guest;

/// No scenario's stop needs more than a kick; this is what a busy machine may add.
const PROMPT: Duration = Duration::from_secs(5);

fn ending(how: &str) -> Guest {
    Guest::new(&format!("ending how={how}"))
}

#[test]
fn a_guest_prints_on_com1_and_powers_off() {
    let outcome = Guest::new("hello").run();
    assert_eq!(outcome.end, EndReason::PowerOff, "{outcome:?}");
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

#[test]
fn a_panic_is_told_from_a_reset_and_quoted() {
    let outcome = ending("panic").run();
    let message = Some("Kernel panic - not syncing: test".to_owned());
    assert_eq!(outcome.end, EndReason::GuestPanic { message });
}

#[test]
fn code_where_nothing_is_ends_with_a_kvm_error_that_says_where() {
    let end = ending("jump-to-nothing").run().end;
    let EndReason::KvmError { detail } = &end else { panic!("{end:?}") };
    assert!(detail.contains("KVM_EXIT_INTERNAL_ERROR") && detail.contains("0xd0000000"), "{detail}");
}

#[test]
fn a_guest_that_never_exits_is_stopped() {
    for how in ["spin", "spin-ring3", "halt"] {
        for cpus in [1, 8] {
            let mut running = ending(how).cpus(cpus).start();
            running.wait_for(&format!("all {cpus} are there"));
            let asked = Instant::now();
            running.machine.stop().unwrap();
            assert!(asked.elapsed() < PROMPT, "{how} with {cpus} vCPUs took {:?}", asked.elapsed());
            let facts = running.machine.facts();
            assert!(facts.vcpus.iter().all(|vcpu| vcpu.state == "stopped"), "{facts:?}");
            running.machine.stop().unwrap();
        }
    }
}
