//! The command line: one file per subcommand.

use std::process::ExitCode;

/// Parses the command line, runs one subcommand, and turns its result into the exit code.
#[must_use]
pub fn main() -> ExitCode {
    ExitCode::SUCCESS
}
