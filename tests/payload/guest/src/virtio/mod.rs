//! virtio 1.x drivers over PCI (virtio 1.2 §4.1): the transport here, rings in [`queue`], one file per device.

pub mod console;
pub mod disk;
pub mod queue;
pub mod rng;

use crate::io::{peek, poke};
use crate::pci::Function;
use crate::{heap, interrupts};
use queue::Queue;

const VENDOR: u32 = 0x1af4;
const DEVICE_BASE: u32 = 0x1040;
const CAPABILITY: u8 = 9;
const NO_VECTOR: u16 = 0xffff;

/// Feature bits.
pub const F_INDIRECT: u64 = 1 << 28;
/// VIRTIO_F_EVENT_IDX.
pub const F_EVENT_IDX: u64 = 1 << 29;
/// VIRTIO_F_VERSION_1.
pub const F_VERSION_1: u64 = 1 << 32;

/// Status bits.
pub const DRIVER_OK: u8 = 4;
/// FEATURES_OK.
pub const FEATURES_OK: u8 = 8;
/// DEVICE_NEEDS_RESET.
pub const NEEDS_RESET: u8 = 64;
/// ACKNOWLEDGE and DRIVER.
const KNOWN: u8 = 3;

/// Registers of the common configuration (virtio 1.2 §4.1.4.3).
pub mod common {
    /// device_feature_select.
    pub const DEVICE_FEATURE_SELECT: u64 = 0;
    /// device_feature.
    pub const DEVICE_FEATURE: u64 = 4;
    /// driver_feature_select.
    pub const DRIVER_FEATURE_SELECT: u64 = 8;
    /// driver_feature.
    pub const DRIVER_FEATURE: u64 = 12;
    /// config_msix_vector.
    pub const CONFIG_VECTOR: u64 = 16;
    /// num_queues.
    pub const NUM_QUEUES: u64 = 18;
    /// device_status.
    pub const STATUS: u64 = 20;
    /// queue_select.
    pub const QUEUE_SELECT: u64 = 22;
    /// queue_size.
    pub const QUEUE_SIZE: u64 = 24;
    /// queue_msix_vector.
    pub const QUEUE_VECTOR: u64 = 26;
    /// queue_enable.
    pub const QUEUE_ENABLE: u64 = 28;
    /// queue_notify_off.
    pub const QUEUE_NOTIFY_OFF: u64 = 30;
    /// queue_desc.
    pub const QUEUE_DESC: u64 = 32;
    /// queue_driver.
    pub const QUEUE_DRIVER: u64 = 40;
    /// queue_device.
    pub const QUEUE_DEVICE: u64 = 48;
}

/// The device asked to be reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NeedsReset;

/// Where a queue's three parts are.
#[derive(Debug, Clone, Copy)]
pub struct Rings {
    /// Descriptor table.
    pub desc: u64,
    /// Available ring.
    pub driver: u64,
    /// Used ring.
    pub device: u64,
}

impl Rings {
    /// Fresh memory for `size` entries.
    #[must_use]
    pub fn new(size: u16) -> Self {
        let size = u64::from(size);
        Self {
            desc: heap::take(size * 16, 16),
            driver: heap::take(6 + size * 2, 2),
            device: heap::take(6 + size * 8, 4),
        }
    }
}

/// One virtio function with its structures found.
#[derive(Debug, Clone, Copy)]
pub struct Device {
    /// The PCI function.
    pub function: Function,
    /// Vector of the boot CPU that its interrupts go to; `None` without MSI-X.
    pub vector: Option<u8>,
    /// Offsets in BAR 0, by capability type 1 to 4.
    offsets: [u64; 5],
    notify_multiplier: u64,
}

impl Device {
    /// The `nth` device of virtio type `kind`, with its BAR enabled.
    #[must_use]
    pub fn find(kind: u32, nth: usize) -> Option<Self> {
        let id = (DEVICE_BASE + kind) << 16 | VENDOR;
        Function::scan().filter(|function| function.id() == id).nth(nth).map(Self::open)
    }

    /// Every virtio device.
    pub fn all() -> impl Iterator<Item = Self> {
        Function::scan().filter(|function| function.id() & 0xffff == VENDOR).map(Self::open)
    }

    fn open(function: Function) -> Self {
        function.enable();
        let mut offsets = [0; 5];
        let mut notify_multiplier = 0;
        for at in function.capabilities(CAPABILITY) {
            let kind: u8 = peek(function.register(at + 3));
            if let Some(offset) = offsets.get_mut(usize::from(kind)) {
                *offset = u64::from(peek::<u32>(function.register(at + 8)));
            }
            if kind == 2 {
                notify_multiplier = u64::from(peek::<u32>(function.register(at + 16)));
            }
        }
        Self { function, vector: None, offsets, notify_multiplier }
    }

