//! MSI-X (PCI 3.0 §6.8.2): a table of interrupt messages, each behind an eventfd that the kernel turns into the interrupt.

mod lent;

use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use self::lent::Lent;
use crate::devices::complaints::Complaints;
use crate::devices::registers::{PAGE, RegisterPages};
use crate::devices::wiring::{Gsi, MsiMessage, Wiring};

/// Capability id of MSI-X.
pub const CAPABILITY_ID: u8 = 0x11;
/// Offset of the pending bit array in the table's page.
const PBA_OFFSET: usize = PAGE / 2;
/// Bytes per table entry.
const ENTRY: usize = 16;
/// More vectors than this do not fit before the pending bit array.
pub const MAX_VECTORS: u16 = (PBA_OFFSET / ENTRY) as u16;
/// Message control: MSI-X enable.
const CONTROL_ENABLE: u16 = 1 << 15;
/// Message control: all vectors masked.
const CONTROL_MASK_ALL: u16 = 1 << 14;
/// Offset of the vector control in an entry.
const VECTOR_CONTROL: usize = 12;
/// Vector control: this vector masked.
const VECTOR_MASKED: u32 = 1;

struct Vector {
    gsi: Gsi,
    event: EventFd,
}

#[derive(Default)]
struct State {
    control: u16,
    routed: Vec<Option<MsiMessage>>,
    lent: Option<Lent>,
}

/// One function's MSI-X table. Shared by the transport (which a guest programs) and the workers (which signal).
pub struct Msix {
    page: RegisterPages,
    wiring: Arc<dyn Wiring>,
    vectors: Vec<Vector>,
    state: Mutex<State>,
    signals: AtomicU64,
    complaints: Complaints,
}

impl Msix {
    /// A table of `count` vectors on `page`, every vector masked.
    ///
    /// # Errors
    /// When an eventfd or its interrupt cannot be had.
    pub fn new(page: RegisterPages, count: u16, wiring: Arc<dyn Wiring>) -> io::Result<Self> {
        let count = count.min(MAX_VECTORS);
        let vectors = (0..count)
            .map(|_| wiring.new_msi().map(|(gsi, event)| Vector { gsi, event }))
            .collect::<io::Result<Vec<_>>>()?;
        let state = State { control: 0, routed: vec![None; vectors.len()], lent: None };
        let msix = Self {
            page,
            wiring,
            vectors,
            state: Mutex::new(state),
            signals: AtomicU64::new(0),
            complaints: Complaints::default(),
        };
        msix.mask_every_entry();
        Ok(msix)
    }

    /// The capability's body after id and next pointer, and its writable bits: control, table and PBA location in BAR 0.
    #[must_use]
    #[allow(clippy::arithmetic_side_effects, reason = "a device's own layout, before any guest runs")]
    pub fn capability(&self, bar_page: u32) -> ([u8; 10], [u8; 2]) {
        let table = bar_page * PAGE as u32;
        let mut body = [0; 10];
        body[0..2].copy_from_slice(&(self.vectors.len().saturating_sub(1) as u16).to_le_bytes());
        body[2..6].copy_from_slice(&table.to_le_bytes());
        body[6..10].copy_from_slice(&(table + PBA_OFFSET as u32).to_le_bytes());
        (body, (CONTROL_ENABLE | CONTROL_MASK_ALL).to_le_bytes())
    }

    /// Number of vectors.
    #[must_use]
    pub fn len(&self) -> u16 {
        self.vectors.len() as u16
    }

