//! What follows the BAR around: pages the guest reads and doorbells it rings without an exit.

use std::sync::atomic::Ordering;

use super::layout::{self, READABLE_PAGES};
use super::{Inner, VirtioPci};

/// Where a function's readable pages and doorbells are.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wired {
    readable: Option<u64>,
    doorbells: Option<u64>,
}

impl VirtioPci {
    /// Brings the readable pages and the doorbells to where BAR 0 is now.
    pub(super) fn rewire(&self, inner: &mut Inner) {
        let bar = inner.config.bar();
        self.bar.store(bar.unwrap_or(0), Ordering::Relaxed);
        let wanted = Wired { readable: bar, doorbells: bar.filter(|_| inner.workers.is_some()) };
        if wanted == inner.wired {
            return;
        }
        if wanted.readable != inner.wired.readable {
            let pages = self.registers.slice(0, READABLE_PAGES);
            if let Err(error) = self.wiring.map_readable(self.slot, wanted.readable, &pages) {
                tracing::debug!(device = self.kind.name, %error, "register reads will exit");
            }
        }
        if wanted.doorbells != inner.wired.doorbells {
            for (index, doorbell) in self.doorbells.iter().enumerate() {
                let at = |bar: u64| bar.saturating_add(layout::doorbell(index));
                if let Some(old) = inner.wired.doorbells {
                    let _ = self.wiring.detach_doorbell(at(old), doorbell);
                }
                if let Some(new) = wanted.doorbells
                    && let Err(error) = self.wiring.attach_doorbell(at(new), doorbell)
                {
                    tracing::debug!(device = self.kind.name, %error, "queue notifications will exit");
                }
            }
        }
        inner.wired = wanted;
    }
}
