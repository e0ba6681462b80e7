//! `nestling link`.

use clap::{Args, ValueEnum};

use super::{SocketArgs, output};
use crate::agent::chain::chain;
use crate::agent::exit::Exit;
use crate::status::client::Client;

/// Plug the cable of a network interface in or out: the guest sees its carrier come or go, and so does the tap
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  nestling link 0 down
  nestling link 0 up")]
pub(super) struct LinkArgs {
    /// Which interface, in the order of --net, from 0
    #[arg(value_name = "N")]
    interface: usize,

    /// In (up) or out (down)
    state: LinkState,

    #[command(flatten)]
    instance: SocketArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LinkState {
    Up,
    Down,
}

/// Runs the command.
pub(super) fn run(args: &LinkArgs) -> Exit {
    let socket = &args.instance.socket;
    let client = Client::new(socket);
    match super::block_on(socket, client.set_link(args.interface, args.state == LinkState::Up)) {
        Ok(()) => Exit::Success,
        Err(error) => {
            output::complain(&chain(&error));
            Exit::NoInstance
        }
    }
}
