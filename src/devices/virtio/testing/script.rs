//! A hostile driver whose every step is read from bytes: fuzz targets and property tests let it loose on a device's queue
//! handlers.
//!
//! Any bytes are a script. Most steps are nearly right, so that they get past the first check: rings that lie in RAM, chains
//! whose buffers begin where the script wrote something, lengths that headers have.

use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::{Buffer, DATA, Driver, HIGH_RAM, HOLE, RAM_BYTES, guest_ram, open_msix};
use crate::devices::pci::msix::Msix;
use crate::devices::virtio::queue::Queues;
use crate::devices::virtio::transport::ConfigChange;
use crate::devices::virtio::{F_EVENT_IDX, F_VERSION_1, Fault, Lane, Start, VirtioDevice};

/// A script longer than this says nothing new.
const MAX_STEPS: usize = 400;
/// The largest ring the script's driver lays out.
const MAX_RING: u16 = 256;
/// Lengths that mean something to a device.
const LENGTHS: [u32; 16] = [0, 1, 4, 8, 10, 12, 16, 20, 24, 44, 512, 4096, 4097, 65536, 0x10_0000, u32::MAX];
/// What feature bits a script chooses from when it is not one of ours.
const DENSE: u64 = u64::MAX;

/// The bytes of a script that are left.
#[derive(Debug)]
pub struct Script<'b>(&'b [u8]);

impl<'b> Script<'b> {
    /// A script of these bytes.
    #[must_use]
    pub fn new(bytes: &'b [u8]) -> Self {
        Self(bytes)
    }

    /// The next byte; `None` at the end.
    pub fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    /// The next number, zeros where the script ends.
    pub fn number(&mut self) -> u64 {
        let mut bytes = [0; 8];
        bytes.iter_mut().for_each(|byte| *byte = self.byte().unwrap_or(0));
        u64::from_le_bytes(bytes)
    }

    /// At most `most` bytes.
    pub fn bytes(&mut self, most: usize) -> &'b [u8] {
        let (taken, rest) = self.0.split_at(most.min(self.0.len()));
        self.0 = rest;
        taken
    }
}

/// Plays a script against `device`. `host` plays the other side: it is called for a step of the host's, with what is left
/// of the script.
pub fn play(device: &Arc<dyn VirtioDevice>, script: &[u8], mut host: impl FnMut(&mut Script<'_>)) {
    let mut script = Script::new(script);
    let mut stage = Stage::set(device, &mut script);
    for _ in 0..MAX_STEPS {
        let Some(step) = script.byte() else { break };
        let done = match step % 16 {
            0..=3 => stage.offer(&mut script),
            4 | 5 => stage.scribble(&mut script),
            6 => stage.corrupt(&mut script),
            7..=10 => stage.ring(&mut script),
            11 => stage.wake(&mut script),
            12 => {
                host(&mut script);
                Ok(())
            }
            13 => {
                let offset = usize::from(script.byte().unwrap_or(0));
                device.write_config(offset, script.bytes(8));
                let _ = device.config();
                Ok(())
            }
            14 => stage.quiesce(),
            _ => {
                stage.clear();
                stage = Stage::set(device, &mut script);
                Ok(())
            }
        };
        if done.is_err() {
            // The driver sees DEVICE_NEEDS_RESET and resets.
            stage.clear();
            stage = Stage::set(device, &mut script);
        }
    }
    let _ = device.counters()();
    let _ = device.backend();
    stage.clear();
}

/// A started device and its driver.
struct Stage<'d> {
    device: &'d Arc<dyn VirtioDevice>,
    memory: GuestMemoryMmap,
    drivers: Vec<Driver>,
    lanes: Vec<(Lane, Queues)>,
    _msix: Arc<Msix>,
}

impl<'d> Stage<'d> {
    /// Negotiates and starts as the script wants it.
    fn set(device: &'d Arc<dyn VirtioDevice>, script: &mut Script<'_>) -> Self {
        let memory = guest_ram();
        let sizes = device.queue_sizes();
        let (_, msix) = open_msix(sizes.len() as u16);
        let wanted = if script.byte().unwrap_or(0) < 192 { DENSE } else { script.number() };
        let features = device.features() & wanted | F_VERSION_1 | wanted & F_EVENT_IDX;
        let (mut drivers, mut queues) = (Vec::new(), Vec::new());
        for (index, most) in sizes.iter().enumerate() {
            let choice = script.byte().unwrap_or(0);
            let size = (1 << (choice % 9)).min(*most).min(MAX_RING);
            let driver = Driver::new(&memory, index as u16, size);
            let enabled = choice < 240;
            queues.push(enabled.then(|| driver.device(features & F_EVENT_IDX != 0, &msix)));
            drivers.push(driver);
        }
        let mut queues = Queues(queues);
        let config = ConfigChange::unheard(device);
        let start = Start { features, memory: &memory, queues: &mut queues, config };
        let lanes = device.start(start).unwrap_or_default();
        let split = |lane: Lane| {
            let queues = queues.split_off(&lane.queues);
            (lane, queues)
        };
        let lanes = lanes.into_iter().map(split).collect();
        Self { device, memory, drivers, lanes, _msix: msix }
    }

