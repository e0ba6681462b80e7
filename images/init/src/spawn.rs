//! Starting a program: as the leader of a session of its own, as a user, in a directory, on three descriptors.
//!
//! By fork and exec in our own hands, because the child has to be in the [table of children](crate::children) before
//! anybody can reap it, and because a program that takes long to load (from a filesystem that hangs) must not hold up
//! the others.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::fmt;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nestling_protocol::{Failure, FailureKind};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::pipe2;

use crate::children::{self, Child};
use crate::users::Identity;

/// Where programs are looked for.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What to start.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) argv: Vec<OsString>,
    pub(crate) environment: BTreeMap<OsString, OsString>,
    pub(crate) directory: Option<PathBuf>,
    pub(crate) identity: Option<Identity>,
    /// Standard input, output and error; they stay the caller's.
    pub(crate) streams: [RawFd; 3],
    /// Whether standard input becomes the session's controlling terminal.
    pub(crate) terminal: bool,
}

/// Why a program could not be started.
#[derive(Debug)]
pub(crate) struct StartError {
    program: OsString,
    directory: PathBuf,
    stage: Stage,
    errno: Errno,
}

/// What the child was doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Stage {
    Fork = 1,
    Streams,
    Identity,
    Directory,
    Exec,
}

impl StartError {
    /// The exit status a shell gives: 127 when there is no such program, 126 when it cannot be executed.
    pub(crate) fn status(&self) -> i32 {
        self.failure().exit_code()
    }

    /// What to tell the host.
    pub(crate) fn failure(&self) -> Failure {
        let kind = match (self.stage, self.errno) {
            (Stage::Exec, Errno::ENOENT) => FailureKind::NotFound,
            (Stage::Exec | Stage::Directory, _) => FailureKind::Denied,
            _ => FailureKind::Failed,
        };
        Failure::new(kind, self.to_string())
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "cannot start {}: ", self.program.display())?;
        match (self.stage, self.errno) {
            (Stage::Exec, Errno::ENOENT) => {
                f.write_str("it, or the interpreter or loader that it names, is not in the guest")
            }
            (Stage::Exec, Errno::EACCES) => f.write_str("it is not executable (chmod +x when packing)"),
            (Stage::Exec, Errno::ENOEXEC) => f.write_str("it is no program for this kernel"),
            (Stage::Directory, errno) => {
                write!(f, "its directory {} cannot be entered: {}", self.directory.display(), errno.desc())
            }
            (Stage::Fork, Errno::ESHUTDOWN) => f.write_str("all is ending"),
            (Stage::Identity, errno) => write!(f, "its user cannot be taken on: {}", errno.desc()),
            (_, errno) => f.write_str(errno.desc()),
        }
    }
}

/// Everything that the child needs, made before the fork: afterwards it may only make system calls.
struct Prepared {
    candidates: Vec<CString>,
    argv: Vec<CString>,
    environment: Vec<CString>,
    directory: CString,
}

/// Starts it.
pub(crate) fn spawn(plan: &Plan) -> Result<Child, StartError> {
    let program = plan.argv.first().cloned().unwrap_or_default();
    let directory = plan.directory.clone().unwrap_or_else(|| PathBuf::from("/"));
    let failed =
        |stage, errno| StartError { program: program.clone(), directory: directory.clone(), stage, errno };
    let prepared = prepare(plan, &directory).map_err(|errno| failed(Stage::Exec, errno))?;
    let argv = pointers(&prepared.argv);
    let environment = pointers(&prepared.environment);

    let mut report: Option<OwnedFd> = None;
    let child = children::make(|| {
        // Within the lock, so that no other child inherits this pipe's writing end and keeps it open.
        let (reads, writes) = pipe2(OFlag::O_CLOEXEC)?;
        // SAFETY: the child makes only system calls, on memory that was prepared, until it executes or exits.
        match Errno::result(unsafe { libc::fork() })? {
            0 => {
                let (stage, errno) = become_program(plan, &prepared, &argv, &environment);
                exit_with(&writes, stage, errno)
            }
            pid => {
                report = Some(reads);
                Ok(pid)
            }
        }
    });
    let child = child.map_err(|errno| failed(Stage::Fork, errno))?;
    match report.as_ref().and_then(read_report) {
        None => Ok(child),
        Some((stage, errno)) => Err(failed(stage, errno)),
    }
}

