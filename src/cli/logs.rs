//! `nestling logs`: what the guest wrote to its console.

use clap::Args;

use super::{SocketArgs, output};
use crate::agent::exit::Exit;
use crate::status::client::Client;

const EXAMPLES: &str = "\
Examples:
  nestling logs
  nestling logs --tail 20
  nestling logs --follow | grep -i error

The VM keeps the last 256 KiB (nestling run --console-history SIZE); what is older is gone, and how much that is goes to
stderr. With --follow the command ends when the VM does.

Exit codes: 0 shown; 211 no VM answers on the socket; 212 too many clients follow the console.";

/// Show what the guest wrote to its console
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES, after_help = "See --help for examples and exit codes.")]
pub(super) struct LogsArgs {
    #[command(flatten)]
    instance: SocketArgs,

    /// Stay, and show what comes until the VM ends
    #[arg(long, short)]
    follow: bool,

    /// Begin with the last N lines; 0 shows only what comes
    #[arg(long, short = 'n', value_name = "N", value_parser = lines)]
    tail: Option<usize>,
}

fn lines(text: &str) -> Result<usize, String> {
    text.parse().map_err(|_| "write a number of lines, from 0 up".to_owned())
}

/// Runs the command.
pub(super) fn run(args: &LogsArgs) -> Exit {
    let on_start = |missed: u64| {
        if missed > 0 {
            output::complain(&format!("the first {missed} bytes of the console are no longer kept"));
        }
    };
    let client = Client::new(&args.instance.socket);
    super::ask(client.console_log(args.follow, args.tail, on_start, output::write_out))
}
