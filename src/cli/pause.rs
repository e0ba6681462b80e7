//! `nestling pause` and `nestling resume`.

use clap::Args;

use super::{SocketArgs, output};
use crate::agent::chain::chain;
use crate::agent::exit::Exit;
use crate::status::client::{Client, ClientError};

/// Pause the VM: vCPUs and devices rest; returns when they do
#[derive(Debug, Args)]
pub(super) struct PauseArgs {
    #[command(flatten)]
    instance: SocketArgs,
}

/// Let a paused VM go on
#[derive(Debug, Args)]
pub(super) struct ResumeArgs {
    #[command(flatten)]
    instance: SocketArgs,
}

/// Runs `nestling pause`.
pub(super) fn pause(args: &PauseArgs) -> Exit {
    let socket = &args.instance.socket;
    ended(super::block_on(socket, Client::new(socket).pause()))
}

/// Runs `nestling resume`.
pub(super) fn resume(args: &ResumeArgs) -> Exit {
    let socket = &args.instance.socket;
    ended(super::block_on(socket, Client::new(socket).resume()))
}

fn ended(answer: Result<(), ClientError>) -> Exit {
    match answer {
        Ok(()) => Exit::Success,
        Err(error) => {
            output::complain(&chain(&error));
            Exit::NoInstance
        }
    }
}
