//! Running a program whose streams are the session's.
//!
//! One loop carries everything, and waits for whatever can go on. Each direction holds a bounded number of bytes: a host
//! that does not read stops the program's output, a program that does not read stops the host's input. When the
//! connection goes away before the program has ended, the program's whole session goes too.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use nestling_protocol::frame::{self, MAX_PAYLOAD};
use nestling_protocol::{
    Decoder, Exec, Failure, FailureKind, Frame, Input, Kind, Outcome, ProtocolError, Response,
};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::transport::Stream;
use super::{Agent, pty};
use crate::children::Child;
use crate::{session_end, spawn};

mod streams;

use streams::{Ends, is_later, write_some};

/// Input that the program has not read yet: beyond this the host has to wait.
const MOST_INPUT: usize = 256 << 10;

/// How long output may still come after the program has ended: from children that have its streams.
const LINGER: Duration = Duration::from_millis(250);

/// What a session whose host has gone gets between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(3);

/// The host has closed its half of the connection, which in this session means all of it.
const PEER_CLOSED: PollFlags = PollFlags::from_bits_retain(libc::POLLRDHUP);

/// What a terminal takes for the end of the input (VEOF, unless the program has changed it).
const END_OF_TRANSMISSION: u8 = 4;

/// Why a session ends before its program.
#[derive(Debug)]
enum Broken {
    /// The host has gone.
    Gone,
    /// The host says what makes no sense.
    Protocol(ProtocolError),
}

impl From<ProtocolError> for Broken {
    fn from(error: ProtocolError) -> Self {
        Self::Protocol(error)
    }
}

/// Runs it to its end, or to the end of the connection.
pub(super) fn run(agent: &Agent, stream: &Stream, request: &Exec) -> Result<(), Failure> {
    let system =
        |error: Errno| Failure::new(FailureKind::Failed, format!("cannot make streams: {}", error.desc()));
    let (ends, programs) = Ends::make(request).map_err(system)?;
    let mut plan = agent.plan(&request.program, spawn::raw(programs.each()), request.terminal.is_some())?;
    if request.terminal.is_some() {
        plan.environment.entry("TERM".into()).or_insert_with(|| "xterm".into());
        if let Some(identity) = &plan.identity {
            pty::give(&programs.stdin, identity.uid).map_err(system)?;
        }
    }
    let child = spawn::spawn(&plan).map_err(|error| error.failure())?;
    drop((programs, plan));
    let failed = |error: io::Error| {
        session_end::kill(&child);
        Failure::new(FailureKind::Failed, error.to_string())
    };
    ends.set_nonblocking().and_then(|()| stream.set_nonblocking(true)).map_err(failed)?;

    let mut session = Session::new(stream, &child, ends);
    let result = session.carry();
    // The program's streams and terminal are closed first: that alone ends most.
    drop(session);
    match result {
        Ok(()) => Ok(()),
        Err(broken) => {
            session_end::end(&child, GRACE);
            match broken {
                Broken::Gone => Ok(()),
                Broken::Protocol(error) => {
                    drop(stream.set_nonblocking(false));
                    drop(stream.set_write_timeout(Some(GRACE)));
                    Err(Failure::new(FailureKind::BadRequest, error.to_string()))
                }
            }
        }
    }
}

/// A session that runs.
struct Session<'a> {
    stream: &'a Stream,
    child: &'a Child,
    ends: Ends,
    decoder: Decoder,
    /// Frames for the host: at most one of output, for no output is read while there are any.
    to_host: VecDeque<u8>,
    /// Input for the program.
    input: VecDeque<u8>,
    /// The host has ended the input.
    input_ended: bool,
    /// When output is waited for no longer.
    last_output: Option<Instant>,
    /// Which output is looked at first: they take turns.
    turn: bool,
    buffer: Vec<u8>,
}

impl<'a> Session<'a> {
    fn new(stream: &'a Stream, child: &'a Child, ends: Ends) -> Self {
        let mut session = Self {
            stream,
            child,
            ends,
            decoder: Decoder::default(),
            to_host: VecDeque::new(),
            input: VecDeque::new(),
            input_ended: false,
            last_output: None,
            turn: false,
            buffer: vec![0; MAX_PAYLOAD],
        };
        session.say(&Response::Started { pid: child.pid() });
        session
    }

    fn say(&mut self, response: &Response) {
        if let Ok(bytes) = frame::encode_message(response) {
            self.to_host.extend(bytes);
        }
    }

    /// The loop.
    fn carry(&mut self) -> Result<(), Broken> {
        loop {
            self.write_host()?;
            self.write_input();
            self.read_outputs();
            self.write_host()?;
            if let Some(outcome) = self.all_said() {
                return self.finish(outcome);
            }
            self.wait()?;
        }
    }

    /// The program's outcome, when all of its output is on its way.
    fn all_said(&self) -> Option<Outcome> {
        let outputs_told = self.ends.stdout.told && self.ends.stderr.told;
        self.child.outcome().filter(|_| outputs_told && self.to_host.is_empty())
    }

    /// The last message, and all that is left to write.
    fn finish(&mut self, outcome: Outcome) -> Result<(), Broken> {
        self.say(&Response::Exited { outcome });
        while !self.to_host.is_empty() {
            let mut host = [PollFd::new(self.stream.as_fd(), PollFlags::POLLOUT)];
            match poll(&mut host, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => self.write_host()?,
                Err(_) => return Ok(()),
            }
        }
        // What the host still sends (input that nobody wants any more) is taken in, so that no reset overtakes this.
        self.stream.shut_write();
        drop(self.stream.set_nonblocking(false));
        let _closed = self.stream.wait_for_close(Instant::now() + GRACE);
        Ok(())
    }

