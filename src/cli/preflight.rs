//! `nestling preflight`: can a nested VM run here?

use std::io::{IsTerminal, Write};
use std::path::PathBuf;

use super::output;
use crate::agent::chain::chain;
use crate::preflight::{LiveHost, Preflight, Recorder, Style, to_json, to_text};

/// The exit code when a recording could not be written.
const EXIT_NOT_RECORDED: u8 = 1;

/// Check whether a nested VM can run on this node and in this pod
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit codes: 0 it can; 200 it cannot; 1 the recording could not be written.")]
pub(crate) struct PreflightArgs {
    /// Print the report as one JSON object
    #[arg(long)]
    json: bool,

    /// Also write what the checks looked at into DIR, for a bug report
    #[arg(long, value_name = "DIR")]
    record: Option<PathBuf>,
}

/// Runs the checks, prints the report and returns the exit code.
pub(crate) fn run(args: &PreflightArgs) -> u8 {
    let recorder = Recorder::new(&LiveHost);
    let report = Preflight::run(&recorder);
    let mut stdout = std::io::stdout().lock();
    let text = if args.json {
        to_json(&report)
    } else {
        let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        to_text(&report, Style { colour: stdout.is_terminal() && !no_colour })
    };
    // Whoever closed the pipe has seen enough; the verdict is in the exit code.
    let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    let Some(dir) = &args.record else { return report.exit_code() };
    let origin = format!("recorded by nestling {} preflight --record", env!("CARGO_PKG_VERSION"));
    match recorder.write(dir, &origin) {
        Ok(()) => report.exit_code(),
        Err(error) => {
            output::complain(&format!("nothing can be recorded: {}", chain(&error)));
            EXIT_NOT_RECORDED
        }
    }
}
