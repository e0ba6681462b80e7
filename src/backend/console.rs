//! Where the guest's console goes (our stdout, and a bounded tail for the status) and where its input comes from.

mod terminal;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vmm_sys_util::eventfd::EventFd;

use self::terminal::RawTerminal;

/// Lines kept for the status.
const TAIL_LINES: usize = 100;
/// Longer lines are cut.
const MAX_LINE_BYTES: usize = 512;
/// A pipe that poll calls writable takes this much without blocking (PIPE_BUF).
const CHUNK: usize = 4096;

/// How long the guest's output waits for somebody to take it, in milliseconds. A Linux guest spins in its console driver
/// meanwhile, so a log collector that stalls must not stall the guest for good.
const PATIENCE_MS: u16 = 1000;
/// How long a terminal without room is left alone, in milliseconds.
const FULL_TERMINAL_WAIT_MS: u8 = 20;

type OnLine = Box<dyn Fn(&str) + Send + Sync>;

/// What the guest writes to its console.
pub struct ConsoleLog {
    output: OwnedFd,
    open: AtomicBool,
    /// Nobody took output for [`PATIENCE_MS`]: until somebody does, nothing waits for them.
    stalled: AtomicBool,
    dropped: AtomicU64,
    cancel: EventFd,
    bytes: AtomicU64,
    tail: Mutex<Tail>,
    on_line: OnLine,
}

#[derive(Debug, Default)]
struct Tail {
    lines: VecDeque<String>,
    current: Vec<u8>,
}

impl ConsoleLog {
    /// Copies everything to `output`; calls `on_line` with each whole line, printable characters only.
    ///
    /// # Errors
    /// When the kernel has no descriptor left.
    pub fn new(output: OwnedFd, on_line: impl Fn(&str) + Send + Sync + 'static) -> io::Result<Self> {
        Ok(Self {
            output: terminal::unblocked(output),
            open: AtomicBool::new(true),
            stalled: AtomicBool::new(false),
            dropped: AtomicU64::new(0),
            cancel: EventFd::new(libc::EFD_NONBLOCK)?,
            bytes: AtomicU64::new(0),
            tail: Mutex::new(Tail::default()),
            on_line: Box::new(on_line),
        })
    }

    /// Takes what the guest wrote. While nobody reads our stdout it waits a second, once, and then drops (and counts) what
    /// comes until somebody reads again.
    pub fn write(&self, data: &[u8]) {
        self.bytes.fetch_add(data.len() as u64, Ordering::Relaxed);
        let lines = self.tail.lock().unwrap_or_else(PoisonError::into_inner).push(data);
        for chunk in data.chunks(CHUNK) {
            if self.open.load(Ordering::Relaxed) && self.write_chunk(chunk).is_err() {
                self.open.store(false, Ordering::Relaxed);
            }
        }
        // After the bytes, so that what is logged of a line comes after the line.
        for line in &lines {
            (self.on_line)(line);
        }
    }

    /// Bytes the guest wrote so far.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Bytes of them that nobody was there to take.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// The last lines, oldest first; an unfinished one counts.
    #[must_use]
    pub fn tail(&self) -> Vec<String> {
        let tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        let unfinished = (!tail.current.is_empty()).then(|| printable(&tail.current));
        tail.lines.iter().cloned().chain(unfinished).collect()
    }

    /// Nothing waits for our stdout any more: the machine is being stopped.
    pub fn cancel(&self) {
        let _ = self.cancel.write(1);
    }

