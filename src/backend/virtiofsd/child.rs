//! A process that ends with us, and whose stderr is in our log.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{self, ChildStderr, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;

use super::Quotes;

const MAX_LINE_BYTES: usize = 1 << 10;
/// Its two processes do not say in this order why they fail.
const LAST_LINES: usize = 3;
/// What those it leaves behind may still say after its end.
const MAX_REST_BYTES: usize = 64 << 10;
/// How long it may take to end by itself after the connection closed.
const GRACE: Duration = Duration::from_millis(500);
/// How long it may take to end when it is killed: one that waits for a file system that hangs does not end at all.
const PATIENCE: Duration = Duration::from_secs(2);
const STEP: Duration = Duration::from_millis(10);

/// A running process and the thread that reads what it says.
///
/// The thread starts the process too: its death signal (PR_SET_PDEATHSIG) comes when the thread ends that started it, not
/// when the whole process does.
#[derive(Debug)]
pub(super) struct Child {
    process: Arc<Mutex<process::Child>>,
    last_lines: Arc<Mutex<VecDeque<String>>>,
    reader: Option<JoinHandle<()>>,
}

impl Child {
    /// Starts `program --fd=N ARGUMENTS…` where N is `listener`.
    pub(super) fn spawn(
        program: &Path,
        arguments: &[OsString],
        listener: UnixListener,
        quotes: &Quotes,
    ) -> io::Result<Self> {
        let mut command = Command::new(program);
        let fd = listener.as_raw_fd();
        command.arg(format!("--fd={fd}")).args(arguments);
        // Its last words are to be words.
        command.env("RUST_BACKTRACE", "0");
        // A group of its own: Ctrl-C on our terminal is for us.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).process_group(0);
        let before_exec = move || {
            // SAFETY: prctl and fcntl are async-signal-safe, and no memory is involved.
            let dies_with_us = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            // SAFETY: as above; the descriptor is the listener's, which the parent keeps open until the process runs.
            let inherits = unsafe { libc::fcntl(fd, libc::F_SETFD, 0) };
            if dies_with_us == 0 && inherits == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
        };
        // SAFETY: the closure makes system calls only.
        unsafe { command.pre_exec(before_exec) };
        let last_lines = Arc::default();
        let (tell, told) = mpsc::channel();
        let (kept, quotes) = (Arc::clone(&last_lines), quotes.clone());
        let read = move || {
            let mut spawned = command.spawn();
            // The process has it now; when the process ends before it takes our connection, nobody is left to take it.
            drop(listener);
            let stderr = spawned.as_mut().ok().and_then(|child| child.stderr.take());
            let spawned = spawned.map(|child| Arc::new(Mutex::new(child)));
            let process = spawned.as_ref().ok().map(Arc::clone);
            let _ = tell.send(spawned);
            if let (Some(process), Some(stderr)) = (process, stderr) {
                see_out(&process, stderr, Lines { line: Vec::new(), last: &kept, quotes: &quotes });
            }
        };
        let reader = thread::Builder::new().name("virtiofsd-log".into()).spawn(read)?;
        let process = told.recv().map_err(io::Error::other)??;
        Ok(Self { process, last_lines, reader: Some(reader) })
    }

    /// The last lines it wrote to stderr. One that is about to end is heard out.
    pub(super) fn last_words(&self) -> Option<String> {
        self.wait(GRACE);
        let lines = lock(&self.last_lines);
        (!lines.is_empty()).then(|| lines.iter().map(String::as_str).collect::<Vec<_>>().join("; "))
    }

    /// Waits until it has ended and everything it said was read, but not longer than that.
    fn wait(&self, longest: Duration) -> bool {
        let is_over = || self.reader.as_ref().is_none_or(JoinHandle::is_finished);
        let mut waited = Duration::ZERO;
        while waited < longest && !is_over() {
            thread::sleep(STEP);
            waited += STEP;
        }
        is_over()
    }

