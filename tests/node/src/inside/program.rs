//! Runs the program: its output goes to the host as it comes, and every process that dies is reaped.

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{ChildStderr, ChildStdout, Command, ExitStatus, Stdio};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::port_e9::{self, PortE9};
use crate::error::{Doing, Result};
use crate::job::Job;
use crate::wire::Kind;

/// Runs it to its end; its exit code, 128 + N if signal N ended it.
pub(super) fn run(job: &Job, port: &mut PortE9) -> Result<i32> {
    let mut children = SigSet::empty();
    children.add(Signal::SIGCHLD);
    children.thread_block().doing("block SIGCHLD")?;
    let deaths = SignalFd::with_flags(&children, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
        .doing("watch for dead children")?;
    let mut command = Command::new(&job.program);
    command.args(&job.args).current_dir(&job.directory);
    command.env_clear().envs(job.env.iter().map(|(name, value)| (name, value)));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    // SAFETY: between fork and exec this makes one system call and touches no memory of the parent.
    unsafe {
        command.pre_exec(port_e9::forbid);
    }
    // SAFETY: as above. The program must not start with our SIGCHLD blocked: a shell would wait for its children for ever.
    unsafe {
        command.pre_exec(|| Ok(SigSet::empty().thread_set_mask()?));
    }
    let mut child = command.spawn().on("run", &job.program)?;
    let mut pump = Pump {
        streams: [
            child.stdout.take().map(|s| (Stream::Stdout(s), Kind::Stdout)),
            child.stderr.take().map(|s| (Stream::Stderr(s), Kind::Stderr)),
        ],
        deaths,
        main: child.id(),
        status: None,
        buffer: vec![0; crate::wire::MAX_PAYLOAD],
    };
    pump.until_the_end(port)
}

/// Moves bytes from the program to the host.
struct Pump {
    /// `None` when at its end.
    streams: [Option<(Stream, Kind)>; 2],
    deaths: SignalFd,
    main: u32,
    status: Option<ExitStatus>,
    buffer: Vec<u8>,
}

enum Stream {
    Stdout(ChildStdout),
    Stderr(ChildStderr),
}

impl Pump {
    fn until_the_end(&mut self, port: &mut PortE9) -> Result<i32> {
        /// A process that outlives the program may hold its output open: what is there is taken, no more.
        const AFTERMATH_MS: u16 = 100;
        loop {
            let open = self.streams.iter().flatten().count();
            let patience = match (&self.status, open) {
                (Some(status), 0) => return Ok(code(*status)),
                (Some(_), _) => PollTimeout::from(AFTERMATH_MS),
                (None, _) => PollTimeout::NONE,
            };
            let ready = self.wait(patience)?;
            if let (Some(status), [false, false]) = (&self.status, ready) {
                return Ok(code(*status));
            }
            for (index, ready) in ready.into_iter().enumerate() {
                if ready {
                    self.forward(index, port)?;
                }
            }
            self.reap()?;
        }
    }

    /// Which of the streams have something to say.
    fn wait(&self, patience: PollTimeout) -> Result<[bool; 2]> {
        let mut fds = vec![PollFd::new(self.deaths.as_fd(), PollFlags::POLLIN)];
        let mut owners = Vec::new();
        for (index, stream) in self.streams.iter().enumerate() {
            if let Some((stream, _)) = stream {
                fds.push(PollFd::new(stream.as_fd(), PollFlags::POLLIN));
                owners.push(index);
            }
        }
        match poll(&mut fds, patience) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno).doing("wait for the program"),
        }
        let mut ready = [false; 2];
        for (fd, owner) in fds[1..].iter().zip(owners) {
            ready[owner] = fd.any().unwrap_or(false);
        }
        Ok(ready)
    }

    fn forward(&mut self, index: usize, port: &mut PortE9) -> Result<()> {
        let Some((stream, kind)) = &mut self.streams[index] else { return Ok(()) };
        match stream.read(&mut self.buffer).doing("read the program's output")? {
            0 => self.streams[index] = None,
            length => port.send(*kind, &self.buffer[..length]),
        }
        Ok(())
    }

    /// Takes leave of everybody who died; PID 1 is everybody's heir.
    fn reap(&mut self) -> Result<()> {
        while self.deaths.read_signal().doing("read a signal")?.is_some() {}
        loop {
            let mut raw = 0;
            // SAFETY: the pointer is to a local integer.
            let pid = unsafe { libc::waitpid(-1, &raw mut raw, libc::WNOHANG) };
            if pid <= 0 {
                return Ok(());
            }
            if u32::try_from(pid) == Ok(self.main) {
                self.status = Some(ExitStatus::from_raw(raw));
            }
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Self::Stdout(stream) => stream.read(buffer),
            Self::Stderr(stream) => stream.read(buffer),
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Stdout(stream) => stream.as_fd(),
            Self::Stderr(stream) => stream.as_fd(),
        }
    }
}

fn code(status: ExitStatus) -> i32 {
    status.code().or_else(|| status.signal().map(|number| 128 + number)).unwrap_or(255)
}
