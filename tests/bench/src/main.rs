//! Measures what Nestling costs: `make bench` runs it.
//!
//! `payload` compares VMMs on this machine's own `/dev/kvm`, whatever is behind it, on a guest of a dozen instructions.
//! `linux` boots Linux guests and counts; it runs on VT-x, and where a machine has none, in the emulated node.
//! `devices` moves packets and bytes through devices without a guest, beside what they stand on.
//!
//! | file | what is in it |
//! |---|---|
//! | `vmm` | the VMMs, and how each is started |
//! | `start` | a process from `exec` on, and what it has spent |
//! | `calls` | the system calls it makes |
//! | `observed` | what /proc says about a running process |
//! | `payload`, `linux`, `devices` | the three measurements |
//! | `table` | medians, ratios, lines of text |

mod calls;
#[cfg(feature = "devices")]
mod devices;
mod linux;
mod observed;
mod payload;
mod start;
mod table;
mod vmm;

use std::error::Error;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Whatever goes wrong ends the measurement with one sentence.
type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Measure what Nestling costs.
#[derive(Debug, Parser)]
#[command(name = "nestling-bench", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Payload(payload::PayloadArgs),
    Linux(linux::LinuxArgs),
    #[cfg(feature = "devices")]
    Devices(devices::DevicesArgs),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Payload(args) => payload::run(&args),
        Command::Linux(args) => linux::run(&args),
        #[cfg(feature = "devices")]
        Command::Devices(args) => devices::run(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nestling-bench: {error}");
            ExitCode::FAILURE
        }
    }
}
