//! Exits to user space, by name and counted. This count is the cost of a nested guest, so it is always on.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

/// Why KVM_RUN returned (KVM API §5, `exit_reason`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitReason {
    /// A read of an I/O port.
    IoIn,
    /// A write to an I/O port.
    IoOut,
    /// A read of memory that is not RAM.
    MmioRead,
    /// A write to memory that is not RAM, or to a read-only slot.
    MmioWrite,
    /// A signal: somebody wants the vCPU's attention.
    Interrupted,
    /// `hlt` with an interrupt controller in user space.
    Halt,
    /// A triple fault.
    Shutdown,
    /// A system event the guest asked KVM for.
    SystemEvent,
    /// KVM could not go on.
    InternalError,
    /// The CPU refused to enter the guest.
    FailEntry,
    /// Any other reason; none of them is enabled.
    Other,
}

const ALL: [(ExitReason, &str); 11] = [
    (ExitReason::IoIn, "io-in"),
    (ExitReason::IoOut, "io-out"),
    (ExitReason::MmioRead, "mmio-read"),
    (ExitReason::MmioWrite, "mmio-write"),
    (ExitReason::Interrupted, "interrupted"),
    (ExitReason::Halt, "halt"),
    (ExitReason::Shutdown, "shutdown"),
    (ExitReason::SystemEvent, "system-event"),
    (ExitReason::InternalError, "internal-error"),
    (ExitReason::FailEntry, "fail-entry"),
    (ExitReason::Other, "other"),
];

/// One vCPU's exits, readable from any thread.
#[derive(Debug, Default)]
pub struct ExitCounters([AtomicU64; ALL.len()]);

impl ExitCounters {
    /// Counts one.
    pub fn count(&self, reason: ExitReason) {
        self.0[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// The counts by name; a reason that never occurred is left out.
    #[must_use]
    pub fn by_name(&self) -> BTreeMap<String, u64> {
        let counts =
            ALL.iter().map(|&(reason, name)| (name, self.0[reason as usize].load(Ordering::Relaxed)));
        counts.filter(|&(_, count)| count > 0).map(|(name, count)| (name.to_owned(), count)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_counter_and_name() {
        for (index, &(reason, name)) in ALL.iter().enumerate() {
            assert_eq!(reason as usize, index, "{name}");
            let counters = ExitCounters::default();
            counters.count(reason);
            assert_eq!(counters.by_name(), BTreeMap::from([(name.to_owned(), 1)]));
        }
    }
}
