//! A function on a bus, with everything a driver does to it.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use vm_memory::GuestMemoryMmap;

use crate::devices::bus::BusDevice;
use crate::devices::pci::root::{PciFunction, PciRoot};
use crate::devices::registers::PAGE;
use crate::devices::virtio::queue::Queues;
use crate::devices::virtio::testing::{Driver, guest_ram};
use crate::devices::virtio::transport::{Context, VirtioPci};
use crate::devices::virtio::{
    F_EVENT_IDX, F_VERSION_1, Fault, Kind, Lane, QueueHandler, Start, VirtioDevice,
};
use crate::devices::wiring::Wiring;
use crate::devices::wiring::mock::MockWiring;

/// Where the BAR starts out.
pub(super) const BAR: u64 = 0xc000_0000;
/// Where it can be moved.
pub(super) const MOVED: u64 = 0xc123_4000;
pub(super) const SLOT: u32 = 7;
pub(super) const COMMAND: u64 = 4;
/// The one feature the fake device has.
pub(super) const FEATURE: u64 = 1 << 5;

const DEVICE: u64 = 1;
const LONG: Duration = Duration::from_secs(30);

/// What the device was told to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Told {
    Started(u64),
    Served(usize),
    Config(usize, Vec<u8>),
    Stopped,
}

struct Fake(Sender<Told>);

impl VirtioDevice for Fake {
    fn kind(&self) -> Kind {
        Kind { id: 63, name: "fake", class: [0xff, 0] }
    }

    fn features(&self) -> u64 {
        FEATURE
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![8, 8]
    }

    fn config(&self) -> Vec<u8> {
        vec![1, 2, 3, 4]
    }

    fn write_config(&self, offset: usize, data: &[u8]) {
        let _ = self.0.send(Told::Config(offset, data.to_vec()));
    }

    fn start(&self, start: Start<'_>) -> Result<Vec<Lane>, Fault> {
        let _ = self.0.send(Told::Started(start.features));
        Ok(Lane::all(2, FakeHandler(self.0.clone())))
    }

    fn stop(&self) {
        let _ = self.0.send(Told::Stopped);
    }
}

struct FakeHandler(Sender<Told>);

impl QueueHandler for FakeHandler {
    fn on_queue(&mut self, queues: &mut Queues, index: usize) -> Result<(), Fault> {
        if let Some(queue) = queues.get(index) {
            queue.serve(|_, _| Ok(4))?;
        }
        let _ = self.0.send(Told::Served(index));
        Ok(())
    }
}

/// A window into the BAR, as a virtio capability describes it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Window {
    pub(super) at: u64,
    pub(super) bar: u8,
    pub(super) offset: u32,
    pub(super) len: u32,
}

/// The function under test and the driver's side of it.
pub(super) struct Function {
    pub(super) drivers: [Driver; 2],
    pub(super) wiring: Arc<MockWiring>,
    pub(super) memory: GuestMemoryMmap,
    pub(super) pci: Arc<VirtioPci>,
    ecam: Arc<dyn BusDevice>,
    window: Arc<dyn BusDevice>,
    told: Receiver<Told>,
}

impl Function {
    pub(super) fn new() -> Self {
        let (sender, told) = channel();
        Self::of(Arc::new(Fake(sender)), told)
    }

    /// The function of another device than the fake one.
    pub(super) fn of(device: Arc<dyn VirtioDevice>, told: Receiver<Told>) -> Self {
        let (wiring, memory) = (Arc::new(MockWiring::default()), guest_ram());
        let root = Arc::new(PciRoot::new(2, || {}).unwrap());
        let context = Context {
            memory: memory.clone(),
            wiring: Arc::clone(&wiring) as Arc<dyn Wiring>,
            config_page: root.config_page(DEVICE as usize),
            bar: BAR as u32,
            slot: SLOT,
        };
        let pci = VirtioPci::new(device, context).unwrap();
        root.plug(DEVICE as usize, Arc::clone(&pci) as _);
        let drivers = [Driver::new(&memory, 0, 8), Driver::new(&memory, 1, 8)];
        Self { drivers, wiring, memory, pci, ecam: root.ecam(), window: root.window(0), told }
    }

    /// What the device was told next.
    pub(super) fn told(&self) -> Told {
        self.told.recv_timeout(LONG).unwrap()
    }

