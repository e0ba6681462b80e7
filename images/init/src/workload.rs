//! The one program the guest is for: starting it on the console, reaping, and how it ended.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::power::End;

/// What runs when the command line names no workload.
pub(crate) const SHELL: &str = "/bin/sh";

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A running program.
#[derive(Debug)]
pub(crate) struct Workload {
    pid: Pid,
}

/// What [`Workload::wait`] waited for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The program ended.
    Ended(Outcome),
    /// A signal told PID 1 to stop the machine.
    Told(End),
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Status(i32),
    Signal(i32),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "exited with status {status}"),
            Self::Signal(signal) => write!(f, "killed by signal {signal}"),
        }
    }
}

/// Why a program could not be started.
#[derive(Debug)]
pub(crate) struct StartError {
    program: OsString,
    error: std::io::Error,
}

impl StartError {
    /// The exit status a shell gives: 127 when there is no such program, 126 when it cannot be executed.
    pub(crate) fn status(&self) -> i32 {
        if self.error.kind() == std::io::ErrorKind::NotFound { 127 } else { 126 }
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let program = self.program.display();
        match self.error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOENT) => {
                write!(
                    f,
                    "cannot start {program}: it, or the interpreter or loader that it names, is not in the guest"
                )
            }
            Some(Errno::EACCES) => {
                write!(f, "cannot start {program}: it is not executable (chmod +x when packing)")
            }
            Some(Errno::ENOEXEC) => write!(f, "cannot start {program}: it is no program for this kernel"),
            _ => write!(f, "cannot start {program}: {}", self.error),
        }
    }
}

impl Workload {
    /// Starts the program as the leader of a session of its own, with the console as its controlling terminal.
    pub(crate) fn start(command: &[OsString]) -> Result<Self, StartError> {
        let (program, arguments) =
            command.split_first().map_or((OsStr::new(SHELL), &[][..]), |(p, a)| (p, a));
        let mut child = Command::new(program);
        child.args(arguments).env("PATH", PATH);
        if std::env::var_os("HOME").is_none_or(|home| home == "/") && std::path::Path::new("/root").is_dir() {
            child.env("HOME", "/root");
        }
        // SAFETY: between fork and exec, `own_terminal` makes system calls only: no allocation, no lock.
        unsafe { child.pre_exec(own_terminal) };
        match child.spawn() {
            Ok(child) => Ok(Self { pid: Pid::from_raw(child.id().cast_signed()) }),
            Err(error) => Err(StartError { program: program.to_owned(), error }),
        }
    }

    /// Reaps whatever ends, until this program does or a signal says to stop the machine.
    pub(crate) fn wait(&self, awaited: &SigSet) -> Event {
        loop {
            if let Some(outcome) = reap(Some(self.pid)) {
                return Event::Ended(outcome);
            }
            if let Some(end) = next_order(awaited) {
                return Event::Told(end);
            }
        }
    }
}

/// Reaps until a signal says to stop the machine.
pub(crate) fn wait_until_told(awaited: &SigSet) -> End {
    loop {
        reap(None);
        if let Some(end) = next_order(awaited) {
            return end;
        }
    }
}

/// In the child, before exec: a session, the console as its terminal if it is one, and no signal blocked.
fn own_terminal() -> std::io::Result<()> {
    nix::unistd::setsid()?;
    // SAFETY: TIOCSCTTY takes an integer and touches no memory. A console that is no terminal refuses: then without.
    let _no_terminal = unsafe { libc::ioctl(libc::STDIN_FILENO, libc::TIOCSCTTY, 0) };
    SigSet::empty().thread_set_mask()?;
    Ok(())
}

/// Takes every child that has ended; returns how the one asked for did.
fn reap(wanted: Option<Pid>) -> Option<Outcome> {
    let mut found = None;
    loop {
        let (pid, outcome) = match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, status)) => (pid, Outcome::Status(status)),
            Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, Outcome::Signal(signal as i32)),
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return found,
            // Stopped or traced children, real-time signals that have no name, an interrupted call.
            Ok(_) | Err(_) => continue,
        };
        if Some(pid) == wanted {
            found = Some(outcome);
        }
    }
}

/// Waits for one signal. SIGCHLD means "look again"; the others are orders, understood as busybox's init does, save
/// SIGTERM, which stops the machine as it stops a container.
fn next_order(awaited: &SigSet) -> Option<End> {
    match awaited.wait() {
        Ok(signal) => order(signal),
        Err(_) => None,
    }
}

fn order(signal: Signal) -> Option<End> {
    match signal {
        Signal::SIGTERM | Signal::SIGPWR | Signal::SIGINT | Signal::SIGUSR2 => Some(End::PowerOff),
        Signal::SIGUSR1 => Some(End::Halt),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_read_as_sentences() {
        assert_eq!(Outcome::Status(3).to_string(), "exited with status 3");
        assert_eq!(Outcome::Signal(9).to_string(), "killed by signal 9");
    }

    #[test]
    fn orders_are_those_of_an_init() {
        assert_eq!(order(Signal::SIGCHLD), None);
        assert_eq!(order(Signal::SIGTERM), Some(End::PowerOff));
        assert_eq!(order(Signal::SIGUSR1), Some(End::Halt));
    }

    #[test]
    fn what_cannot_start_has_a_shells_status() {
        let missing =
            Workload::start(&["/nowhere/at/all".into()]).map(|_| ()).map_err(|error| error.status());
        let data = Workload::start(&["/etc/passwd".into()]).map(|_| ()).map_err(|error| error.status());

        assert_eq!((missing, data), (Err(127), Err(126)));
    }
}
