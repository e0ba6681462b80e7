//! Repeatable noise over every register a guest can reach.
//!
//! What would only break the guest itself is left out: interrupts whose delivery mode is INIT or NMI, and queues placed
//! over the payload's code.

use core::sync::atomic::{AtomicU32, Ordering};

use super::DEVICE_VECTOR;
use crate::io::{poke, poke_sized};
use crate::pci::{ECAM, Function};
use crate::random::Random;
use crate::virtio::disk::{Disk, KIND, READ, SECTOR};
use crate::virtio::rng::Rng;
use crate::virtio::{Device, F_VERSION_1};
use crate::{cmdline, gate, println, smp};

const BAR_BYTES: u64 = 0x4000;
const MSIX_PAGE: u64 = 1;
/// Queue addresses in the common configuration.
const QUEUE_ADDRESSES: core::ops::Range<u64> = 32..56;
const BARS: core::ops::Range<u64> = 0x10..0x28;
/// The data register of the PCI access capability.
const ACCESS_DATA: u64 = 16;
const CAPABILITY: u8 = 9;
const CAPABILITY_ACCESS: u8 = 5;

/// Something to write.
struct Write {
    offset: u64,
    width: u64,
    value: u64,
}

impl Write {
    fn anywhere(random: &mut Random, bytes: u64) -> Self {
        let width = 1 << random.below(4);
        let offset = if random.below(2) == 0 { random.below(64) } else { random.below(bytes) };
        let aligned = random.below(8) != 0;
        let offset = if aligned { offset & !(width - 1) } else { offset };
        Self { offset: offset.min(bytes - width), width, value: random.nasty() }
    }
}

fn random() -> Random {
    Random::new(cmdline::number("seed", 1))
}

/// Noise over the BAR of every device, from every CPU at once.
pub(super) fn over_bars() {
    static QUIET: AtomicU32 = AtomicU32::new(0);
    println!("begin");
    let cpus = cmdline::number("cpus", 1) as u32;
    smp::start(
        cpus,
        Some(|cpu| {
            bar_noise(cpu.into());
            QUIET.fetch_add(1, Ordering::SeqCst);
        }),
    );
    bar_noise(0);
    while QUIET.load(Ordering::SeqCst) + 1 < cpus {
        core::hint::spin_loop();
    }
    println!("end");
    all_is_well();
}

/// One CPU's noise; a reset now and then, so that there is something to break again.
fn bar_noise(cpu: u64) {
    let (mut random, devices) = (Random::new(cmdline::number("seed", 1) + cpu * 1000), Devices::find());
    for round in 0..cmdline::number("writes", 1000) {
        let device = devices.pick(&mut random);
        if round % 64 == 0 {
            device.set_status(0);
            device.agree(F_VERSION_1);
            device.function.route_all(DEVICE_VECTOR);
        }
        let write = tame_bar_write(Write::anywhere(&mut random, BAR_BYTES));
        poke_sized(u64::from(device.function.bar()) + write.offset, write.value, write.width);
    }
}

/// Noise on every I/O port that is not the UART's, the interrupt controllers', the power switch or the panic port.
pub(super) fn on_ports() {
    let mut random = random();
    let skipped = |port: u16| matches!(port, 0x20..0x22 | 0xa0..0xa2 | 0x3f8..0x400 | 0x4d0..0x4d2 | 0x505 | 0x600 | 0x602);
    println!("begin");
    for _ in 0..cmdline::number("writes", 1000) {
        let (port, value) = (random.nasty() as u16, random.bits());
        if skipped(port) || skipped(port.wrapping_add(1)) {
            continue;
        }
        match random.below(3) {
            0 => gate::out8(port, value as u8),
            1 => gate::out16(port, value as u16),
            _ => _ = gate::in8(port),
        }
    }
    println!("end");
    all_is_well();
}

/// The virtio functions and where their BARs belong. A scan costs exits, so it is done once.
struct Devices {
    list: [Option<(Device, u32)>; 8],
    count: u64,
}

impl Devices {
    fn find() -> Self {
        let mut list = [None; 8];
        list.iter_mut()
            .zip(Device::all())
            .for_each(|(slot, device)| *slot = Some((device, device.function.bar())));
        Self { list, count: list.iter().flatten().count() as u64 }
    }

    fn iter(&self) -> impl Iterator<Item = &(Device, u32)> {
        self.list.iter().flatten()
    }

    #[allow(clippy::panic, reason = "it is how this guest fails")]
    fn pick(&self, random: &mut Random) -> Device {
        let (device, _) =
            self.list[random.below(self.count) as usize].unwrap_or_else(|| panic!("no devices"));
        device
    }

    /// Puts every BAR back, and switches MSI-X off.
    fn restore(&self) {
        for (Device { function, .. }, home) in self.iter() {
            function.set_command(0);
            function.set_bar(*home);
            if let Some(at) = function.msix() {
                poke(function.register(at + 2), 0_u16);
            }
        }
    }
}

fn tame_bar_write(mut write: Write) -> Write {
    if write.offset / 4096 == MSIX_PAGE {
        (write.offset, write.width) = (write.offset & !3, 4);
        if write.offset % 16 == 8 {
            write.value = tame_vector(write.value);
        }
    }
    if QUEUE_ADDRESSES.contains(&write.offset) {
        write.value &= !0x3ff_0000;
        write.value |= 0x200_0000;
    }
    write
}

