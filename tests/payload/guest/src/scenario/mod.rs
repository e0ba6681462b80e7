//! The scenarios, by the name `scenario=` gives.

mod ending;

use crate::{cmdline, interrupts, power, println};

/// Runs the scenario the command line names, and powers off.
pub fn run() -> ! {
    interrupts::install();
    match cmdline::value("scenario").unwrap_or_default() {
        "hello" => println!("hello from the guest"),
        "ending" => ending::run(cmdline::value("how").unwrap_or_default()),
        other => println!("there is no scenario {other:?}"),
    }
    power::off()
}
