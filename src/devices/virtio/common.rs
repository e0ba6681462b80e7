//! The common configuration structure (virtio 1.2 §4.1.4.3): what the driver negotiates and where its queues are.
//!
//! State without descriptors or threads: a write changes it, refreshes the register bytes, and says what should follow.

mod alarm;

pub use self::alarm::Alarm;
use super::F_VERSION_1;
use crate::devices::registers::RegisterPages;

/// Length of the structure in bytes.
pub const LENGTH: usize = 60;
/// The vector that means none (virtio 1.2 §4.1.4.3).
pub const NO_VECTOR: u16 = 0xffff;

const DEVICE_FEATURE_SELECT: usize = 0;
const DEVICE_FEATURE: usize = 4;
const DRIVER_FEATURE_SELECT: usize = 8;
const DRIVER_FEATURE: usize = 12;
const CONFIG_VECTOR: usize = 16;
const NUM_QUEUES: usize = 18;
const DEVICE_STATUS: usize = 20;
const CONFIG_GENERATION: usize = 21;
const QUEUE_SELECT: usize = 22;
const QUEUE_SIZE: usize = 24;
const QUEUE_VECTOR: usize = 26;
const QUEUE_ENABLE: usize = 28;
const QUEUE_NOTIFY_OFFSET: usize = 30;
const QUEUE_DESC: usize = 32;
const QUEUE_DRIVER: usize = 40;
const QUEUE_DEVICE: usize = 48;

/// Device status bits (virtio 1.2 §2.1).
pub mod status {
    /// The driver is set up.
    pub const DRIVER_OK: u8 = 4;
    /// Feature negotiation is complete.
    pub const FEATURES_OK: u8 = 8;
    /// The device cannot go on until it is reset.
    pub const NEEDS_RESET: u8 = 64;
}

/// What should follow a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Follow {
    /// Nothing.
    Nothing,
    /// The driver is ready: start the device.
    Start,
    /// The driver reset the device.
    Reset,
}

/// One queue as the driver set it up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueSetup {
    /// Most entries it can have.
    pub max_size: u16,
    /// Entries the driver chose.
    pub size: u16,
    /// MSI-X vector, or [`NO_VECTOR`].
    pub vector: u16,
    /// Whether the driver enabled it.
    pub enabled: bool,
    /// Descriptor table.
    pub desc: u64,
    /// Available ring.
    pub driver: u64,
    /// Used ring.
    pub device: u64,
}

/// The structure and the register bytes that show it.
#[derive(Debug)]
pub struct CommonConfig {
    registers: RegisterPages,
    alarm: Alarm,
    vectors: u16,
    offered: u64,
    accepted: u64,
    device_select: u32,
    driver_select: u32,
    config_vector: u16,
    status: u8,
    queue_select: u16,
    queues: Vec<QueueSetup>,
}

impl CommonConfig {
    /// The structure after reset: `features` are all it offers, `queue_sizes` the most each queue can have, `vectors`
    /// the number of MSI-X vectors.
    #[must_use]
    pub fn new(registers: RegisterPages, features: u64, queue_sizes: &[u16], vectors: u16) -> Self {
        let queue = |&max_size| QueueSetup {
            max_size,
            size: max_size,
            vector: NO_VECTOR,
            enabled: false,
            desc: 0,
            driver: 0,
            device: 0,
        };
        let alarm = Alarm::new(registers.clone());
        let common = Self {
            registers,
            alarm,
            vectors,
            offered: features,
            accepted: 0,
            device_select: 0,
            driver_select: 0,
            config_vector: NO_VECTOR,
            status: 0,
            queue_select: 0,
            queues: queue_sizes.iter().map(queue).collect(),
        };
        common.refresh();
        common
    }

