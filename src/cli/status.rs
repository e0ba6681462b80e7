//! `nestling status`: what the VM is doing, for people, for programs and for the kubelet.

use clap::{Args, ValueEnum};

use super::{SocketArgs, output, render};
use crate::agent::exit::Exit;
use crate::status::client::{Client, ClientError};
use crate::status::probe::Probe;
use crate::status::snapshot::Status;

const EXAMPLES: &str = "\
Examples:
  nestling status
  nestling status --json | jq .exits
  nestling status --probe ready && echo up

In a pod:
  startupProbe:
    exec: {command: [nestling, status, --probe, startup]}

Exit codes: 0 answered, or the probe holds; 1 the probe does not hold; 211 no VM answers on the socket;
212 the VM refused, and says why.";

/// Show what the VM is doing
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    instance: SocketArgs,

    /// Print the whole status as JSON
    #[arg(long)]
    json: bool,

    /// Answer one question with the exit code alone: 0 yes, 1 no (with the reason on stderr)
    #[arg(long, value_name = "QUESTION", conflicts_with = "json")]
    probe: Option<Question>,
}

/// The three probes of a pod.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Question {
    /// The guest's kernel has come up
    Startup,
    /// The guest's init runs
    Ready,
    /// The VM has not ended
    Live,
}

impl From<Question> for Probe {
    fn from(question: Question) -> Self {
        match question {
            Question::Startup => Self::Startup,
            Question::Ready => Self::Ready,
            Question::Live => Self::Live,
        }
    }
}

/// Runs the command.
pub(super) fn run(args: &StatusArgs) -> Exit {
    match ask(args) {
        Ok(status) => answer(args, &status),
        Err(error) => super::complain_of(&error),
    }
}

fn ask(args: &StatusArgs) -> Result<Status, ClientError> {
    super::block_on(Client::new(&args.instance.socket).status())
}

fn answer(args: &StatusArgs, status: &Status) -> Exit {
    if let Some(question) = args.probe {
        return judge(question, status);
    }
    let text = if args.json { to_json(status) } else { render::status(status) };
    output::print(&text);
    Exit::Success
}

fn judge(question: Question, status: &Status) -> Exit {
    if Probe::from(question).holds(status) {
        return Exit::Success;
    }
    let stage = status.stages.last().map_or("none", |reached| reached.stage.name());
    output::complain(&format!(
        "the probe does not hold: the machine is {}, its last boot stage is {stage}",
        status.state.name()
    ));
    Exit::ProbeFailed
}

fn to_json(status: &Status) -> String {
    let mut text = serde_json::to_string_pretty(status).unwrap_or_default();
    text.push('\n');
    text
}
