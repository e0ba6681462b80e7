//! `nestling memory`.

use clap::Args;

use super::{SocketArgs, output, render};
use crate::agent::chain::chain;
use crate::agent::exit::Exit;
use crate::status::client::Client;

/// Show the guest's memory, or set how much of it the guest should do with
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  nestling memory
  nestling memory 128M")]
pub(super) struct MemoryArgs {
    /// What the guest should do with, for example 128M; its full size empties the balloon. The guest gets there in its own
    /// time: ask again
    #[arg(value_name = "SIZE")]
    target: Option<String>,

    #[command(flatten)]
    instance: SocketArgs,
}

/// Runs the command.
pub(super) fn run(args: &MemoryArgs) -> Exit {
    let socket = &args.instance.socket;
    let client = Client::new(socket);
    let done = match &args.target {
        Some(target) => super::block_on(socket, client.set_memory(target)),
        None => {
            super::block_on(socket, client.status()).map(|status| output::print(&render::memory(&status)))
        }
    };
    match done {
        Ok(()) => Exit::Success,
        Err(error) => {
            output::complain(&chain(&error));
            Exit::NoInstance
        }
    }
}
