//! The `nestling` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    nestling::cli::main()
}
