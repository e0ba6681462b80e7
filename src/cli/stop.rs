//! `nestling stop`: asks the VM to stop in order.

use clap::Args;

use super::{SocketArgs, output};
use crate::agent::chain::chain;
use crate::agent::exit::Exit;
use crate::status::client::Client;

/// Stop the VM in order, as SIGTERM does; returns when the request is accepted
#[derive(Debug, Args)]
pub(super) struct StopArgs {
    #[command(flatten)]
    instance: SocketArgs,
}

/// Runs the command.
pub(super) fn run(args: &StopArgs) -> Exit {
    let socket = &args.instance.socket;
    match super::block_on(socket, Client::new(socket).stop()) {
        Ok(()) => Exit::Success,
        Err(error) => {
            output::complain(&chain(&error));
            Exit::NoInstance
        }
    }
}