    #[cfg(test)]
    pub(super) fn id(&self) -> u32 {
        lock(&self.process).id()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.wait(GRACE) {
            // It is reaped under the same lock: the number is still its own.
            let process = lock(&self.process);
            if !has_ended(process.id()) {
                kill_group(&process);
            }
        }
        if !self.wait(PATIENCE) {
            return tracing::warn!(
                "virtiofsd (process {}) does not end although it is killed: what it shares hangs, and it is left behind",
                lock(&self.process).id()
            );
        }
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

/// Logs what it says until its end, ends whoever it leaves behind, and reaps it. In a sandbox of namespaces it is two processes,
/// the second of which would be an orphan: nobody's, or ours, when we are PID 1.
fn see_out(process: &Mutex<process::Child>, mut stderr: ChildStderr, mut lines: Lines<'_>) {
    let id = lock(process).id();
    let end = process_descriptor(id).ok();
    let (mut speaks, mut is_over, mut rest) = (true, false, MAX_REST_BYTES);
    let mut buffer = [0; 4096];
    while speaks || !is_over {
        let mut watched = Vec::with_capacity(2);
        if speaks {
            watched.push(PollFd::new(stderr.as_fd(), PollFlags::POLLIN));
        }
        if let Some(end) = end.as_ref().filter(|_| !is_over) {
            watched.push(PollFd::new(end.as_fd(), PollFlags::POLLIN));
        }
        let must_look = end.is_none() || is_over;
        let longest =
            if must_look { STEP.try_into().unwrap_or(PollTimeout::ZERO) } else { PollTimeout::NONE };
        match poll(&mut watched, longest) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return,
        }
        let said = speaks && watched.first().is_some_and(|fd| fd.any().unwrap_or(false));
        drop(watched);
        if said {
            match stderr.read(&mut buffer) {
                Ok(len @ 1..) if rest > 0 => {
                    lines.push(buffer.get(..len).unwrap_or_default());
                    rest -= if is_over { len.min(rest) } else { 0 };
                }
                _ => speaks = false,
            }
        } else if is_over {
            speaks = false;
        }
        if !is_over && has_ended(id) {
            is_over = true;
            kill_group(&lock(process));
        }
    }
    lines.finish();
    match lock(process).wait() {
        Ok(status) if !status.success() => lines.quotes.warn(&format!("virtiofsd ended: {status}")),
        _ => {}
    }
    reap_group(id);
}

/// Whether it has ended. It stays a zombie: until it is reaped, nobody else gets its number.
fn has_ended(id: u32) -> bool {
    let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    !matches!(
        waitid(Id::Pid(Pid::from_raw(id.cast_signed())), look),
        Ok(WaitStatus::StillAlive) | Err(Errno::EINTR)
    )
}

/// Kills it and those it started. It must not have been reaped.
fn kill_group(process: &process::Child) {
    let _ = killpg(Pid::from_raw(process.id().cast_signed()), Signal::SIGKILL);
}

/// Reaps those of its group that became our children when it ended.
fn reap_group(id: u32) {
    let mut waited = Duration::ZERO;
    while waited < PATIENCE {
        match waitpid(Pid::from_raw(-id.cast_signed()), Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => thread::sleep(STEP),
            Ok(_) | Err(Errno::EINTR) => continue,
            Err(_) => return,
        }
        waited += STEP;
    }
}

/// A descriptor that can be read when the process has ended (pidfd_open(2)).
fn process_descriptor(id: u32) -> io::Result<OwnedFd> {
    // SAFETY: no memory is involved.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, id, 0) };
    match i32::try_from(fd) {
        // SAFETY: the kernel made the descriptor just now, close-on-exec, and it is nobody else's.
        Ok(fd @ 0..) => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Cuts what it says into lines for the log.
struct Lines<'a> {
    line: Vec<u8>,
    quotes: &'a Quotes,
    last: &'a Mutex<VecDeque<String>>,
}

impl Lines<'_> {
    fn push(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if byte == b'\n' || self.line.len() >= MAX_LINE_BYTES {
                self.finish();
            }
            if byte != b'\n' {
                self.line.push(byte);
            }
        }
    }

    fn finish(&mut self) {
        let text = String::from_utf8_lossy(&self.line).trim_end().to_owned();
        self.line.clear();
        if text.is_empty() {
            return;
        }
        self.quotes.warn(&format!("virtiofsd: {text}"));
        let mut last = lock(self.last);
        if last.len() == LAST_LINES {
            last.pop_front();
        }
        last.push_back(text);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