fn prepare(plan: &Plan, directory: &Path) -> Result<Prepared, Errno> {
    let c_string = |text: &OsStr| CString::new(text.as_bytes()).map_err(|_| Errno::EINVAL);
    let argv = plan.argv.iter().map(|word| c_string(word)).collect::<Result<Vec<_>, _>>()?;
    let variables = plan
        .environment
        .iter()
        .map(|(name, value)| c_string(&[name.as_os_str(), value.as_os_str()].join(OsStr::new("="))));
    let program = plan.argv.first().filter(|program| !program.is_empty()).ok_or(Errno::ENOENT)?;
    let candidates = if program.as_bytes().contains(&b'/') {
        vec![c_string(program)?]
    } else {
        let path = plan.environment.get(OsStr::new("PATH")).map_or(OsStr::new(PATH), OsString::as_os_str);
        std::env::split_paths(path)
            .map(|place| c_string(place.join(program).as_os_str()))
            .collect::<Result<_, _>>()?
    };
    Ok(Prepared {
        candidates,
        argv,
        environment: variables.collect::<Result<_, _>>()?,
        directory: c_string(directory.as_os_str())?,
    })
}

/// What execve takes: pointers to each, and a null one.
fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect()
}

/// In the child. Returns only when it failed.
fn become_program(
    plan: &Plan,
    prepared: &Prepared,
    argv: &[*const libc::c_char],
    environment: &[*const libc::c_char],
) -> (Stage, Errno) {
    if let Err(errno) = take_streams(plan) {
        return (Stage::Streams, errno);
    }
    if let Some(identity) = &plan.identity
        && let Err(errno) = identity.take_on()
    {
        return (Stage::Identity, errno);
    }
    // SAFETY: the path is a C string.
    if unsafe { libc::chdir(prepared.directory.as_ptr()) } != 0 {
        return (Stage::Directory, Errno::last());
    }
    let mut found = Errno::ENOENT;
    for candidate in &prepared.candidates {
        // SAFETY: a C string, and two arrays of C strings that end with a null pointer; all outlive the call.
        unsafe { libc::execve(candidate.as_ptr(), argv.as_ptr(), environment.as_ptr()) };
        match Errno::last() {
            Errno::ENOENT | Errno::ENOTDIR => {}
            // As a shell does: a file that cannot be executed does not end the search.
            Errno::EACCES => found = Errno::EACCES,
            other => return (Stage::Exec, other),
        }
    }
    (Stage::Exec, found)
}

/// In the child: a session, its streams and its terminal, and signals as programs expect them.
fn take_streams(plan: &Plan) -> nix::Result<()> {
    nix::unistd::setsid()?;
    for (target, stream) in (0..).zip(plan.streams) {
        let result = if stream == target {
            // SAFETY: fcntl on integers: the descriptor is to survive the exec.
            unsafe { libc::fcntl(stream, libc::F_SETFD, 0) }
        } else {
            // SAFETY: dup2 on integers.
            unsafe { libc::dup2(stream, target) }
        };
        Errno::result(result)?;
    }
    if plan.terminal {
        // SAFETY: TIOCSCTTY takes an integer and touches no memory. A console that is no terminal refuses: then without.
        let _no_terminal = unsafe { libc::ioctl(libc::STDIN_FILENO, libc::TIOCSCTTY, 0) };
    }
    // SAFETY: the default action is no function of ours.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    nix::sys::signal::SigSet::empty().thread_set_mask()
}

/// In the child: tells the parent why, and is gone.
fn exit_with(to: &OwnedFd, stage: Stage, errno: Errno) -> ! {
    let [a, b, c, d] = (errno as i32).to_ne_bytes();
    let _told = nix::unistd::write(to, &[stage as u8, a, b, c, d]);
    // SAFETY: ends the process, and runs nothing that was set up in the parent.
    unsafe { libc::_exit(127) }
}

/// What the child said; `None` when it executed its program, which closed the pipe.
fn read_report(from: &OwnedFd) -> Option<(Stage, Errno)> {
    let mut report = [0; 5];
    let read = loop {
        match nix::unistd::read(from, &mut report) {
            Err(Errno::EINTR) => {}
            read => break read,
        }
    };
    let [stage, errno @ ..] = report;
    let stages = [Stage::Fork, Stage::Streams, Stage::Identity, Stage::Directory, Stage::Exec];
    let stage = stages.into_iter().find(|known| *known as u8 == stage)?;
    (read == Ok(5)).then(|| (stage, Errno::from_raw(i32::from_ne_bytes(errno))))
}

/// Pipes and files as streams: what a [`Plan`] wants.
pub(crate) fn raw(streams: [&OwnedFd; 3]) -> [RawFd; 3] {
    streams.map(AsRawFd::as_raw_fd)
}
