//! A hostile guest at the registers: configuration space by ECAM, BARs in the PCI window, in any width and order, while the
//! rings the registers point to change as well.

use std::sync::Arc;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};

use super::script::Script;
use super::{DATA, Driver, guest_ram};
use crate::devices::bus::BusDevice;
use crate::devices::pci::host_bridge::HostBridge;
use crate::devices::pci::root::PciRoot;
use crate::devices::registers::PAGE;
use crate::devices::virtio::transport::{BAR_SIZE, Context, VirtioPci};
use crate::devices::virtio::{F_VERSION_1, VirtioDevice};
use crate::devices::wiring::Wiring;
use crate::devices::wiring::mock::MockWiring;

const MAX_STEPS: usize = 400;
const BAR: u64 = 0xc000_0000;
const WIDTHS: [usize; 8] = [1, 2, 4, 4, 4, 8, 2, 3];

/// One function behind a root bus, and what a vCPU does to both.
struct Bus {
    ecam: Arc<dyn BusDevice>,
    window: Arc<dyn BusDevice>,
    function: Arc<VirtioPci>,
    drivers: [Driver; 2],
    memory: vm_memory::GuestMemoryMmap,
}

/// Plays a script against the registers of `device`.
///
/// # Panics
/// When the function cannot be set up.
pub fn play(device: Arc<dyn VirtioDevice>, script: &[u8]) {
    let (wiring, memory) = (Arc::new(MockWiring::default()), guest_ram());
    let root = Arc::new(PciRoot::new(2, || {}).unwrap());
    root.plug(0, Arc::new(HostBridge::new(root.config_page(0))));
    let context = Context {
        memory: memory.clone(),
        wiring: Arc::clone(&wiring) as Arc<dyn Wiring>,
        config_page: root.config_page(1),
        bar: BAR as u32,
        slot: 1,
    };
    let function = VirtioPci::new(device, context).unwrap();
    root.plug(1, Arc::clone(&function) as _);
    let drivers = [0, 1].map(|index| Driver::new(&memory, index, 8));
    let mut bus = Bus { ecam: root.ecam(), window: root.window(0), function, drivers, memory };
    let mut script = Script::new(script);
    for _ in 0..MAX_STEPS {
        let Some(step) = script.byte() else { break };
        bus.step(step, &mut script);
    }
    bus.function.shut_down();
    assert_eq!(wiring.refused(), 0, "a doorbell was attached twice, or detached without being there");
}

impl Bus {
    fn step(&mut self, step: u8, script: &mut Script<'_>) {
        let width = WIDTHS[usize::from(step >> 5)];
        match step % 16 {
            0..=2 => {
                let slot =
                    if step & 0x10 == 0 { 8 * PAGE as u64 } else { script.number() % (16 * PAGE as u64) };
                let offset = slot + u64::from(script.byte().unwrap_or(0));
                let mut data = [0; 8];
                self.ecam.write(offset, script.bytes(width));
                self.ecam.read(offset, &mut data[..width]);
            }
            3..=6 => self.access(u64::from(script.byte().unwrap_or(0)) % 64, width, script),
            7 => self.access(script.number() % u64::from(BAR_SIZE), width, script),
            8 => self.bring_up(),
            9 => self.access(20, 1, script),
            10 => self.decode(step & 0x10 != 0),
            11 => {
                let queue = usize::from(step >> 7);
                self.drivers[queue].offer(&[super::writable(DATA, 64), super::readable(DATA + 64, 16)]);
                self.window.write(BAR + 3 * PAGE as u64 + 4 * queue as u64, &[0; 4]);
            }
            12 => {
                let number = script.number();
                let _ = self.memory.write_obj(number, GuestAddress(0x1000 + number % 0x4000));
            }
            13 => self.function.announce_config_change(),
            14 => {
                self.function.pause();
                assert!(self.function.wait_for_rest(Instant::now() + Duration::from_secs(30)));
                self.function.resume();
            }
            _ => self.access(PAGE as u64 + u64::from(script.byte().unwrap_or(0)), width, script),
        }
    }

    fn access(&self, offset: u64, width: usize, script: &mut Script<'_>) {
        let mut data = [0; 8];
        self.window.write(BAR + offset, script.bytes(width));
        self.window.read(BAR + offset, &mut data[..width]);
    }

    fn decode(&self, on: bool) {
        self.ecam.write(8 * PAGE as u64 + 4, &[if on { 6 } else { 0 }, 0]);
    }

    /// What an honest driver does.
    fn bring_up(&mut self) {
        self.decode(true);
        let write = |offset: u64, data: &[u8]| self.window.write(BAR + offset, data);
        write(20, &[0]);
        self.drivers.iter().for_each(Driver::clear);
        self.drivers = [0, 1].map(|index| Driver::new(&self.memory, index, 8));
        for half in [0_u32, 1] {
            let mut offered = [0; 4];
            write(0, &half.to_le_bytes());
            self.window.read(BAR + 4, &mut offered);
            write(8, &half.to_le_bytes());
            let required = (F_VERSION_1 >> (32 * half)) as u32;
            write(12, &(u32::from_le_bytes(offered) | required).to_le_bytes());
        }
        write(20, &[0xb]);
        for (index, driver) in self.drivers.iter().enumerate() {
            write(22, &(index as u16).to_le_bytes());
            write(24, &8_u16.to_le_bytes());
            for (register, address) in [32, 40, 48].into_iter().zip(driver.addresses()) {
                write(register, &(address as u32).to_le_bytes());
            }
            write(28, &[1, 0]);
        }
        write(20, &[0xf]);
    }
}