    /// The write into its configuration that the device was told next of, after its start.
    pub(super) fn told_of_config(&self) -> (usize, Vec<u8>) {
        loop {
            match self.told() {
                Told::Config(offset, data) => return (offset, data),
                Told::Started(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// Whether the device was told nothing so far but what the driver wrote into its configuration.
    pub(super) fn is_silent(&self) -> bool {
        self.told.try_iter().all(|told| matches!(told, Told::Config(..)))
    }

    pub(super) fn state(&self) -> String {
        self.pci.facts().state
    }

    /// Reads configuration space.
    pub(super) fn config(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.ecam.read(DEVICE * 8 * PAGE as u64 + offset, &mut data);
        data
    }

    pub(super) fn config_u32(&self, offset: u64) -> u32 {
        u32::from_le_bytes(self.config(offset, 4).try_into().unwrap())
    }

    pub(super) fn config_write(&self, offset: u64, data: &[u8]) {
        self.ecam.write(DEVICE * 8 * PAGE as u64 + offset, data);
    }

    /// Reads the BAR, wherever it is.
    pub(super) fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.window.read(self.bar() + offset, &mut data);
        data
    }

    pub(super) fn read_u32(&self, offset: u64) -> u32 {
        u32::from_le_bytes(self.read(offset, 4).try_into().unwrap())
    }

    pub(super) fn write(&self, offset: u64, data: &[u8]) {
        self.window.write(self.bar() + offset, data);
    }

    pub(super) fn bar(&self) -> u64 {
        u64::from(self.config_u32(0x10))
    }

    /// Switches memory decoding.
    pub(super) fn decode(&self, on: bool) {
        self.config_write(COMMAND, &[if on { 6 } else { 0 }, 0]);
    }

    pub(super) fn move_bar(&self, to: u64) {
        self.config_write(0x10, &(to as u32).to_le_bytes());
    }

    /// Where the capabilities are, in list order.
    pub(super) fn capabilities(&self) -> Vec<u64> {
        assert!(self.config(6, 1)[0] & 0x10 != 0, "the status register announces a list");
        let mut list = Vec::new();
        let mut at = u64::from(self.config(0x34, 1)[0]);
        while at != 0 {
            assert!(at >= 0x40 && at.is_multiple_of(4) && !list.contains(&at), "at {at:#x} after {list:x?}");
            list.push(at);
            at = u64::from(self.config(at + 1, 1)[0]);
        }
        list
    }

    /// The virtio capability of this kind (virtio 1.2 §4.1.4).
    pub(super) fn virtio_capability(&self, kind: u8) -> Window {
        let at = self.capabilities().into_iter().find(|&at| self.config(at, 4)[3] == kind).unwrap();
        let len = self.config(at, 3)[2];
        assert!(len >= 16);
        let bar = self.config(at + 4, 1)[0];
        Window { at, bar, offset: self.config_u32(at + 8), len: self.config_u32(at + 12) }
    }

    /// Enables MSI-X with every vector open.
    pub(super) fn open_vectors(&self) {
        let msix = *self.capabilities().last().unwrap();
        let table = u64::from(self.config_u32(msix + 4));
        for vector in 0..3_u64 {
            self.write(table + vector * 16, &0xfee0_0000_u64.to_le_bytes());
            self.write(table + vector * 16 + 8, &(0x40 + vector as u32).to_le_bytes());
            self.write(table + vector * 16 + 12, &[0; 4]);
        }
        self.config_write(msix + 2, &0x8000_u16.to_le_bytes());
    }

    /// Feature negotiation, up to FEATURES_OK; vector 0 for the configuration.
    pub(super) fn negotiate(&self) {
        self.open_vectors();
        self.write(20, &[1]);
        self.write(20, &[3]);
        for (half, features) in [(0_u32, (F_EVENT_IDX | FEATURE) as u32), (1, (F_VERSION_1 >> 32) as u32)] {
            self.write(8, &half.to_le_bytes());
            self.write(12, &features.to_le_bytes());
        }
        self.write(20, &[0xb]);
        assert_eq!(self.read(20, 1), [0xb], "the features are fine");
        self.write(16, &[0, 0]);
    }

    /// Everything up to and without DRIVER_OK: vector n + 1 for queue n. `amend` has the last word on each queue.
    pub(super) fn set_up_queues(&self, amend: impl Fn(&Self)) {
        self.negotiate();
        for (index, driver) in self.drivers.iter().enumerate() {
            self.write(22, &(index as u16).to_le_bytes());
            self.write(24, &8_u16.to_le_bytes());
            self.write(26, &(index as u16 + 1).to_le_bytes());
            for (register, address) in [32, 40, 48].into_iter().zip(driver.addresses()) {
                self.write(register, &(address as u32).to_le_bytes());
                self.write(register + 4, &((address >> 32) as u32).to_le_bytes());
            }
            amend(self);
            self.write(28, &[1, 0]);
        }
    }

    /// Everything up to and without DRIVER_OK.
    pub(super) fn set_up(&self) {
        self.set_up_queues(|_| {});
    }

    /// The whole bring-up.
    pub(super) fn bring_up(&self) {
        self.set_up();
        self.write(20, &[0xf]);
    }

    /// Rings the doorbell of queue `index` the way a driver finds it.
    pub(super) fn ring(&self, index: u16) {
        let notify = self.virtio_capability(2);
        self.write(22, &index.to_le_bytes());
        let offset = u16::from_le_bytes(self.read(30, 2).try_into().unwrap());
        let multiplier = self.config_u32(notify.at + 16);
        let doorbell = u64::from(notify.offset) + u64::from(offset) * u64::from(multiplier);
        self.write(doorbell, &index.to_le_bytes());
    }

    /// Empty rings, as after a reset.
    pub(super) fn new_rings(&mut self) {
        self.drivers = [0, 1].map(|index| Driver::new(&self.memory, index, 8));
        self.drivers.iter().for_each(Driver::clear);
    }
}

impl Drop for Function {
    fn drop(&mut self) {
        self.pci.shut_down();
    }
}
