//! Vectors whose eventfds the kernel or another process writes.
//!
//! An open vector's eventfd is an irqfd: KVM injects the interrupt, and nobody here wakes. A masked one's is an eventfd and
//! no more: the counter keeps what was written until the guest lifts the mask, and an epoll instance tells that there is
//! something to keep, so that the pending bit is true too (PCI 3.0 §6.8.3).

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::Vector;
use crate::devices::eventfd;
use crate::devices::wiring::Wiring;

/// A lent vector.
#[derive(Debug)]
struct Loan {
    vector: usize,
    /// The interrupt is on the eventfd.
    attached: bool,
}

/// All lent vectors of a function.
#[derive(Debug)]
pub(super) struct Lent {
    loans: Vec<Loan>,
    /// The eventfds of those that are masked.
    masked: Epoll,
}

impl Lent {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { loans: Vec::new(), masked: Epoll::new()? })
    }

    /// Lends `vector`; twice is once.
    pub(super) fn add(&mut self, vector: usize) {
        if !self.loans.iter().any(|loan| loan.vector == vector) {
            self.loans.push(Loan { vector, attached: true });
        }
    }

    /// Puts the interrupt on or off its eventfd, as the mask says. Returns whether it was signalled behind the mask that is
    /// lifted now.
    pub(super) fn follow(
        &mut self,
        index: usize,
        is_open: bool,
        vector: &Vector,
        wiring: &dyn Wiring,
    ) -> io::Result<bool> {
        let Some(loan) = self.loans.iter_mut().find(|loan| loan.vector == index) else { return Ok(false) };
        if loan.attached == is_open {
            return Ok(false);
        }
        loan.attached = is_open;
        let fd = vector.event.as_raw_fd();
        if !is_open {
            wiring.detach_msi(vector.gsi, &vector.event)?;
            let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, index as u64);
            self.masked.ctl(ControlOperation::Add, fd, event)?;
            return Ok(false);
        }
        self.masked.ctl(ControlOperation::Delete, fd, EpollEvent::default())?;
        let was_signalled = eventfd::take(&vector.event)?.is_some();
        // What is written between the two calls, KVM finds when it attaches.
        wiring.attach_msi(vector.gsi, &vector.event)?;
        Ok(was_signalled)
    }

    /// Readable when a masked vector was signalled.
    pub(super) fn held(&self) -> RawFd {
        self.masked.as_raw_fd()
    }

    /// The masked vectors that were signalled since the last call.
    pub(super) fn take_held(&self) -> Vec<usize> {
        let mut events = [EpollEvent::default(); 16];
        let count = self.masked.wait(0, &mut events).unwrap_or(0);
        events.iter().take(count).map(|event| event.data() as usize).collect()
    }

    /// Ends the loan of a vector: whatever waits in the eventfd is dropped.
    pub(super) fn take_back(&self, index: usize, vector: &Vector, wiring: &dyn Wiring) -> io::Result<()> {
        match self.loans.iter().find(|loan| loan.vector == index) {
            Some(loan) if !loan.attached => {
                let _ = eventfd::take(&vector.event);
                wiring.attach_msi(vector.gsi, &vector.event)
            }
            _ => Ok(()),
        }
    }
}