/// Fixed delivery of a vector that is no exception.
fn tame_vector(value: u64) -> u64 {
    (value & 0xff) | 0x40
}

/// Noise over all of ECAM, mostly where there are functions.
pub(super) fn over_ecam() {
    let mut random = random();
    let devices = Devices::find();
    let windows =
        devices.list.map(|device| device.and_then(|(device, _)| access_capability(device.function)));
    println!("begin");
    for _ in 0..cmdline::number("writes", 1000) {
        let mut write = Write::anywhere(&mut random, 4096);
        let device = if random.below(4) == 0 { random.below(256) << 12 } else { random.below(4) << 15 };
        if random.below(2) == 0 {
            write.offset = random.below(0x100 - 8) & !(write.width - 1);
        }
        if BARS.contains(&write.offset) && random.below(4) != 0 {
            write.value = u64::from(devices.pick(&mut random).function.bar());
        }
        if windows.iter().flatten().any(|&at| touches_access_data(&write, at)) {
            (write.width, write.value) = (1, 0x40);
        }
        poke_sized(ECAM + device + write.offset, write.value, write.width);
    }
    devices.restore();
    println!("end");
    all_is_well();
}

fn touches_access_data(write: &Write, at: u64) -> bool {
    write.offset + write.width > at + ACCESS_DATA && write.offset < at + ACCESS_DATA + 4
}

fn access_capability(function: Function) -> Option<u64> {
    let is_access = |&at: &u64| crate::io::peek::<u8>(function.register(at + 3)) == CAPABILITY_ACCESS;
    function.capabilities(CAPABILITY).find(is_access)
}

/// Noise through the access capability: BAR number, offset and length of any value.
pub(super) fn through_access_window() {
    let (mut random, devices) = (random(), Devices::find());
    println!("begin");
    for _ in 0..cmdline::number("writes", 1000) {
        let device = devices.pick(&mut random);
        let Some(at) = access_capability(device.function) else { return println!("there is no window") };
        let register = |offset: u64| device.function.register(at + offset);
        let mut write = Write::anywhere(&mut random, BAR_BYTES);
        if random.below(4) == 0 {
            write.offset = random.nasty() | 0x8000;
        } else {
            write = tame_bar_write(write);
        }
        let bar = if random.below(8) == 0 { random.nasty() } else { 0 };
        let len = if random.below(8) == 0 { random.nasty() } else { write.width };
        poke(register(4), bar as u8);
        poke(register(8), write.offset as u32);
        poke(register(12), 4_u32.min(len as u32));
        poke(register(ACCESS_DATA), tame_window_value(&write));
        poke(register(12), len as u32);
        let _: u32 = crate::io::peek(register(ACCESS_DATA));
    }
    println!("end");
    all_is_well();
}

fn tame_window_value(write: &Write) -> u32 {
    if write.offset / 4096 == MSIX_PAGE { tame_vector(write.value) as u32 } else { write.value as u32 }
}

/// MSI-X tables full of ones and zeros while a queue interrupts.
pub(super) fn over_msix() {
    let Some(mut disk) = Disk::open(0, Some(DEVICE_VECTOR)) else { return println!("there is no disk") };
    // The queue interrupts, but nobody waits for that.
    disk.device.vector = None;
    let function = disk.device.function;
    let (Some(table), Some(capability)) = (function.msix_table(), function.msix()) else { return };
    for value in [u32::MAX, 0xfee0_0000, 0xffff_ff00, 0x100 | u32::from(DEVICE_VECTOR), 0xffff_f8ff] {
        for entry in 0..function.msix_vectors() {
            // Delivery mode 7 (ExtINT) or 0 (fixed): neither resets the CPU.
            let data = if value == u32::MAX { value } else { tame_vector(value.into()) as u32 };
            poke(table + entry * 16, value);
            poke(table + entry * 16 + 4, value);
            poke(table + entry * 16 + 8, data);
            poke(table + entry * 16 + 12, 0_u32);
        }
        for control in [0x8000_u16, 0xc000, 0x8000, 0, 0xffff] {
            poke(function.register(capability + 2), control);
            println!("read {:?}", disk.request(READ, 0, SECTOR));
        }
        (0..4096).step_by(8).for_each(|at| poke(table + at, u64::MAX));
    }
    all_is_well();
}

/// Doorbells rung without anything to say, at any width and place.
pub(super) fn on_doorbells() {
    let Some(mut disk) = Disk::open(0, None) else { return println!("there is no disk") };
    let (mut random, page) = (random(), disk.queue.doorbell & !0xfff);
    println!("begin");
    for _ in 0..cmdline::number("writes", 1000) {
        poke(disk.queue.doorbell, random.bits() as u16);
        let write = Write::anywhere(&mut random, 4096);
        poke_sized(page + write.offset, write.value, write.width);
    }
    println!("end");
    println!("read {:?}", disk.request(READ, 0, SECTOR));
    all_is_well();
}

/// Everything works after a reset.
fn all_is_well() {
    Device::all().for_each(|device| device.reset());
    let Some(mut disk) = Device::find(KIND, 0).map(|mut device| {
        device.use_interrupts(DEVICE_VECTOR);
        Disk::start(device)
    }) else {
        return println!("the disk is gone");
    };
    println!("disk {:?}", disk.request(READ, 0, SECTOR));
    let Some(mut rng) = Rng::open() else { return println!("the entropy device is gone") };
    println!("rng {:?}", rng.fill(64));
}