    fn write_chunk(&self, mut chunk: &[u8]) -> nix::Result<()> {
        while !chunk.is_empty() {
            let mut fds = [
                PollFd::new(self.output.as_fd(), PollFlags::POLLOUT),
                PollFd::new(borrow(&self.cancel), PollFlags::POLLIN),
            ];
            let patience = if self.stalled.load(Ordering::Relaxed) { 0 } else { PATIENCE_MS };
            match poll(&mut fds, PollTimeout::from(patience)) {
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(errno),
                Ok(0) => {
                    self.stalled.store(true, Ordering::Relaxed);
                    self.dropped.fetch_add(chunk.len() as u64, Ordering::Relaxed);
                    return Ok(());
                }
                Ok(_) => self.stalled.store(false, Ordering::Relaxed),
            }
            let writable = fds[0].revents().is_some_and(|events| !events.is_empty());
            if !writable {
                return Err(Errno::ECANCELED);
            }
            match nix::unistd::write(&self.output, chunk) {
                Ok(done) => chunk = chunk.get(done..).unwrap_or_default(),
                Err(Errno::EINTR) => {}
                // A terminal with room for one byte has none for a line's end, which it makes two of.
                Err(Errno::EAGAIN) => self.pause()?,
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    fn pause(&self) -> nix::Result<()> {
        let mut fds = [PollFd::new(borrow(&self.cancel), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::from(FULL_TERMINAL_WAIT_MS)) {
            Ok(0) | Err(Errno::EINTR) => Ok(()),
            Ok(_) => Err(Errno::ECANCELED),
            Err(errno) => Err(errno),
        }
    }
}

impl std::fmt::Debug for ConsoleLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConsoleLog").field("bytes", &self.bytes()).finish_non_exhaustive()
    }
}

impl Tail {
    /// Adds console bytes and returns the lines they complete.
    fn push(&mut self, data: &[u8]) -> Vec<String> {
        let mut completed = Vec::new();
        for &byte in data {
            if byte != b'\n' {
                if self.current.len() < MAX_LINE_BYTES {
                    self.current.push(byte);
                }
                continue;
            }
            let line = printable(&self.current);
            self.current.clear();
            if self.lines.len() == TAIL_LINES {
                self.lines.pop_front();
            }
            self.lines.push_back(line.clone());
            completed.push(line);
        }
        completed
    }
}

/// The text of a console line: no control characters, no escape sequences a terminal would act on.
#[must_use]
pub fn printable(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    let mut plain = String::with_capacity(text.len());
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        match c {
            '\u{1b}' => skip_escape(&mut rest),
            '\t' => plain.push(' '),
            c if c.is_control() => {}
            c => plain.push(c),
        }
    }
    plain.truncate(plain.trim_end().len());
    plain
}

/// Skips the rest of an ANSI control sequence after ESC.
fn skip_escape(rest: &mut std::str::Chars<'_>) {
    if rest.clone().next() == Some('[') {
        rest.next();
        rest.find(|c| ('@'..='~').contains(c));
    }
}

/// Where the guest's console input comes from.
#[derive(Debug)]
pub struct ConsoleInput {
    source: OwnedFd,
    escape: Escape,
    /// Puts the terminal back when the VM is gone.
    _terminal: Option<RawTerminal>,
}

impl ConsoleInput {
    /// Reads from `source`. A terminal is switched to raw mode, so that the guest gets every key; `Ctrl-A x` stops the VM.
    /// A terminal in whose background we are gives no input.
    #[must_use]
    pub fn new(source: OwnedFd) -> Option<Self> {
        if terminal::is_in_the_background(&source) {
            return None;
        }
        let terminal = RawTerminal::enter(&source);
        let escape = if terminal.is_some() { Escape::Ready } else { Escape::Off };
        Some(Self { source, escape, _terminal: terminal })
    }

    /// Reads what is there, at most `room` bytes, and never waits; `None` when the source ended.
    pub fn read(&mut self, room: usize) -> Option<Vec<u8>> {
        // Not O_NONBLOCK: that would change the descriptor for everybody we share our stdin with.
        let mut fds = [PollFd::new(self.source.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, PollTimeout::ZERO) == Ok(0) {
            return Some(Vec::new());
        }
        let mut data = vec![0; room];
        match nix::unistd::read(&self.source, &mut data) {
            Ok(0) => None,
            Ok(len) => {
                data.truncate(len);
                data.retain(|&byte| self.escape.pass(byte));
                Some(data)
            }
            Err(Errno::EINTR | Errno::EAGAIN) => Some(Vec::new()),
            Err(_) => None,
        }
    }
}

impl AsFd for ConsoleInput {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.source.as_fd()
    }
}

/// The terminal's way out: `Ctrl-A x` stops the VM, `Ctrl-A Ctrl-A` sends one Ctrl-A.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Escape {
    Off,
    Ready,
    Started,
}

impl Escape {
    const CTRL_A: u8 = 1;

    /// Whether this byte goes to the guest.
    fn pass(&mut self, byte: u8) -> bool {
        match (*self, byte) {
            (Self::Off, _) => true,
            (Self::Ready, Self::CTRL_A) => {
                *self = Self::Started;
                false
            }
            (Self::Ready, _) => true,
            (Self::Started, b'x') => {
                *self = Self::Ready;
                // The orderly way to stop, as if it came from outside.
                let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGTERM);
                false
            }
            (Self::Started, _) => {
                *self = Self::Ready;
                true
            }
        }
    }
}

fn borrow(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is open as long as `event` is borrowed.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}

#[cfg(test)]
mod tests;