    /// Whether there is no vector at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.vectors.is_empty()
    }

    /// Interrupts signalled so far, those held back by a mask included.
    #[must_use]
    pub fn signals(&self) -> u64 {
        self.signals.load(Ordering::Relaxed)
    }

    /// The guest wrote the capability's message control.
    pub fn set_control(&self, control: u16) {
        let mut state = self.lock();
        state.control = control;
        self.apply(&mut state);
    }

    /// The guest wrote the table's page. Aligned 4- and 8-byte writes are what the specification allows; others are dropped.
    pub fn write_table(&self, offset: usize, data: &[u8]) {
        let end = offset.checked_add(data.len());
        let in_table = end.is_some_and(|end| end <= field(self.vectors.len(), 0));
        if !(matches!(data.len(), 4 | 8) && offset.is_multiple_of(data.len()) && in_table) {
            return;
        }
        let mut state = self.lock();
        self.page.write(offset, data);
        self.apply(&mut state);
    }

    /// Raises `vector`, or remembers it as pending while it is masked. A vector that is not there is nobody's interrupt.
    pub fn signal(&self, vector: u16) {
        let Some(entry) = self.vectors.get(usize::from(vector)) else { return };
        self.signals.fetch_add(1, Ordering::Relaxed);
        let state = self.lock();
        if self.is_open(state.control, vector.into()) {
            raise(&entry.event);
        } else {
            self.set_pending(vector.into(), true);
        }
    }

    /// Lends out the eventfd behind `vector`, for the kernel or another process to write: then an interrupt passes no
    /// thread of ours. While the vector is masked, the interrupt is off the eventfd, whose counter remembers what was
    /// written. `None` for a vector that is not there.
    ///
    /// # Errors
    /// When there is no descriptor for it.
    pub fn lend(&self, vector: u16) -> io::Result<Option<EventFd>> {
        let index = usize::from(vector);
        let Some(entry) = self.vectors.get(index) else { return Ok(None) };
        let mut state = self.lock();
        let is_open = self.is_open(state.control, index);
        let lent = match &mut state.lent {
            Some(lent) => lent,
            none => none.insert(Lent::new()?),
        };
        lent.add(index);
        lent.follow(index, is_open, entry, &*self.wiring)?;
        entry.event.try_clone().map(Some)
    }

    /// A descriptor that can be read when a lent vector was signalled behind its mask: [`Msix::note_held`] is due. None when
    /// nothing is lent.
    #[must_use]
    pub fn held(&self) -> Option<RawFd> {
        self.lock().lent.as_ref().map(Lent::held)
    }

    /// Sets the pending bits of lent vectors that were signalled behind their masks.
    pub fn note_held(&self) {
        let state = self.lock();
        let held = state.lent.as_ref().map(Lent::take_held).unwrap_or_default();
        held.into_iter()
            .filter(|&index| index < self.vectors.len())
            .for_each(|index| self.set_pending(index, true));
    }

    /// Takes lent vectors back and forgets interrupts held back by a mask: what caused them is gone, and a function must
    /// not send them late (PCI 3.0 §6.8.3).
    pub fn forget_pending(&self) {
        let mut state = self.lock();
        if let Some(lent) = state.lent.take() {
            for (index, vector) in self.vectors.iter().enumerate() {
                self.complain_if(lent.take_back(index, vector, &*self.wiring));
            }
        }
        self.page.write(PBA_OFFSET, &[0; PAGE - PBA_OFFSET]);
    }

    /// Brings routes in line with the table, in one update, then delivers what was pending behind a mask.
    fn apply(&self, state: &mut State) {
        let enabled = state.control & CONTROL_ENABLE != 0;
        let mut changes = Vec::new();
        for (index, (vector, routed)) in self.vectors.iter().zip(&mut state.routed).enumerate() {
            let open = self.is_open(state.control, index);
            // A masked vector keeps its old route: nothing is signalled through it, and most masks are short.
            let wanted = if open { Some(self.message(index)) } else { routed.filter(|_| enabled) };
            if wanted != *routed {
                *routed = wanted;
                changes.push((vector.gsi, wanted));
            }
        }
        if !changes.is_empty() {
            self.complain_if(self.wiring.route_msi(&changes));
        }
        if let Some(lent) = &mut state.lent {
            for (index, vector) in self.vectors.iter().enumerate() {
                let is_open = self.is_open(state.control, index);
                match lent.follow(index, is_open, vector, &*self.wiring) {
                    Ok(true) => self.set_pending(index, true),
                    Ok(false) => {}
                    Err(error) => self.complain_if(Err(error)),
                }
            }
        }
        for (index, vector) in self.vectors.iter().enumerate() {
            if self.is_pending(index) && self.is_open(state.control, index) {
                self.set_pending(index, false);
                raise(&vector.event);
            }
        }
    }

    fn complain_if(&self, result: io::Result<()>) {
        if let Err(error) = result
            && self.complaints.may_speak()
        {
            tracing::warn!(%error, "the guest asks for an interrupt that cannot be; it will miss this device's interrupts");
        }
    }

    fn is_open(&self, control: u16, vector: usize) -> bool {
        let entry_masked = self.page.u32(field(vector, VECTOR_CONTROL)) & VECTOR_MASKED != 0;
        control & (CONTROL_ENABLE | CONTROL_MASK_ALL) == CONTROL_ENABLE && !entry_masked
    }

    fn message(&self, vector: usize) -> MsiMessage {
        let word = |at: usize| self.page.u32(field(vector, at));
        MsiMessage { address: u64::from(word(0)) | u64::from(word(4)) << 32, data: word(8) }
    }

    fn mask_every_entry(&self) {
        for index in 0..self.vectors.len() {
            self.page.write(field(index, 0), &[0; VECTOR_CONTROL]);
            self.page.set_u32(field(index, VECTOR_CONTROL), VECTOR_MASKED);
        }
    }

    /// Whether `vector` was signalled behind its mask.
    pub(crate) fn is_pending(&self, vector: usize) -> bool {
        let (at, bit) = pending_bit(vector);
        self.page.u8(at) & bit != 0
    }

    fn set_pending(&self, vector: usize, pending: bool) {
        let (at, bit) = pending_bit(vector);
        let old = self.page.u8(at);
        self.page.set_u8(at, if pending { old | bit } else { old & !bit });
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Msix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Msix").field("vectors", &self.vectors.len()).finish_non_exhaustive()
    }
}