    fn wait(&mut self) -> Result<(), Broken> {
        if self.last_output.is_none() && self.child.outcome().is_some() {
            self.last_output = Some(Instant::now() + LINGER);
        }
        let room = self.input.len() < MOST_INPUT;
        let ended = self.last_output.is_some();
        let idle = self.to_host.is_empty();
        let mut host = PEER_CLOSED;
        host.set(PollFlags::POLLIN, room);
        host.set(PollFlags::POLLOUT, !idle);
        let mut watched: Vec<(BorrowedFd, PollFlags)> = vec![(self.stream.as_fd(), host)];
        if let Some(stdin) = self.ends.stdin.as_ref().filter(|_| !self.input.is_empty()) {
            watched.push((stdin.as_fd(), PollFlags::POLLOUT));
        }
        let outputs = [&self.ends.stdout, &self.ends.stderr];
        // A program's output is not even looked at while the host has not taken the last of it.
        for file in outputs.into_iter().filter_map(|output| output.file.as_ref()).filter(|_| idle) {
            watched.push((file.as_fd(), PollFlags::POLLIN));
        }
        if !ended {
            watched.push((self.child.as_fd(), PollFlags::POLLIN));
        }
        let mut fds: Vec<libc::pollfd> = watched
            .iter()
            .map(|(fd, flags)| libc::pollfd { fd: fd.as_raw_fd(), events: flags.bits(), revents: 0 })
            .collect();
        let count = libc::nfds_t::try_from(fds.len()).unwrap_or_default();
        // SAFETY: the kernel reads and writes as many entries as there are; their descriptors are borrowed until after.
        // (nix's wrapper does not know that a peer may close one half.)
        match Errno::result(unsafe { libc::poll(fds.as_mut_ptr(), count, self.timeout(idle)) }) {
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok(()),
            Err(error) => return Err(ProtocolError::Io(error.into()).into()),
        }
        let host = fds.first().map_or(PollFlags::empty(), |host| PollFlags::from_bits_retain(host.revents));
        if host.intersects(PEER_CLOSED | PollFlags::POLLHUP | PollFlags::POLLERR) {
            return Err(Broken::Gone);
        }
        if host.contains(PollFlags::POLLIN) { self.read_host() } else { Ok(()) }
    }

    /// Milliseconds; -1 for as long as it takes.
    fn timeout(&self, idle: bool) -> i32 {
        match self.last_output {
            // While the host does not read, there is nothing to be done earlier.
            Some(until) if idle => {
                let left = until.saturating_duration_since(Instant::now()).as_millis();
                i32::try_from(left).unwrap_or(i32::MAX).saturating_add(1)
            }
            _ => -1,
        }
    }

    fn write_host(&mut self) -> Result<(), Broken> {
        write_some(&mut &*self.stream, &mut self.to_host).map_err(|_| Broken::Gone)
    }

    fn read_host(&mut self) -> Result<(), Broken> {
        let mut bytes = [0; 16 << 10];
        match (&mut &*self.stream).read(&mut bytes) {
            Ok(0) => return Err(Broken::Gone),
            Ok(read) => self.decoder.push(bytes.get(..read).unwrap_or_default()),
            Err(error) if is_later(&error) => {}
            Err(_) => return Err(Broken::Gone),
        }
        while let Some(frame) = self.decoder.next()? {
            self.obey(frame)?;
        }
        Ok(())
    }

    fn obey(&mut self, frame: Frame) -> Result<(), Broken> {
        match frame.kind {
            Kind::Stdin if frame.payload.is_empty() && self.ends.terminal => {
                self.input.push_back(END_OF_TRANSMISSION);
            }
            Kind::Stdin if frame.payload.is_empty() => self.input_ended = true,
            Kind::Stdin if self.input_ended || self.ends.stdin.is_none() => {}
            Kind::Stdin => self.input.extend(frame.payload),
            Kind::Message => match frame.message()? {
                Input::Resize(size) => {
                    if let (true, Some(terminal)) = (self.ends.terminal, &self.ends.stdin) {
                        // A program that is just ending has no size.
                        let _ending = pty::resize(terminal, size);
                    }
                }
                Input::Signal { signal } => {
                    // A number that is no signal does nothing.
                    let _no_signal = self.child.signal(signal);
                }
                Input::Unknown => {}
            },
            got => return Err(ProtocolError::UnexpectedKind { got, wanted: "stdin, or a message" }.into()),
        }
        Ok(())
    }

    fn write_input(&mut self) {
        if let Some(stdin) = &mut self.ends.stdin
            && write_some(stdin, &mut self.input).is_err()
        {
            // The program has closed its input, which is its right.
            self.ends.stdin = None;
        }
        if self.ends.stdin.is_none() {
            self.input.clear();
        }
        if self.input_ended && self.input.is_empty() {
            self.ends.stdin = None;
        }
    }

    /// Reads one frame of output, if the host has taken the last one.
    fn read_outputs(&mut self) {
        let late = self.last_output.is_some_and(|until| Instant::now() >= until);
        self.turn = !self.turn;
        let (first, second) = if self.turn {
            (&mut self.ends.stdout, &mut self.ends.stderr)
        } else {
            (&mut self.ends.stderr, &mut self.ends.stdout)
        };
        for output in [first, second] {
            if self.to_host.is_empty() {
                output.read(&mut self.buffer, &mut self.to_host, late);
            }
        }
    }
}
