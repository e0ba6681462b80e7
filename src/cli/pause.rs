//! `nestling pause` and `nestling resume`.

use clap::Args;

use super::SocketArgs;
use crate::agent::exit::Exit;
use crate::status::client::Client;

/// Pause the VM: vCPUs and devices rest; returns when they do
#[derive(Debug, Args)]
#[command(after_help = client_exits!())]
pub(super) struct PauseArgs {
    #[command(flatten)]
    instance: SocketArgs,
}

/// Let a paused VM go on
#[derive(Debug, Args)]
#[command(after_help = client_exits!())]
pub(super) struct ResumeArgs {
    #[command(flatten)]
    instance: SocketArgs,
}

/// Runs `nestling pause`.
pub(super) fn pause(args: &PauseArgs) -> Exit {
    super::ask(Client::new(&args.instance.socket).pause())
}

/// Runs `nestling resume`.
pub(super) fn resume(args: &ResumeArgs) -> Exit {
    super::ask(Client::new(&args.instance.socket).resume())
}
