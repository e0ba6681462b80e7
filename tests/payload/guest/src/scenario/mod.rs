//! The scenarios, by the name `scenario=` gives.

mod broken_chains;
mod broken_net;
mod broken_rings;
mod console;
mod disk;
mod ending;
mod memory;
mod moving_bars;
mod noise;
mod pci;
mod smp;

use crate::virtio::queue::WRITE;
use crate::virtio::rng::Rng;
use crate::{cmdline, interrupts, io, power, print, println};

/// The CPU vector devices interrupt.
const DEVICE_VECTOR: u8 = 0x50;

/// Runs the scenario the command line names, and powers off.
pub fn run() -> ! {
    interrupts::install();
    interrupts::enable();
    match cmdline::value("scenario").unwrap_or_default() {
        "hello" => println!("hello from the guest"),
        "string-io" => string_io(),
        "ending" => ending::run(cmdline::value("how").unwrap_or_default()),
        "memory" => memory::run(),
        "smp" => smp::run(),
        "pci-scan" => pci::scan(),
        "pci-reads" => pci::read_config(),
        "pci-move" => pci::move_bar(),
        "rng" => random_bytes(),
        "console-echo" => console::echo(),
        "console-flood" => console::flood(),
        "console-reset" => console::echo_across_reset(),
        "console-deaf" => console::deaf(),
        "console-abuse" => console::abuse(),
        "serial-echo" => serial_echo(),
        "rng-abuse" => odd_entropy_requests(),
        "disk-resets-in-flight" => disk::resets_in_flight(),
        "noise-ports" => noise::on_ports(),
        "disk" => disk::every_request(),
        "disk-features" => disk::feature_sets(),
        "disk-reads" => disk::reads(),
        "disk-resets" => disk::resets(),
        "disk-fill" => disk::fill(),
        "disk-churn" => disk::churn(),
        "broken-chains" => broken_chains::run(),
        "broken-net" => broken_net::run(),
        "broken-rings" => broken_rings::run(),
        "noise-bar" => noise::over_bars(),
        "noise-ecam" => noise::over_ecam(),
        "noise-window" => noise::through_access_window(),
        "noise-msix" => noise::over_msix(),
        "noise-doorbells" => noise::on_doorbells(),
        "moving-bars" => moving_bars::run(),
        other => println!("there is no scenario {other:?}"),
    }
    power::off()
}

/// Two pages of entropy, the beginning of each printed.
fn random_bytes() {
    let Some(mut rng) = Rng::open() else { return println!("there is no entropy device") };
    for _ in 0..2 {
        let len = rng.fill(4096);
        println!("len {len:?}");
        println!("bytes {:016x}{:016x}", io::peek::<u64>(rng.buffer), io::peek::<u64>(rng.buffer + 4088));
    }
}

/// Buffers no driver gives to an entropy device.
fn odd_entropy_requests() {
    let Some(mut rng) = Rng::open() else { return println!("there is no entropy device") };
    for (name, address, len, flags) in [
        ("read-only", rng.buffer, 64, 0),
        ("empty", rng.buffer, 0, WRITE),
        ("a-mib", 0x200_0000, 1 << 20, WRITE),
        ("hole", 0xd000_0000, 64, WRITE),
        ("4-gib", rng.buffer, u32::MAX, WRITE),
    ] {
        rng.queue.chain(0, &[(address, len, flags)]);
        rng.queue.offer(0);
        rng.queue.ring();
        let outcome = rng.device.wait(&mut rng.queue).map(|(_, written)| written);
        println!("{name} {outcome:?}");
        let Some(again) = Rng::open() else { return };
        rng = again;
        println!("after {:?}", rng.fill(16));
    }
}

/// A line out by one instruction, then five bytes in by one.
fn string_io() {
    print::print_string_io("printed by one instruction");
    let mut bytes = [0; 5];
    while bytes[0] == 0 {
        bytes[0] = print::read_byte().unwrap_or(0);
    }
    print::read_string_io(&mut bytes[1..]);
    println!("got {}", core::str::from_utf8(&bytes).unwrap_or("(noise)"));
}

/// Answers one line of input on COM1, polling it.
fn serial_echo() {
    println!("ready");
    for _ in 0..cmdline::number("lines", 1) {
        let mut line = [0; 64];
        let mut len = 0;
        while len < line.len() && !line[..len].ends_with(b"\n") {
            if let Some(byte) = print::read_byte() {
                line[len] = byte;
                len += 1;
            }
        }
        println!("got {}", core::str::from_utf8(&line[..len]).unwrap_or("?").trim_end());
    }
}