/// Where a field of a table entry is.
#[allow(clippy::arithmetic_side_effects, reason = "at most MAX_VECTORS entries")]
fn field(vector: usize, field: usize) -> usize {
    vector * ENTRY + field
}

/// The byte and the bit that say whether a vector is pending.
#[allow(clippy::arithmetic_side_effects, reason = "at most MAX_VECTORS bits")]
fn pending_bit(vector: usize) -> (usize, u8) {
    (PBA_OFFSET + vector / 8, 1 << (vector % 8))
}

/// An eventfd write fails only when its counter is full, and then the interrupt is on its way already.
fn raise(event: &EventFd) {
    let _ = event.write(1);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::wiring::mock::MockWiring;

    fn msix(wiring: &Arc<MockWiring>) -> Msix {
        let wiring: Arc<dyn Wiring> = wiring.clone();
        Msix::new(RegisterPages::new(1).unwrap(), 2, wiring).unwrap()
    }

    fn program(msix: &Msix, vector: usize, data: u32) {
        msix.write_table(vector * 16, &0xfee0_0000_u64.to_le_bytes());
        msix.write_table(vector * 16 + 8, &data.to_le_bytes());
        msix.write_table(vector * 16 + 12, &[0; 4]);
    }

    #[test]
    fn a_vector_is_routed_once_when_it_opens() {
        let wiring = Arc::new(MockWiring::default());
        let msix = msix(&wiring);
        msix.set_control(0xc000);
        program(&msix, 0, 0x41);
        program(&msix, 1, 0x42);
        assert_eq!(wiring.route_updates(), 0, "nothing to route while all is masked");
        msix.set_control(0x8000);
        assert_eq!(wiring.route_updates(), 1, "both vectors in one update");
        msix.signal(1);
        assert_eq!(wiring.raised(1), 1);
        msix.write_table(12, &[1, 0, 0, 0]);
        msix.write_table(12, &[0, 0, 0, 0]);
        assert_eq!(wiring.route_updates(), 1, "masking and unmasking changes no route");
    }

    #[test]
    fn a_masked_interrupt_stays_pending_until_the_mask_is_lifted() {
        let wiring = Arc::new(MockWiring::default());
        let msix = msix(&wiring);
        msix.set_control(0x8000);
        program(&msix, 0, 0x41);
        msix.write_table(12, &[1, 0, 0, 0]);
        msix.signal(0);
        msix.signal(0);
        assert_eq!(wiring.raised(0), 0);
        assert_eq!(msix.page.u8(PBA_OFFSET), 1);
        msix.write_table(12, &[0; 4]);
        assert_eq!(wiring.raised(0), 1);
        assert_eq!(msix.page.u8(PBA_OFFSET), 0);
    }

    #[test]
    fn a_lent_vector_is_on_its_eventfd_only_while_it_is_open() {
        let wiring = Arc::new(MockWiring::default());
        let msix = msix(&wiring);
        assert!(msix.held().is_none());
        let call = msix.lend(0).unwrap().unwrap();
        assert!(msix.lend(2).unwrap().is_none());
        assert_eq!(wiring.detached(), [0], "masked from the start");
        // The back end calls before the guest is ready to hear: the bit says so, and nothing is lost.
        call.write(1).unwrap();
        assert!(can_be_read(msix.held().unwrap()));
        msix.note_held();
        assert_eq!(msix.page.u8(PBA_OFFSET), 1);
        assert!(!can_be_read(msix.held().unwrap()), "told once");
        msix.set_control(0x8000);
        program(&msix, 0, 0x41);
        assert_eq!((wiring.detached(), wiring.raised(0)), (vec![], 1));
        assert_eq!(msix.page.u8(PBA_OFFSET), 0);
        // Open: the call goes through, whoever makes it.
        call.write(1).unwrap();
        assert!(!can_be_read(msix.held().unwrap()));
        assert_eq!(wiring.raised(0), 1);
        // Masked and unmasked with a call between that nobody noted.
        msix.write_table(12, &[1, 0, 0, 0]);
        call.write(1).unwrap();
        msix.write_table(12, &[0; 4]);
        assert_eq!((wiring.detached(), wiring.raised(0)), (vec![], 1));
    }

    #[test]
    fn a_reset_takes_lent_vectors_back_with_nothing_pending() {
        let wiring = Arc::new(MockWiring::default());
        let msix = msix(&wiring);
        let call = msix.lend(1).unwrap().unwrap();
        call.write(1).unwrap();
        msix.note_held();
        msix.forget_pending();
        assert_eq!((wiring.detached(), msix.page.u8(PBA_OFFSET)), (vec![], 0));
        msix.set_control(0x8000);
        program(&msix, 1, 0x41);
        assert_eq!(wiring.raised(1), 0);
        msix.signal(1);
        assert_eq!(wiring.raised(1), 1);
    }

    fn can_be_read(fd: RawFd) -> bool {
        let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        // SAFETY: one descriptor, described by a structure of our own.
        unsafe { libc::poll(&raw mut poll, 1, 0) == 1 }
    }

    #[test]
    fn odd_writes_and_absent_vectors_change_nothing() {
        let wiring = Arc::new(MockWiring::default());
        let msix = msix(&wiring);
        for (offset, len) in [(0, 1), (2, 4), (4, 8), (32, 4), (0x800, 4), (4092, 8)] {
            msix.write_table(offset, &[0xff; 8][..len]);
        }
        assert_eq!(msix.page.u32(0), 0);
        assert_eq!(msix.page.u32(0x800), 0);
        msix.signal(2);
        msix.signal(0xffff);
        assert_eq!(msix.signals(), 0);
    }
}
