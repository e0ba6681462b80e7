//! `nestling memory`.

use clap::Args;

use super::{SocketArgs, output, render};
use crate::agent::exit::Exit;
use crate::status::client::Client;

/// Show the guest's memory, or set how much of it the guest should do with
#[derive(Debug, Args)]
#[command(after_help = concat!("Examples:
  nestling memory
  nestling memory 128M

", client_exits!()))]
pub(super) struct MemoryArgs {
    /// What the guest should do with, for example 128M; its full size empties the balloon. The guest gets there in its own
    /// time: ask again
    #[arg(value_name = "SIZE", allow_negative_numbers = true)]
    target: Option<String>,

    #[command(flatten)]
    instance: SocketArgs,
}

/// Runs the command.
pub(super) fn run(args: &MemoryArgs) -> Exit {
    let client = Client::new(&args.instance.socket);
    match &args.target {
        Some(target) => super::ask(client.set_memory(target)),
        None => super::ask(async {
            output::print(&render::memory(&client.status().await?));
            Ok(())
        }),
    }
}
