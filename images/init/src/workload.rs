//! The one program that the guest is for: what the host or the kernel's command line says, started on the console.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::mpsc::Sender;

use nestling_protocol::{Configuration, Failure, FailureKind};

use crate::agent::{Agent, Happening, base_environment};
use crate::children::Child;
use crate::spawn::{self, Plan, StartError};

/// What runs when nobody names a workload.
pub(crate) const SHELL: &str = "/bin/sh";

/// Why it does not run.
#[derive(Debug)]
pub(crate) enum NotStarted {
    /// What the host asks for cannot be.
    Refused(Failure),
    /// The program could not be started.
    Start(StartError),
}

impl NotStarted {
    /// The exit status a shell gives.
    pub(crate) fn status(&self) -> i32 {
        match self {
            Self::Refused(failure) => failure.exit_code(),
            Self::Start(error) => error.status(),
        }
    }

    /// What to tell the host.
    pub(crate) fn failure(&self) -> Failure {
        match self {
            Self::Refused(failure) => failure.clone(),
            Self::Start(error) => error.failure(),
        }
    }
}

impl std::fmt::Display for NotStarted {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Self::Refused(failure) => failure.fmt(f),
            Self::Start(error) => error.fmt(f),
        }
    }
}

/// Starts a command of the kernel's command line, with the console as its controlling terminal.
pub(crate) fn start_command(command: &[OsString]) -> Result<Child, NotStarted> {
    let plan = Plan {
        argv: command.to_vec(),
        environment: base_environment(None),
        directory: None,
        identity: None,
        streams: [0, 1, 2],
        terminal: true,
    };
    spawn::spawn(&plan).map_err(NotStarted::Start)
}

/// Starts the workload that the host has named, if it has; with the console as its controlling terminal, if it says so
/// and `console` is there to be had.
pub(crate) fn start_configured(
    agent: &Agent,
    configuration: &Configuration,
    console: bool,
) -> Option<Result<Child, NotStarted>> {
    let program = configuration.workload.as_ref()?;
    let terminal = configuration.terminal && console;
    let started = no_input().map_err(NotStarted::Refused).and_then(|null| {
        let stdin = if terminal { 0 } else { null.as_raw_fd() };
        let plan = agent.plan(program, [stdin, 1, 2], terminal).map_err(NotStarted::Refused)?;
        spawn::spawn(&plan).map_err(NotStarted::Start)
    });
    Some(started)
}

/// Has the main thread told when it ends.
pub(crate) fn watch(child: &Child, happenings: Sender<Happening>) {
    let child = child.clone();
    // Should all be ending already, nobody wants to know.
    let wait = move || drop(happenings.send(Happening::Ended(child.wait())));
    if let Err(error) = std::thread::Builder::new().name("workload".into()).stack_size(64 << 10).spawn(wait) {
        crate::say!("cannot wait for the workload: {error}");
    }
}

fn no_input() -> Result<OwnedFd, Failure> {
    let null = OpenOptions::new().read(true).open("/dev/null");
    let failed = |error| Failure::new(FailureKind::Failed, format!("cannot open /dev/null: {error}"));
    null.map(OwnedFd::from).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_start_has_a_shells_status() {
        let status =
            |program: &str| start_command(&[program.into()]).map(|_| ()).map_err(|error| error.status());

        assert_eq!((status("/nowhere/at/all"), status("/etc/passwd")), (Err(127), Err(126)));
        assert_eq!(status("no-such-program"), Err(127));
    }
}
