//! A program's streams: its ends, ours, and what can be moved between them without waiting.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::OwnedFd;

use nestling_protocol::{Exec, Kind, TerminalSize, frame};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::pipe2;

use crate::agent::pty;
use crate::agent::transport::set_nonblocking;

/// How much output may come after the program has ended, from children that never stop.
const MOST_LINGERING: usize = 1 << 20;

/// The program's ends of its streams.
pub(super) struct Programs {
    pub(super) stdin: OwnedFd,
    stdout: OwnedFd,
    stderr: OwnedFd,
}

impl Programs {
    pub(super) fn each(&self) -> [&OwnedFd; 3] {
        [&self.stdin, &self.stdout, &self.stderr]
    }
}

/// Our ends.
#[derive(Debug)]
pub(super) struct Ends {
    pub(super) stdin: Option<File>,
    pub(super) stdout: Output,
    pub(super) stderr: Output,
    pub(super) terminal: bool,
}

/// An output of the program.
#[derive(Debug)]
pub(super) struct Output {
    kind: Kind,
    /// `None` once it has ended.
    pub(super) file: Option<File>,
    /// The host was told of its end.
    pub(super) told: bool,
    lingering: usize,
}

impl Output {
    fn new(kind: Kind, file: Option<OwnedFd>) -> Self {
        Self { kind, told: file.is_none(), file: file.map(File::from), lingering: 0 }
    }
}

impl Ends {
    pub(super) fn make(request: &Exec) -> nix::Result<(Self, Programs)> {
        if let Some(size) = request.terminal {
            return Self::terminal(size);
        }
        let (stdin, input) = if request.stdin {
            let (reads, writes) = pipe2(OFlag::O_CLOEXEC)?;
            (reads, Some(File::from(writes)))
        } else {
            let null = OpenOptions::new().read(true).open("/dev/null");
            (null.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))?.into(), None)
        };
        let (out, stdout) = pipe2(OFlag::O_CLOEXEC)?;
        let (err, stderr) = pipe2(OFlag::O_CLOEXEC)?;
        let ends = Self {
            stdin: input,
            stdout: Output::new(Kind::Stdout, Some(out)),
            stderr: Output::new(Kind::Stderr, Some(err)),
            terminal: false,
        };
        Ok((ends, Programs { stdin, stdout, stderr }))
    }

    fn terminal(size: TerminalSize) -> nix::Result<(Self, Programs)> {
        let (ours, programs) = pty::make(size)?;
        let copy = |file: &OwnedFd| file.try_clone().map_err(|_| Errno::EMFILE);
        let (stdout, stderr, input) = (copy(&programs)?, copy(&programs)?, copy(&ours)?);
        let ends = Self {
            stdin: Some(input.into()),
            stdout: Output::new(Kind::Stdout, Some(ours)),
            stderr: Output::new(Kind::Stderr, None),
            terminal: true,
        };
        Ok((ends, Programs { stdin: programs, stdout, stderr }))
    }

    pub(super) fn set_nonblocking(&self) -> io::Result<()> {
        let files = [&self.stdin, &self.stdout.file, &self.stderr.file];
        files.into_iter().flatten().try_for_each(|file| set_nonblocking(file, true))
    }
}

impl Output {
    pub(super) fn read(&mut self, buffer: &mut [u8], to_host: &mut VecDeque<u8>, late: bool) {
        let Some(file) = &mut self.file else { return };
        let read = match file.read(buffer) {
            Ok(read) => read,
            Err(error) if is_later(&error) && !late => return,
            // EIO: nobody has the terminal open any more. Or, late, nothing is there.
            Err(_) => 0,
        };
        self.lingering += if late { read } else { 0 };
        if let Ok(frame) = frame::encode(self.kind, buffer.get(..read).unwrap_or_default()) {
            to_host.extend(frame);
        }
        if read == 0 || self.lingering > MOST_LINGERING {
            self.file = None;
            self.told = true;
            if read > 0
                && let Ok(end) = frame::encode(self.kind, &[])
            {
                to_host.extend(end);
            }
        }
    }
}

/// Writes what goes without waiting.
pub(super) fn write_some<W: Write>(to: &mut W, bytes: &mut VecDeque<u8>) -> io::Result<()> {
    while !bytes.is_empty() {
        match to.write(bytes.as_slices().0) {
            Ok(written) => drop(bytes.drain(..written)),
            Err(error) if is_later(&error) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

pub(super) fn is_later(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
