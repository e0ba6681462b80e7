//! Runs a static executable on a machine with VT-x: this one when it has it, else one emulated by Bochs.
//!
//! The same static binary plays both ends. On the host it packs an initramfs and powers the machine on; in the
//! machine it is PID 1, and what it has to say travels back through Bochs' debug port.
//!
//! - `cli`      what the user asked for
//! - `setup`    what has to be there first: Bochs, firmware, kernel; fetched once, then cached
//! - `pack`     files → initramfs
//! - `machine`  kernel + initramfs → a running Bochs
//! - `run`      one life of the machine, from power-on to the exit code
//! - `inside`   the same life as PID 1 sees it
//! - `wire`     the records that pass between the two; `job` is what goes in

mod cli;
mod error;
mod inside;
mod job;
mod listen;
mod logs;
mod machine;
mod modules;
mod pack;
mod report;
mod run;
mod runner;
mod setup;
mod wire;

use std::process::ExitCode;

fn main() -> ExitCode {
    if std::process::id() == 1 {
        inside::live();
    }
    cli::main()
}
