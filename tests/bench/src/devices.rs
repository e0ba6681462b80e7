//! The ways of packets, bytes and blocks through the devices, each beside what it stands on: no guest runs, a driver's end of the
//! rings does its part. Every round measures one and then the other, so that whatever else the machine does falls on both.

mod block;
mod guest;
mod net;
mod vsock;

use std::time::Instant;

use clap::Args;
use nix::sys::resource::{UsageWho, getrusage};

use crate::Result;
use crate::observed::machine;
use crate::table::{median, print};

/// Move packets and bytes through the devices, and the same without them
#[derive(Debug, Args)]
pub(crate) struct DevicesArgs {
    /// Rounds, of which the median counts
    #[arg(long, default_value_t = 11)]
    rounds: usize,
    /// Only rows whose name has this in it
    #[arg(long, default_value = "")]
    only: String,
}

/// What was spent on some work.
#[derive(Debug, Clone, Copy)]
struct Spent {
    seconds: f64,
    /// Of all threads of this process, the kernel's part included.
    cpu_seconds: f64,
}

/// Runs since it was made.
#[derive(Debug)]
struct Watch {
    start: Instant,
    cpu: f64,
}

impl Watch {
    fn start() -> Result<Self> {
        Ok(Self { cpu: cpu_seconds()?, start: Instant::now() })
    }

    fn stop(&self) -> Result<Spent> {
        let seconds = self.start.elapsed().as_secs_f64();
        Ok(Spent { seconds, cpu_seconds: cpu_seconds()? - self.cpu })
    }
}

fn cpu_seconds() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
}

/// How often driver and device told each other of something.
#[derive(Debug, Clone, Copy, Default)]
struct Signals {
    doorbells: u64,
    interrupts: u64,
}

/// One way through a device, and the same work without it.
trait Way {
    /// What is moved, where to, and what it is beside.
    fn name(&self) -> String;
    /// The unit of the rate, and how much of it a round moves.
    fn amount(&self) -> (&'static str, f64);
    /// Frames, packets or requests of a round, for the signals.
    fn operations(&self) -> f64;
    /// The work without the device.
    fn plain(&mut self) -> Result<Spent>;
    /// The work through it.
    fn device(&mut self) -> Result<(Spent, Signals)>;
}

pub(crate) fn run(args: &DevicesArgs) -> Result<()> {
    let mut rows = Vec::new();
    let mut ways = vsock::ways()?;
    ways.extend(block::ways()?);
    match net::ways() {
        Ok(more) => ways.extend(more),
        Err(error) => println!("NOT MEASURED: the network device, because {error}"),
    }
    for way in ways.iter_mut().filter(|way| way.name().contains(&args.only)) {
        rows.push(measure(way.as_mut(), args.rounds.max(1))?);
    }
    println!("\nMachine: {}. Medians of {} rounds.\n", machine(), args.rounds.max(1));
    let header = [
        "driver's end of the rings, no guest",
        "plain",
        "device",
        "of the plain rate",
        "CPU µs each, plain",
        "device",
        "of the plain CPU",
        "doorbells each",
        "interrupts each",
    ];
    print(&header.map(str::to_owned), &rows);
    Ok(())
}

/// One row of the table.
fn measure(way: &mut dyn Way, rounds: usize) -> Result<Vec<String>> {
    let (mut plain, mut device) = (Vec::new(), Vec::new());
    let mut signals = Signals::default();
    // The first round of each warms caches and is not counted.
    for round in 0..=rounds {
        let without = way.plain().map_err(|error| format!("{}, plain: {error}", way.name()))?;
        let (with, told) = way.device().map_err(|error| format!("{}: {error}", way.name()))?;
        if round > 0 {
            plain.push(without);
            device.push(with);
            signals.doorbells += told.doorbells;
            signals.interrupts += told.interrupts;
        }
    }
    let (unit, amount) = way.amount();
    let rate = |all: &[Spent]| amount / median(&all.iter().map(|spent| spent.seconds).collect::<Vec<_>>());
    let cpu = |all: &[Spent]| median(&all.iter().map(|spent| spent.cpu_seconds).collect::<Vec<_>>());
    let cpu_us = |all: &[Spent]| cpu(all) * 1e6 / way.operations();
    let operations = way.operations() * rounds as f64;
    Ok(vec![
        way.name(),
        format!("{:.0} {unit}", rate(&plain)),
        format!("{:.0} {unit}", rate(&device)),
        format!("{:.2}", rate(&device) / rate(&plain)),
        format!("{:.2}", cpu_us(&plain)),
        format!("{:.2}", cpu_us(&device)),
        format!("{:.2}x", cpu(&device) / cpu(&plain)),
        format!("{:.3}", signals.doorbells as f64 / operations),
        format!("{:.3}", signals.interrupts as f64 / operations),
    ])
}