    /// Features both sides agreed on.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.accepted
    }

    /// The way to say that the device cannot go on.
    #[must_use]
    pub fn alarm(&self) -> &Alarm {
        &self.alarm
    }

    /// The queues as the driver set them up.
    #[must_use]
    pub fn queues(&self) -> &[QueueSetup] {
        &self.queues
    }

    /// Back to how [`CommonConfig::new`] made it.
    pub fn reset(&mut self) {
        let sizes: Vec<u16> = self.queues.iter().map(|queue| queue.max_size).collect();
        let alarm = self.alarm.clone();
        alarm.clear();
        *self = Self { alarm, ..Self::new(self.registers.clone(), self.offered, &sizes, self.vectors) };
    }

    /// A driver's write. Registers are written at their own width, 64-bit ones as two halves (virtio 1.2 §4.1.3.1); any
    /// other access is dropped.
    pub fn write(&mut self, offset: usize, data: &[u8]) -> Follow {
        let follow = match *data {
            [value] => self.write_u8(offset, value),
            [a, b] => self.write_u16(offset, u16::from_le_bytes([a, b])),
            [a, b, c, d] => self.write_u32(offset, u32::from_le_bytes([a, b, c, d])),
            _ => Follow::Nothing,
        };
        self.refresh();
        follow
    }

    fn write_u8(&mut self, offset: usize, value: u8) -> Follow {
        if offset == DEVICE_STATUS { self.write_status(value) } else { Follow::Nothing }
    }

    fn write_status(&mut self, value: u8) -> Follow {
        if value == 0 {
            return Follow::Reset;
        }
        let added = value & !self.status;
        // Only a reset takes a bit back (virtio 1.2 §2.1.1), and NEEDS_RESET is the device's to set.
        let mut accepted = (self.status | value) & !status::NEEDS_RESET;
        if added & status::FEATURES_OK != 0 && !self.features_are_acceptable() {
            accepted &= !status::FEATURES_OK;
        }
        self.status = accepted;
        let ready = added & status::DRIVER_OK != 0 && accepted & status::FEATURES_OK != 0;
        if ready { Follow::Start } else { Follow::Nothing }
    }

    fn features_are_acceptable(&self) -> bool {
        self.accepted & !self.offered == 0 && self.accepted & F_VERSION_1 != 0
    }

    fn write_u16(&mut self, offset: usize, value: u16) -> Follow {
        let vector = if value < self.vectors { value } else { NO_VECTOR };
        match offset {
            CONFIG_VECTOR => self.config_vector = vector,
            QUEUE_SELECT => self.queue_select = value,
            QUEUE_SIZE => self.set_up_queue(|queue| {
                if value.is_power_of_two() && value <= queue.max_size {
                    queue.size = value;
                }
            }),
            QUEUE_VECTOR => self.set_up_queue(|queue| queue.vector = vector),
            QUEUE_ENABLE => self.set_up_queue(|queue| queue.enabled |= value == 1),
            _ => {}
        }
        Follow::Nothing
    }

    fn write_u32(&mut self, offset: usize, value: u32) -> Follow {
        let half = |old: u64, at: usize| {
            if at == 0 {
                old & !0xffff_ffff | u64::from(value)
            } else {
                old & 0xffff_ffff | u64::from(value) << 32
            }
        };
        match offset {
            DEVICE_FEATURE_SELECT => self.device_select = value,
            DRIVER_FEATURE_SELECT => self.driver_select = value,
            DRIVER_FEATURE if self.status & status::FEATURES_OK == 0 => match self.driver_select {
                0 => self.accepted = half(self.accepted, 0),
                1 => self.accepted = half(self.accepted, 4),
                _ => {}
            },
            QUEUE_DESC..QUEUE_DRIVER if offset.is_multiple_of(4) => {
                self.set_up_queue(|queue| queue.desc = half(queue.desc, offset % 8));
            }
            QUEUE_DRIVER..QUEUE_DEVICE if offset.is_multiple_of(4) => {
                self.set_up_queue(|queue| queue.driver = half(queue.driver, offset % 8));
            }
            QUEUE_DEVICE..56 if offset.is_multiple_of(4) => {
                self.set_up_queue(|queue| queue.device = half(queue.device, offset % 8));
            }
            _ => {}
        }
        Follow::Nothing
    }

    /// Changes the selected queue, unless it is in use already.
    fn set_up_queue(&mut self, change: impl FnOnce(&mut QueueSetup)) {
        let running = self.status & status::DRIVER_OK != 0;
        match self.queues.get_mut(usize::from(self.queue_select)) {
            Some(queue) if !queue.enabled && !running => change(queue),
            _ => {}
        }
    }

    fn refresh(&self) {
        let registers = &self.registers;
        let word = |bits: u64, select: u32| match select {
            0 => bits as u32,
            1 => (bits >> 32) as u32,
            _ => 0,
        };
        registers.set_u32(DEVICE_FEATURE_SELECT, self.device_select);
        registers.set_u32(DEVICE_FEATURE, word(self.offered, self.device_select));
        registers.set_u32(DRIVER_FEATURE_SELECT, self.driver_select);
        registers.set_u32(DRIVER_FEATURE, word(self.accepted, self.driver_select));
        registers.set_u16(CONFIG_VECTOR, self.config_vector);
        registers.set_u16(NUM_QUEUES, self.queues.len() as u16);
        self.alarm.show(self.status);
        registers.set_u16(QUEUE_SELECT, self.queue_select);
        let selected = self.queues.get(usize::from(self.queue_select));
        let field = |value: fn(&QueueSetup) -> u16| selected.map_or(0, value);
        registers.set_u16(QUEUE_SIZE, field(|queue| queue.size));
        registers.set_u16(QUEUE_VECTOR, selected.map_or(NO_VECTOR, |queue| queue.vector));
        registers.set_u16(QUEUE_ENABLE, field(|queue| queue.enabled.into()));
        registers.set_u16(QUEUE_NOTIFY_OFFSET, if selected.is_some() { self.queue_select } else { 0 });
        let address = |value: fn(&QueueSetup) -> u64| selected.map_or(0, value).to_le_bytes();
        registers.write(QUEUE_DESC, &address(|queue| queue.desc));
        registers.write(QUEUE_DRIVER, &address(|queue| queue.driver));
        registers.write(QUEUE_DEVICE, &address(|queue| queue.device));
    }
}

#[cfg(test)]
mod tests;
