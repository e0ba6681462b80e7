//! Progress on standard error: one line a step, with the time since the start.

use std::io::{self, Write};
use std::time::{Duration, Instant};

/// Prints progress; standard output belongs to the program that runs in the node.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Report {
    start: Instant,
}

impl Report {
    pub(crate) fn new() -> Self {
        Self { start: Instant::now() }
    }

    /// Time since the start.
    pub(crate) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// One finished step.
    pub(crate) fn step(&self, text: &str) {
        self.say(&format!("{text}  [{:.1} s]", self.elapsed().as_secs_f64()));
    }

    /// A step that the node itself reported, with its own idea of time.
    pub(crate) fn stage(&self, text: &str, uptime: Duration) {
        let (here, there) = (self.elapsed().as_secs_f64(), uptime.as_secs_f64());
        self.say(&format!("{text}  [{here:.1} s, node {there:.3} s]"));
    }

    /// A plain line.
    pub(crate) fn say(&self, text: &str) {
        let mut err = io::stderr().lock();
        // Nobody is left to tell when standard error is gone.
        let _ = writeln!(err, "node: {text}");
    }
}
