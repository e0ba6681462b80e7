//! One function's configuration space (PCI 3.0 §6.1): a page of bytes and a mask of what a guest may change.

use crate::devices::registers::RegisterPages;

/// Command register: respond to memory accesses.
const COMMAND_MEMORY: u16 = 1 << 1;
/// Command register: bus mastering, without which a function may not reach memory or send MSIs.
const COMMAND_BUS_MASTER: u16 = 1 << 2;
/// Command register: no INTx.
const COMMAND_INTX_DISABLE: u16 = 1 << 10;
/// Status register: there is a capability list.
const STATUS_CAPABILITIES: u16 = 1 << 4;

const VENDOR_ID: usize = 0x00;
const DEVICE_ID: usize = 0x02;
const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const REVISION: usize = 0x08;
const CLASS_INTERFACE: usize = 0x09;
const BAR0: usize = 0x10;
const SUBSYSTEM_VENDOR_ID: usize = 0x2c;
const SUBSYSTEM_ID: usize = 0x2e;
const CAPABILITIES_POINTER: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
/// Standard configuration space; the extended space above it is empty and read-only.
const STANDARD_SIZE: usize = 0x100;
const FIRST_CAPABILITY: usize = 0x40;

/// What a function says it is.
#[derive(Debug, Clone, Copy)]
pub struct Identity {
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Revision id.
    pub revision: u8,
    /// Base class, sub-class, programming interface.
    pub class: [u8; 3],
    /// Subsystem id (the subsystem vendor is the vendor).
    pub subsystem: u16,
}

/// The configuration space of one function with at most one BAR.
#[derive(Debug)]
pub struct ConfigSpace {
    page: RegisterPages,
    writable: Box<[u8; STANDARD_SIZE]>,
    bar_size: u32,
    next_capability: usize,
    last_capability: usize,
}

impl ConfigSpace {
    /// Lays out a type 0 header on `page`.
    #[must_use]
    pub fn new(page: RegisterPages, identity: Identity) -> Self {
        page.write(0, &[0; crate::devices::registers::PAGE]);
        page.set_u16(VENDOR_ID, identity.vendor);
        page.set_u16(DEVICE_ID, identity.device);
        page.set_u8(REVISION, identity.revision);
        let [base, sub, interface] = identity.class;
        page.write(CLASS_INTERFACE, &[interface, sub, base]);
        page.set_u16(SUBSYSTEM_VENDOR_ID, identity.vendor);
        page.set_u16(SUBSYSTEM_ID, identity.subsystem);
        let mut config = Self {
            page,
            writable: Box::new([0; STANDARD_SIZE]),
            bar_size: 0,
            next_capability: FIRST_CAPABILITY,
            last_capability: 0,
        };
        let command = COMMAND_MEMORY | COMMAND_BUS_MASTER | COMMAND_INTX_DISABLE;
        config.allow(COMMAND, &command.to_le_bytes());
        config.allow(INTERRUPT_LINE, &[0xff]);
        config
    }

    /// Gives the function its BAR 0: a 32-bit memory window of `size` bytes (a power of two) at `address`.
    #[allow(clippy::arithmetic_side_effects, reason = "a device's own layout, before any guest runs")]
    pub fn set_bar(&mut self, address: u32, size: u32) {
        self.bar_size = size;
        self.page.set_u32(BAR0, address);
        self.allow(BAR0, &(!(size - 1)).to_le_bytes());
    }

    /// Appends a capability (PCI 3.0 §6.7): `body` is what follows the id and next pointer, `writable` the bits of it a
    /// guest may change. Returns the capability's offset, where the id is.
    #[allow(clippy::arithmetic_side_effects, reason = "a device's own layout, before any guest runs")]
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> usize {
        let at = self.next_capability;
        self.page.set_u8(at, id);
        self.page.write(at + 2, body);
        self.allow(at + 2, writable);
        let link = if self.last_capability == 0 { CAPABILITIES_POINTER } else { self.last_capability + 1 };
        self.page.set_u8(link, at as u8);
        self.page.set_u16(STATUS, STATUS_CAPABILITIES);
        self.last_capability = at;
        self.next_capability = (at + 2 + body.len()).next_multiple_of(4);
        at
    }

