//! `nestling-probe`: works one device from inside a guest, and plays the host's side of it from outside.
//!
//! A test starts it at both ends, so that both agree on what is sent. Every command prints `key=value` words, one line a
//! result, and exits with 1 at the first thing that is not as it should be.

mod batch;
mod churn;
mod cli;
mod console;
mod datagrams;
mod disk;
mod echo;
mod error;
mod exchange;
mod files;
mod interrupts;
mod memory;
mod modules;
mod pattern;
mod sockets;
mod streams;
mod tap;
mod watchdog;

use std::process::ExitCode;

fn main() -> ExitCode {
    match cli::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nestling-probe: {error}");
            ExitCode::FAILURE
        }
    }
}
