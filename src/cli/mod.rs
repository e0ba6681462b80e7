//! The command line: one file per subcommand.

/// What the exit code of a command says that asks a VM for something.
macro_rules! client_exits {
    () => {
        "Exit codes: 0 done; 201 a value that cannot be; 211 no VM answers on the socket; 212 the VM refused, and says why."
    };
}

mod attach;
mod disk;
mod events;
mod link;
mod log;
mod logs;
mod manual;
mod memory;
mod output;
mod pause;
mod preflight;
mod render;
mod run;
mod status;
mod stop;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand};
use nix::sys::signal::{SigHandler, SigSet, Signal, signal};

use crate::agent::chain::chain;
use crate::agent::exit::Exit;
use crate::backend::console::terminal;
use crate::spec::config::DEFAULT_SOCKET;
use crate::status::client::ClientError;
use crate::status::clock::Clock;

/// One VM in one pod: boots a guest under KVM inside a container and reports what it is doing.
///
/// `nestling run` stays in the foreground until the guest ends; its exit code says how. `preflight` checks
/// the node and `disk` makes images; the other commands ask a running instance over its socket.
#[derive(Debug, Parser)]
#[command(name = "nestling", version, arg_required_else_help = true, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Preflight(preflight::PreflightArgs),
    Run(Box<run::RunArgs>),
    Status(status::StatusArgs),
    Events(events::EventsArgs),
    Logs(logs::LogsArgs),
    Attach(attach::AttachArgs),
    Stop(stop::StopArgs),
    Pause(pause::PauseArgs),
    Resume(pause::ResumeArgs),
    Memory(memory::MemoryArgs),
    Link(link::LinkArgs),
    Disk(disk::DiskArgs),
    Completions(manual::CompletionsArgs),
    Man(manual::ManArgs),
}

/// Which instance a command talks to.
#[derive(Debug, Args)]
struct SocketArgs {
    /// The status socket of the instance to ask
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    socket: PathBuf,
}

/// Waits for an instance's answer.
fn block_on<T>(answer: impl Future<Output = Result<T, ClientError>>) -> Result<T, ClientError> {
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(answer),
        Err(error) => Err(ClientError::Here(error)),
    }
}

/// Waits for an instance's answer, and says what went wrong if something did.
fn ask(answer: impl Future<Output = Result<(), ClientError>>) -> Exit {
    match block_on(answer) {
        Ok(()) => Exit::Success,
        Err(error) => complain_of(&error),
    }
}

/// Says why there is no answer.
fn complain_of(error: &ClientError) -> Exit {
    output::complain(&chain(error));
    Exit::from(error)
}

/// Parses the command line, runs one subcommand, and turns its result into the exit code.
#[must_use]
pub fn main() -> ExitCode {
    let clock = Clock::begin();
    exit_on_panic();
    settle_signals();
    let code = match Cli::try_parse() {
        Ok(cli) => cli.command.carry_out(clock).into(),
        Err(error) => explain_usage(&error).into(),
    };
    // Whoever still holds the terminal is not asked any more.
    terminal::restore();
    code
}

impl Command {
    fn carry_out(&self, clock: Clock) -> u8 {
        match self {
            Self::Preflight(args) => preflight::run(args),
            Self::Run(args) => run::run(args, clock).code(),
            Self::Status(args) => status::run(args).code(),
            Self::Events(args) => events::run(args).code(),
            Self::Logs(args) => logs::run(args).code(),
            Self::Attach(args) => attach::run(args).code(),
            Self::Stop(args) => stop::run(args).code(),
            Self::Pause(args) => pause::pause(args).code(),
            Self::Link(args) => link::run(args).code(),
            Self::Resume(args) => pause::resume(args).code(),
            Self::Memory(args) => memory::run(args).code(),
            Self::Disk(args) => disk::run(args).code(),
            Self::Completions(args) => manual::completions(args).code(),
            Self::Man(args) => manual::man(args).code(),
        }
    }
}

/// Help and version go to stdout and are a success; everything else is bad input.
fn explain_usage(error: &clap::Error) -> Exit {
    let text = error.render().to_string();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            output::print(&text);
            Exit::Success
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            output::print_error(&text);
            Exit::BadInput
        }
        _ => {
            // Several lines, with a hint and the usage.
            let text = text.strip_prefix("error: ").unwrap_or(&text).trim_end();
            output::print_error(&format!("nestling: {text}\n"));
            Exit::BadInput
        }
    }
}

/// A defect anywhere ends the whole process with the documented code, and not only its thread.
fn exit_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        terminal::restore();
        let place_and_message = panic.to_string().replace('\n', " ");
        output::complain(&format!("internal error: {place_and_message}"));
        std::process::exit(Exit::Internal.code().into());
    }));
}

/// Whoever started us may have blocked signals, and a process inherits that: SIGTERM would not stop the machine.
fn settle_signals() {
    if let Err(error) = SigSet::empty().thread_set_mask() {
        output::complain(&format!("signals stay blocked as they were: {error}"));
    }
    // Past a file size limit, a write should fail and not end the VM.
    // SAFETY: no handler is installed; the signal is only ignored.
    let ignored = unsafe { signal(Signal::SIGXFSZ, SigHandler::SigIgn) };
    if let Err(error) = ignored {
        output::complain(&format!("SIGXFSZ is not ignored: {error}"));
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