    /// A guest's write: only the writable bits change.
    pub fn write(&mut self, offset: usize, data: &[u8]) {
        for (at, &new) in (offset..).zip(data) {
            if let Some(&mask) = self.writable.get(at) {
                let old = self.page.u8(at);
                self.page.set_u8(at, (old & !mask) | (new & mask));
            }
        }
    }

    /// Where BAR 0 answers now: `None` while memory decoding is off or the guest is sizing it.
    #[must_use]
    pub fn bar(&self) -> Option<u64> {
        let decoding = self.page.u16(COMMAND) & COMMAND_MEMORY != 0;
        let address = self.page.u32(BAR0);
        (decoding && self.bar_size != 0 && address != 0 && address != self.sizing_answer())
            .then_some(u64::from(address))
    }

    /// The bytes, which a guest may read as they are.
    #[must_use]
    pub fn page(&self) -> &RegisterPages {
        &self.page
    }

    /// What the BAR reads as after all ones were written to it: the size's two's complement.
    fn sizing_answer(&self) -> u32 {
        self.bar_size.wrapping_neg()
    }

    #[allow(clippy::arithmetic_side_effects, reason = "a device's own layout, before any guest runs")]
    fn allow(&mut self, offset: usize, mask: &[u8]) {
        if let Some(bytes) = self.writable.get_mut(offset..offset + mask.len()) {
            bytes.copy_from_slice(mask);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> ConfigSpace {
        let identity =
            Identity { vendor: 0x1af4, device: 0x1042, revision: 1, class: [1, 0, 0], subsystem: 0x40 };
        ConfigSpace::new(RegisterPages::new(1).unwrap(), identity)
    }

    #[test]
    fn sizing_a_bar_reads_back_its_size_and_moves_nothing() {
        let mut config = config();
        config.set_bar(0xc000_0000, 0x4000);
        assert_eq!(config.bar(), None, "decoding is off after reset");
        config.write(COMMAND, &[2, 0]);
        assert_eq!(config.bar(), Some(0xc000_0000));
        config.write(BAR0, &[0xff; 4]);
        assert_eq!(config.page().u32(BAR0), 0xffff_c000);
        assert_eq!(config.bar(), None);
        config.write(BAR0, &0xc004_0000_u32.to_le_bytes());
        assert_eq!(config.bar(), Some(0xc004_0000));
        config.write(BAR0 + 4, &[0xff; 4]);
        assert_eq!(config.page().u32(BAR0 + 4), 0, "there is no BAR 1");
    }

    #[test]
    fn capabilities_form_a_list_and_only_writable_bits_change() {
        let mut config = config();
        let first = config.add_capability(0x09, &[1, 2, 3], &[]);
        let second = config.add_capability(0x11, &[0; 10], &[0, 0xc0]);
        assert_eq!(config.page().u8(CAPABILITIES_POINTER), first as u8);
        assert_eq!(config.page().u8(first + 1), second as u8);
        assert_eq!(config.page().u8(second + 1), 0);
        assert_eq!(second % 4, 0);
        config.write(second, &[0xff; 4]);
        assert_eq!(config.page().u32(second), 0xc000_0011);
    }

    #[test]
    fn writes_beyond_the_standard_space_are_dropped() {
        let mut config = config();
        for offset in [0xfe, 0x100, 0xffc, 0xfff, 0x1000, usize::MAX - 8] {
            config.write(offset, &[0xff; 4]);
        }
        assert_eq!(config.page().u32(0x100), 0);
        assert_eq!(config.page().u32(0), 0x1042_1af4);
    }
}
