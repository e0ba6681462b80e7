//! `nestling stop`: asks the VM to stop in order.

use clap::Args;

use super::SocketArgs;
use crate::agent::exit::Exit;
use crate::status::client::Client;

/// Stop the VM in order, as SIGTERM does; returns when the request is accepted
#[derive(Debug, Args)]
#[command(after_help = client_exits!())]
pub(super) struct StopArgs {
    #[command(flatten)]
    instance: SocketArgs,
}

/// Runs the command.
pub(super) fn run(args: &StopArgs) -> Exit {
    super::ask(Client::new(&args.instance.socket).stop())
}
