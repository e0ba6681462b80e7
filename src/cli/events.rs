//! `nestling events`: what happened to the VM, line by line.

use clap::Args;

use super::{SocketArgs, output};
use crate::agent::exit::Exit;
use crate::status::client::Client;

const EXAMPLES: &str = "\
Examples:
  nestling events
  nestling events --follow | jq -r 'select(.kind == \"state\").state'

Each line is a JSON object with seq, time, ms (since the process began) and kind: state, stage, warning, ended.

Exit codes: 0 shown; 211 no VM answers on the socket; 212 too many clients follow the events.";

/// Show what happened to the VM, one JSON object per line
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct EventsArgs {
    #[command(flatten)]
    instance: SocketArgs,

    /// Stay, and show what happens until the VM ends
    #[arg(long, short)]
    follow: bool,
}

/// Runs the command.
pub(super) fn run(args: &EventsArgs) -> Exit {
    super::ask(Client::new(&args.instance.socket).events(args.follow, output::write_out))
}