    /// Resets.
    fn clear(&mut self) {
        for (lane, queues) in &mut self.lanes {
            let _ = lane.handler.quiesce(queues);
        }
        self.lanes.clear();
        self.device.stop();
    }

    fn quiesce(&mut self) -> Result<(), Fault> {
        self.lanes.iter_mut().try_for_each(|(lane, queues)| lane.handler.quiesce(queues))
    }

    fn pick(&self, script: &mut Script<'_>) -> usize {
        usize::from(script.byte().unwrap_or(0)) % self.drivers.len().max(1)
    }

    /// Makes a chain available, sometimes through a table of its own.
    fn offer(&mut self, script: &mut Script<'_>) -> Result<(), Fault> {
        let index = self.pick(script);
        let shape = script.byte().unwrap_or(0);
        let count = 1 + usize::from(shape % 6);
        let chain: Vec<Buffer> = (0..count).map(|_| buffer(script)).collect();
        let Some(driver) = self.drivers.get_mut(index) else { return Ok(()) };
        if shape & 0x40 == 0 {
            driver.offer(&chain);
        } else {
            driver.offer_indirect(DATA + 0x8_0000 + u64::from(shape) * 256, &chain);
        }
        Ok(())
    }

    /// Writes bytes where buffers begin.
    fn scribble(&mut self, script: &mut Script<'_>) -> Result<(), Fault> {
        let at = DATA + 16 * u64::from(script.byte().unwrap_or(0));
        let len = usize::from(script.byte().unwrap_or(0)) % 65;
        let _ = self.memory.write_slice(script.bytes(len), GuestAddress(at));
        Ok(())
    }

    /// Breaks a ring.
    fn corrupt(&mut self, script: &mut Script<'_>) -> Result<(), Fault> {
        let index = self.pick(script);
        let (how, number) = (script.byte().unwrap_or(0), script.number());
        let Some(driver) = self.drivers.get(index) else { return Ok(()) };
        match how % 4 {
            0 => driver.set_available(number as u16),
            1 => driver.offer_head(number as u16),
            2 => driver.set_used_event(number as u16),
            _ => {
                let (flags, next) = ((number >> 8) as u16 & 7, (number >> 16) as u16 & 0x1ff);
                driver.store(
                    number as u16 & 0xff,
                    DATA + (number >> 32 & 0xffff),
                    number as u32 >> 12,
                    flags,
                    next,
                );
            }
        }
        Ok(())
    }

    /// Rings a doorbell.
    fn ring(&mut self, script: &mut Script<'_>) -> Result<(), Fault> {
        let index = self.pick(script);
        for (lane, queues) in &mut self.lanes {
            if lane.queues.contains(&index) {
                lane.handler.on_queue(queues, index)?;
            }
        }
        Ok(())
    }

    /// A host descriptor is ready, or claims to be.
    fn wake(&mut self, script: &mut Script<'_>) -> Result<(), Fault> {
        let number = usize::from(script.byte().unwrap_or(0));
        for (lane, queues) in &mut self.lanes {
            let sources = lane.handler.host_sources().len();
            if let Some(source) = number.checked_rem(sources) {
                let _ = lane.handler.on_host(queues, source)?;
            }
        }
        Ok(())
    }
}

/// A buffer near what the script wrote, or somewhere it should not be.
fn buffer(script: &mut Script<'_>) -> Buffer {
    let (place, len) = (script.byte().unwrap_or(0), script.byte().unwrap_or(0));
    let len = LENGTHS[usize::from(len % 16)].saturating_sub(u32::from(len >> 6));
    let near = 16 * u64::from(script.byte().unwrap_or(0));
    let address = match place % 16 {
        0..=9 => DATA + near,
        10 => HOLE.saturating_sub(near),
        11 => HIGH_RAM + near,
        12 => HIGH_RAM + RAM_BYTES - near,
        13 => near,
        14 => u64::MAX - near,
        _ => script.number(),
    };
    Buffer { address, len, writable: place & 0x80 != 0 }
}
