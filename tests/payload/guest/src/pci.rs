//! PCI configuration space through ECAM, one BAR, MSI-X (PCI 3.0 §6).

use crate::io::{peek, poke};

/// Where configuration space is, as the MCFG says.
pub const ECAM: u64 = 0xe000_0000;
/// Bytes of ECAM of one bus.
pub const ECAM_BYTES: u64 = 1 << 20;
/// Devices on a bus.
pub const DEVICES: u64 = 32;

const COMMAND: u64 = 0x04;
const BAR0: u64 = 0x10;
const CAPABILITIES: u64 = 0x34;
const CAPABILITY_MSIX: u8 = 0x11;
const MEMORY: u16 = 2;
const BUS_MASTER: u16 = 4;
const MSIX_ENABLE: u16 = 1 << 15;
const MSI_ADDRESS: u32 = 0xfee0_0000;

/// Function 0 of a device on bus 0.
#[derive(Debug, Clone, Copy)]
pub struct Function {
    /// Device number.
    pub device: u64,
    config: u64,
}

impl Function {
    /// The function, if it is there.
    #[must_use]
    pub fn probe(device: u64) -> Option<Self> {
        let function = Self { device, config: ECAM + (device << 15) };
        (function.id() != u32::MAX).then_some(function)
    }

    /// Every function that is there.
    pub fn scan() -> impl Iterator<Item = Self> {
        (0..DEVICES).filter_map(Self::probe)
    }

    /// Address of a configuration register.
    #[must_use]
    pub fn register(&self, offset: u64) -> u64 {
        self.config + offset
    }

    /// Device id in the high, vendor id in the low half.
    #[must_use]
    pub fn id(&self) -> u32 {
        peek(self.config)
    }

    /// The command register.
    pub fn set_command(&self, command: u16) {
        poke(self.register(COMMAND), command);
    }

    /// Memory decoding and bus mastering on.
    pub fn enable(&self) {
        self.set_command(MEMORY | BUS_MASTER);
    }

    /// BAR 0 as it reads.
    #[must_use]
    pub fn bar(&self) -> u32 {
        peek(self.register(BAR0))
    }

    /// Moves BAR 0.
    pub fn set_bar(&self, address: u32) {
        poke(self.register(BAR0), address);
    }

    /// Size of BAR 0, by the book: write ones, read the size, put the address back.
    #[must_use]
    pub fn size_bar(&self) -> u32 {
        let address = self.bar();
        self.set_bar(u32::MAX);
        let mask = self.bar() & !0xf;
        self.set_bar(address);
        mask.wrapping_neg()
    }

    /// Offsets of the capabilities with this id.
    pub fn capabilities(self, id: u8) -> impl Iterator<Item = u64> {
        let mut at = u64::from(peek::<u8>(self.register(CAPABILITIES)));
        let next = move || {
            let this = at;
            at = u64::from(peek::<u8>(self.register(at + 1)));
            (this != 0).then_some(this)
        };
        // A list cannot be longer than configuration space has room for.
        core::iter::from_fn(next).take(64).filter(move |&at| peek::<u8>(self.register(at)) == id)
    }

    /// The MSI-X capability.
    #[must_use]
    pub fn msix(self) -> Option<u64> {
        self.capabilities(CAPABILITY_MSIX).next()
    }

    /// Address of the MSI-X table.
    #[must_use]
    pub fn msix_table(self) -> Option<u64> {
        let table: u32 = peek(self.register(self.msix()? + 4));
        Some(u64::from(self.bar()) + u64::from(table & !7))
    }

    /// Number of MSI-X vectors.
    #[must_use]
    pub fn msix_vectors(self) -> u64 {
        self.msix().map_or(0, |at| u64::from(peek::<u16>(self.register(at + 2)) & 0x7ff) + 1)
    }

    /// Sends every MSI-X vector of the function to one vector of the boot CPU, and switches MSI-X on.
    pub fn route_all(self, vector: u8) {
        let (Some(capability), Some(table)) = (self.msix(), self.msix_table()) else { return };
        for entry in (0..self.msix_vectors()).map(|index| table + index * 16) {
            poke(entry, MSI_ADDRESS);
            poke(entry + 4, 0_u32);
            poke(entry + 8, u32::from(vector));
            poke(entry + 12, 0_u32);
        }
        poke(self.register(capability + 2), MSIX_ENABLE);
    }
}
