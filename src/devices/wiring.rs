//! What a device needs of the hypervisor, as a trait: the VMM implements it with KVM, tests with a mock.

use std::fmt::Debug;
use std::io;

use vmm_sys_util::eventfd::EventFd;

use super::registers::RegisterPages;

/// A global system interrupt number that stands for one MSI vector.
pub type Gsi = u32;

/// What a device writes to signal an interrupt (PCI 3.0 §6.8.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MsiMessage {
    /// Message address: a local APIC.
    pub address: u64,
    /// Message data: vector and delivery mode.
    pub data: u32,
}

/// Connects eventfds and pages to the guest so that the steady path needs no exit to user space.
pub trait Wiring: Send + Sync + Debug {
    /// A new eventfd that raises a guest interrupt when written (irqfd), without a route yet.
    ///
    /// # Errors
    /// The kernel's own.
    fn new_msi(&self) -> io::Result<(Gsi, EventFd)>;

    /// Takes the interrupt off its eventfd: what is written from now on stays in the eventfd's counter.
    ///
    /// # Errors
    /// The kernel's own.
    fn detach_msi(&self, gsi: Gsi, event: &EventFd) -> io::Result<()>;

    /// Undoes [`Wiring::detach_msi`].
    ///
    /// # Errors
    /// The kernel's own.
    fn attach_msi(&self, gsi: Gsi, event: &EventFd) -> io::Result<()>;

    /// Sets (or with `None` clears) where each of these interrupts goes. One call, one table update.
    ///
    /// # Errors
    /// The kernel's own.
    fn route_msi(&self, routes: &[(Gsi, Option<MsiMessage>)]) -> io::Result<()>;

    /// From now on a guest write of any width and value at `gpa` writes `event` inside the kernel (ioeventfd).
    ///
    /// # Errors
    /// The kernel's own.
    fn attach_doorbell(&self, gpa: u64, event: &EventFd) -> io::Result<()>;

    /// Undoes [`Wiring::attach_doorbell`].
    ///
    /// # Errors
    /// The kernel's own.
    fn detach_doorbell(&self, gpa: u64, event: &EventFd) -> io::Result<()>;

    /// Lets the guest read `pages` at `gpa` without an exit; writes still trap. At most one mapping per `slot`: a second
    /// call moves it, and `None` removes it.
    ///
    /// # Errors
    /// The kernel's own.
    fn map_readable(&self, slot: u32, gpa: Option<u64>, pages: &RegisterPages) -> io::Result<()>;
}

/// A hypervisor that only remembers.
#[cfg(any(test, feature = "test-utils"))]
pub mod mock {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on fails")]

    use std::os::fd::{AsRawFd, RawFd};
    use std::sync::{Mutex, MutexGuard};

    use super::{EventFd, Gsi, MsiMessage, RegisterPages, Wiring, io};

    /// Remembers what was wired.
    #[derive(Debug, Default)]
    pub struct MockWiring(Mutex<Seen>);

    #[derive(Debug, Default)]
    struct Seen {
        interrupts: Vec<EventFd>,
        route_updates: usize,
        detached: Vec<Gsi>,
        /// Address and descriptor.
        doorbells: Vec<(u64, RawFd)>,
        readable: Vec<(u32, u64)>,
        refused: usize,
    }

    impl MockWiring {
        fn seen(&self) -> MutexGuard<'_, Seen> {
            self.0.lock().unwrap()
        }

        /// How often the routes were changed.
        pub fn route_updates(&self) -> usize {
            self.seen().route_updates
        }

        /// How often the interrupt was raised since the last call.
        pub fn raised(&self, gsi: Gsi) -> u64 {
            self.seen().interrupts[gsi as usize].read().unwrap_or(0)
        }

        /// The interrupts that are off their eventfds.
        pub fn detached(&self) -> Vec<Gsi> {
            self.seen().detached.clone()
        }

        /// What is written when the interrupt is raised, for who waits for it.
        pub fn interrupt(&self, gsi: Gsi) -> EventFd {
            self.seen().interrupts[gsi as usize].try_clone().unwrap()
        }

        /// Where doorbells are attached.
        pub fn doorbells(&self) -> Vec<u64> {
            self.seen().doorbells.iter().map(|&(gpa, _)| gpa).collect()
        }

        /// Attaches a doorbell no test function knows of.
        pub fn attach_for_another(&self, gpa: u64) -> bool {
            EventFd::new(0).and_then(|event| self.attach_doorbell(gpa, &event)).is_ok()
        }

        /// Doorbells that were attached twice, or detached without being there.
        pub fn refused(&self) -> usize {
            self.seen().refused
        }

        /// Slots and addresses of readable pages.
        pub fn readable(&self) -> Vec<(u32, u64)> {
            self.seen().readable.clone()
        }
    }

    impl Wiring for MockWiring {
        fn new_msi(&self) -> io::Result<(Gsi, EventFd)> {
            let event = EventFd::new(libc::EFD_NONBLOCK)?;
            let mut seen = self.seen();
            seen.interrupts.push(event.try_clone()?);
            Ok((seen.interrupts.len() as Gsi - 1, event))
        }

        fn detach_msi(&self, gsi: Gsi, _event: &EventFd) -> io::Result<()> {
            let mut seen = self.seen();
            assert!(!seen.detached.contains(&gsi), "KVM refuses this too");
            seen.detached.push(gsi);
            Ok(())
        }

        fn attach_msi(&self, gsi: Gsi, _event: &EventFd) -> io::Result<()> {
            let mut seen = self.seen();
            assert!(seen.detached.contains(&gsi), "KVM refuses this too");
            seen.detached.retain(|&other| other != gsi);
            Ok(())
        }

        fn route_msi(&self, _routes: &[(Gsi, Option<MsiMessage>)]) -> io::Result<()> {
            self.seen().route_updates += 1;
            Ok(())
        }

        /// Two doorbells at one address are an error in KVM too.
        fn attach_doorbell(&self, gpa: u64, event: &EventFd) -> io::Result<()> {
            let mut seen = self.seen();
            if seen.doorbells.iter().any(|&(at, _)| at == gpa) {
                seen.refused += 1;
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            seen.doorbells.push((gpa, event.as_raw_fd()));
            Ok(())
        }

        fn detach_doorbell(&self, gpa: u64, event: &EventFd) -> io::Result<()> {
            let mut seen = self.seen();
            let doorbell = (gpa, event.as_raw_fd());
            let Some(at) = seen.doorbells.iter().position(|&other| other == doorbell) else {
                seen.refused += 1;
                return Err(io::ErrorKind::NotFound.into());
            };
            seen.doorbells.remove(at);
            Ok(())
        }

        fn map_readable(&self, slot: u32, gpa: Option<u64>, _pages: &RegisterPages) -> io::Result<()> {
            let mut seen = self.seen();
            seen.readable.retain(|&(other, _)| other != slot);
            seen.readable.extend(gpa.map(|gpa| (slot, gpa)));
            Ok(())
        }
    }
}
