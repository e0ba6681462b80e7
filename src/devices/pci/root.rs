//! The root bus: ECAM on one side, the functions' BARs on the other.
//!
//! The configuration pages of the functions that exist are readable by the guest without an exit. A slot without a
//! function traps and reads as all ones.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use crate::devices::bus::BusDevice;
use crate::devices::registers::{PAGE, RegisterPages};
use crate::status::model::DeviceFacts;

/// Devices on a bus.
pub const MAX_DEVICES: usize = 32;
/// Functions, and so configuration pages, per device; Nestling's devices have one function each.
const FUNCTIONS: usize = 8;

/// One PCI function.
pub trait PciFunction: Send + Sync {
    /// A write to configuration space.
    fn config_write(&self, offset: usize, data: &[u8]);
    /// Where BAR 0 answers now: address and size.
    fn bar(&self) -> Option<(u64, u64)>;
    /// A read from BAR 0.
    fn bar_read(&self, offset: u64, data: &mut [u8]);
    /// A write to BAR 0.
    fn bar_write(&self, offset: u64, data: &[u8]);
    /// What the status says about it. Address and trap counts are filled in by the root.
    fn facts(&self) -> DeviceFacts;
}

struct Slot {
    function: Arc<dyn PciFunction>,
    reads: AtomicU64,
    writes: AtomicU64,
}

/// Bus 0.
pub struct PciRoot {
    pages: RegisterPages,
    slots: Vec<OnceLock<Slot>>,
    configured: AtomicBool,
    on_configured: Box<dyn Fn() + Send + Sync>,
}

impl PciRoot {
    /// A bus with room for `devices` devices (at most [`MAX_DEVICES`]). `on_configured` is called once, when the guest
    /// first writes to a function's configuration space: its kernel is alive and has reached PCI.
    ///
    /// # Errors
    /// When the kernel has no memory for the configuration pages.
    #[allow(clippy::arithmetic_side_effects, reason = "at most 32 devices of 8 functions")]
    pub fn new(devices: usize, on_configured: impl Fn() + Send + Sync + 'static) -> io::Result<Self> {
        let devices = devices.min(MAX_DEVICES);
        let pages = RegisterPages::new(devices * FUNCTIONS)?;
        for page in 0..devices * FUNCTIONS {
            pages.write(page * PAGE, &[0xff; PAGE]);
        }
        Ok(Self {
            pages,
            slots: (0..devices).map(|_| OnceLock::new()).collect(),
            configured: AtomicBool::new(false),
            on_configured: Box::new(on_configured),
        })
    }

    /// The configuration page of function 0 of `device`.
    #[must_use]
    #[allow(clippy::arithmetic_side_effects, reason = "at most 32 devices of 8 functions")]
    pub fn config_page(&self, device: usize) -> RegisterPages {
        self.pages.slice(device * FUNCTIONS, 1)
    }

    /// All configuration pages, to be made readable from the start of ECAM.
    #[must_use]
    pub fn config_pages(&self) -> &RegisterPages {
        &self.pages
    }

    /// Plugs `function` in as `device`. A device that is there already stays.
    pub fn plug(&self, device: usize, function: Arc<dyn PciFunction>) {
        if let Some(slot) = self.slots.get(device) {
            let _ = slot.set(Slot { function, reads: AtomicU64::new(0), writes: AtomicU64::new(0) });
        }
    }

    /// Facts of every function, in bus order.
    #[must_use]
    pub fn facts(&self) -> Vec<DeviceFacts> {
        let facts = self.slots.iter().enumerate().filter_map(|(device, slot)| {
            let slot = slot.get()?;
            Some(DeviceFacts {
                address: format!("00:{device:02x}.0"),
                trapped_reads: slot.reads.load(Ordering::Relaxed),
                trapped_writes: slot.writes.load(Ordering::Relaxed),
                ..slot.function.facts()
            })
        });
        facts.collect()
    }

    /// The bus device that answers in the ECAM window.
    #[must_use]
    pub fn ecam(self: &Arc<Self>) -> Arc<dyn BusDevice> {
        Arc::new(Ecam(Arc::clone(self)))
    }

    /// The bus device that answers in the BAR window, which starts at `base`.
    #[must_use]
    pub fn window(self: &Arc<Self>, base: u64) -> Arc<dyn BusDevice> {
        Arc::new(Window { root: Arc::clone(self), base })
    }

    fn slot_at(&self, address: u64, len: usize) -> Option<(&Slot, u64)> {
        self.slots.iter().filter_map(OnceLock::get).find_map(|slot| {
            let (base, size) = slot.function.bar()?;
            let offset = address.checked_sub(base)?;
            (offset.checked_add(len as u64)? <= size).then_some((slot, offset))
        })
    }
}

struct Ecam(Arc<PciRoot>);

impl BusDevice for Ecam {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some(slot) = self.0.slots.get(offset as usize / PAGE / FUNCTIONS).and_then(OnceLock::get) {
            slot.reads.fetch_add(1, Ordering::Relaxed);
        }
        self.0.pages.read(offset as usize, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let (page, register) = (offset as usize / PAGE, offset as usize % PAGE);
        let Some(slot) = self.0.slots.get(page / FUNCTIONS).and_then(OnceLock::get) else { return };
        if page % FUNCTIONS != 0 {
            return;
        }
        slot.writes.fetch_add(1, Ordering::Relaxed);
        if !self.0.configured.swap(true, Ordering::Relaxed) {
            (self.0.on_configured)();
        }
        slot.function.config_write(register, data);
    }
}

struct Window {
    root: Arc<PciRoot>,
    base: u64,
}

impl BusDevice for Window {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match self.root.slot_at(self.base.saturating_add(offset), data.len()) {
            Some((slot, at)) => {
                slot.reads.fetch_add(1, Ordering::Relaxed);
                slot.function.bar_read(at, data);
            }
            None => data.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some((slot, at)) = self.root.slot_at(self.base.saturating_add(offset), data.len()) {
            slot.writes.fetch_add(1, Ordering::Relaxed);
            slot.function.bar_write(at, data);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::pci::host_bridge::HostBridge;
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn a_scan_finds_the_functions_and_nothing_else() {
        let told = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&told);
        let root = Arc::new(
            PciRoot::new(2, move || {
                counter.fetch_add(1, Ordering::Relaxed);
            })
            .unwrap(),
        );
        root.plug(0, Arc::new(HostBridge::new(root.config_page(0))));
        let ecam = root.ecam();
        let mut found = Vec::new();
        for page in 0..256_u64 {
            let mut id = [0; 4];
            ecam.read(page * PAGE as u64, &mut id);
            if id != [0xff; 4] {
                found.push((page, u32::from_le_bytes(id)));
            }
        }
        assert_eq!(found, [(0, 0x0008_1b36)]);
        for offset in [4, 0x1004, 0x8004, 0xf_f004, 4] {
            ecam.write(offset, &[6, 0]);
        }
        assert_eq!(told.load(Ordering::Relaxed), 1);
        assert_eq!(root.config_page(0).u16(4), 6);
        assert_eq!(root.facts()[0].trapped_writes, 2);
    }
}