    fn bar(&self) -> u64 {
        u64::from(self.function.bar())
    }

    /// Address of a register of the common configuration.
    #[must_use]
    pub fn common(&self, register: u64) -> u64 {
        self.bar() + self.offsets[1] + register
    }

    /// Address of a register of the device's own configuration.
    #[must_use]
    pub fn config(&self, register: u64) -> u64 {
        self.bar() + self.offsets[4] + register
    }

    /// Address of a queue's doorbell, by its queue_notify_off.
    #[must_use]
    pub fn doorbell(&self, notify_off: u64) -> u64 {
        self.bar() + self.offsets[2] + notify_off * self.notify_multiplier
    }

    /// Address of the ISR status.
    #[must_use]
    pub fn isr(&self) -> u64 {
        self.bar() + self.offsets[3]
    }

    /// device_status.
    #[must_use]
    pub fn status(&self) -> u8 {
        peek(self.common(common::STATUS))
    }

    /// Writes device_status.
    pub fn set_status(&self, status: u8) {
        poke(self.common(common::STATUS), status);
    }

    /// Whether it asks to be reset.
    #[must_use]
    pub fn needs_reset(&self) -> bool {
        self.status() & NEEDS_RESET != 0
    }

    /// Resets it and waits until it has.
    pub fn reset(&self) {
        self.set_status(0);
        while self.status() != 0 {}
    }

    /// What it offers.
    #[must_use]
    pub fn offered(&self) -> u64 {
        let half = |select: u32| {
            poke(self.common(common::DEVICE_FEATURE_SELECT), select);
            u64::from(peek::<u32>(self.common(common::DEVICE_FEATURE)))
        };
        half(0) | half(1) << 32
    }

    /// Resets it and agrees on `features`; whether it accepts them.
    #[must_use]
    pub fn negotiate(&self, features: u64) -> bool {
        self.reset();
        self.agree(features);
        self.status() & FEATURES_OK != 0
    }

    /// Asks for `features` without looking at what becomes of it.
    pub fn agree(&self, features: u64) {
        self.set_status(1);
        self.set_status(KNOWN);
        for half in [0, 1] {
            poke(self.common(common::DRIVER_FEATURE_SELECT), half);
            poke(self.common(common::DRIVER_FEATURE), (features >> (32 * half)) as u32);
        }
        self.set_status(KNOWN | FEATURES_OK);
    }

    /// Sends its interrupts, of every queue and of configuration changes, to a vector of the boot CPU.
    pub fn use_interrupts(&mut self, vector: u8) {
        self.function.route_all(vector);
        self.vector = Some(vector);
    }

    /// Tells the device where queue `index` is, without enabling it.
    pub fn place_queue(&self, index: u16, size: u16, rings: Rings) {
        poke(self.common(common::QUEUE_SELECT), index);
        poke(self.common(common::QUEUE_SIZE), size);
        let vector = if self.vector.is_some() { index + 1 } else { NO_VECTOR };
        poke(self.common(common::QUEUE_VECTOR), vector);
        let parts = [rings.desc, rings.driver, rings.device];
        for (address, register) in parts.into_iter().zip((common::QUEUE_DESC..).step_by(8)) {
            poke(self.common(register), address as u32);
            poke(self.common(register + 4), (address >> 32) as u32);
        }
    }

    /// Enables the selected queue.
    pub fn enable_queue(&self) {
        poke(self.common(common::QUEUE_ENABLE), 1_u16);
    }

    /// Sets up queue `index` with fresh rings and enables it.
    #[must_use]
    pub fn set_up_queue(&self, index: u16, size: u16, features: u64) -> Queue {
        let rings = Rings::new(size);
        self.place_queue(index, size, rings);
        let doorbell = self.doorbell(peek::<u16>(self.common(common::QUEUE_NOTIFY_OFF)).into());
        self.enable_queue();
        Queue::new(rings, size, doorbell, features & F_EVENT_IDX != 0)
    }

    /// The driver is ready.
    pub fn start(&self) {
        if self.vector.is_some() {
            poke(self.common(common::CONFIG_VECTOR), 0_u16);
        }
        self.set_status(KNOWN | FEATURES_OK | DRIVER_OK);
    }

    /// Waits for the next used chain of `queue`: its head and the bytes written to it.
    ///
    /// # Errors
    /// When the device asks to be reset instead.
    pub fn wait(&self, queue: &mut Queue) -> Result<(u32, u32), NeedsReset> {
        loop {
            let seen = self.vector.map(interrupts::count);
            if let Some(used) = queue.take() {
                return Ok(used);
            }
            if self.needs_reset() {
                return Err(NeedsReset);
            }
            match (self.vector, seen) {
                (Some(vector), Some(seen)) => {
                    crate::gate::halt_while_equal(interrupts::counter(vector), seen);
                }
                _ => core::hint::spin_loop(),
            }
        }
    }
}
