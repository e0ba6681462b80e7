//! `nestling link`.

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, ValueEnum};

use super::SocketArgs;
use crate::agent::exit::Exit;
use crate::status::client::Client;

/// Plug the cable of a network interface in or out: the guest sees its carrier come or go, and so does the tap
#[derive(Debug, Args)]
#[command(after_help = concat!("Examples:
  nestling link 0 down
  nestling link nestling0 up

`nestling status` shows which interfaces the VM has.

", client_exits!()))]
pub(super) struct LinkArgs {
    /// Which interface: its number in the order of --net, from 0, or the name of its tap
    #[arg(value_name = "INTERFACE", value_parser = NonEmptyStringValueParser::new())]
    interface: String,

    /// Plugged in (up) or out (down)
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
    let client = Client::new(&args.instance.socket);
    super::ask(client.set_link(&args.interface, args.state == LinkState::Up))
}
