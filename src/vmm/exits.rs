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
pub struct ExitCounters {
    counts: [AtomicU64; ALL.len()],
    /// The last exit: its reason plus one in the low byte, its port or address above it.
    last: AtomicU64,
}

impl ExitCounters {
    /// Counts one; `address` is the port or guest physical address, 0 where there is none.
    pub fn count(&self, reason: ExitReason, address: u64) {
        self.counts[reason as usize].fetch_add(1, Ordering::Relaxed);
        self.last.store(address << 8 | (reason as u64 + 1), Ordering::Relaxed);
    }

    /// The last exit in words, for example `mmio-write at 0xc0000014`.
    #[must_use]
    pub fn last(&self) -> Option<String> {
        let last = self.last.load(Ordering::Relaxed);
        let index = (last & 0xff).checked_sub(1)? as usize;
        let (reason, name) = ALL.get(index)?;
        Some(match reason {
            ExitReason::IoIn | ExitReason::IoOut => format!("{name} at port {:#x}", last >> 8),
            ExitReason::MmioRead | ExitReason::MmioWrite => format!("{name} at {:#x}", last >> 8),
            _ => (*name).to_owned(),
        })
    }

    /// The counts by name; a reason that never occurred is left out.
    #[must_use]
    pub fn by_name(&self) -> BTreeMap<String, u64> {
        let counts =
            ALL.iter().map(|&(reason, name)| (name, self.counts[reason as usize].load(Ordering::Relaxed)));
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
            counters.count(reason, 0);
            assert_eq!(counters.by_name(), BTreeMap::from([(name.to_owned(), 1)]));
        }
    }

    #[test]
    fn the_last_exit_says_where_it_was() {
        let counters = ExitCounters::default();
        assert_eq!(counters.last(), None);
        counters.count(ExitReason::IoOut, 0x602);
        assert_eq!(counters.last().unwrap(), "io-out at port 0x602");
        counters.count(ExitReason::MmioWrite, 0xc000_0014);
        assert_eq!(counters.last().unwrap(), "mmio-write at 0xc0000014");
        counters.count(ExitReason::Shutdown, 0);
        assert_eq!(counters.last().unwrap(), "shutdown");
    }
}
