//! A process that ends with us, and whose stderr is in our log.

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{self, ChildStderr, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// A guest can make a program complain without end; the log hears of it so often.
const MAX_LINES: u32 = 100;
const MAX_LINE_BYTES: u64 = 1 << 10;
/// How long it may take to end by itself after the connection closed.
const GRACE: Duration = Duration::from_millis(500);
const STEP: Duration = Duration::from_millis(10);

/// A running process and the thread that reads what it says.
///
/// The thread starts the process too: its death signal (PR_SET_PDEATHSIG) comes when the thread ends that started it, not
/// when the whole process does.
#[derive(Debug)]
pub(super) struct Child {
    process: Arc<Mutex<process::Child>>,
    last_line: Arc<Mutex<Option<String>>>,
    reader: Option<JoinHandle<()>>,
}

impl Child {
    /// Starts `program --fd=N ARGUMENTS…` where N is `listener`.
    pub(super) fn spawn(program: &Path, arguments: &[OsString], listener: UnixListener) -> io::Result<Self> {
        let mut command = Command::new(program);
        let fd = listener.as_raw_fd();
        command.arg(format!("--fd={fd}")).args(arguments);
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
        let last_line = Arc::default();
        let (tell, told) = mpsc::channel();
        let kept = Arc::clone(&last_line);
        let read = move || {
            let mut spawned = command.spawn();
            // The process has it now; when the process ends before it takes our connection, nobody is left to take it.
            drop(listener);
            let stderr = spawned.as_mut().ok().and_then(|child| child.stderr.take());
            let spawned = spawned.map(|child| Arc::new(Mutex::new(child)));
            let process = spawned.as_ref().ok().map(Arc::clone);
            let _ = tell.send(spawned);
            if let (Some(process), Some(stderr)) = (process, stderr) {
                log_lines(stderr, &kept);
                see_out(&process);
            }
        };
        let reader = thread::Builder::new().name("virtiofsd-log".into()).spawn(read)?;
        let process = told.recv().map_err(io::Error::other)??;
        Ok(Self { process, last_line, reader: Some(reader) })
    }

    /// The last line it wrote to stderr.
    pub(super) fn last_line(&self) -> Option<String> {
        lock(&self.last_line).clone()
    }

    #[cfg(test)]
    pub(super) fn id(&self) -> u32 {
        lock(&self.process).id()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let has_ended = || !matches!(lock(&self.process).try_wait(), Ok(None));
        let mut waited = Duration::ZERO;
        while waited < GRACE && !has_ended() {
            thread::sleep(STEP);
            waited += STEP;
        }
        let _ = lock(&self.process).kill();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

/// Waits for its end, without keeping anybody from killing it.
fn see_out(process: &Mutex<process::Child>) {
    loop {
        match lock(process).try_wait() {
            Ok(None) => {}
            Ok(Some(status)) if status.success() => return,
            Ok(Some(status)) => return tracing::warn!("virtiofsd ended: {status}"),
            Err(_) => return,
        }
        thread::sleep(STEP);
    }
}

fn log_lines(stderr: ChildStderr, last_line: &Mutex<Option<String>>) {
    let mut reader = BufReader::new(stderr);
    let mut lines = 0_u32;
    let mut line = Vec::new();
    loop {
        line.clear();
        match reader.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        lines = lines.saturating_add(1);
        if lines < MAX_LINES {
            tracing::warn!("virtiofsd: {text}");
        } else if lines == MAX_LINES {
            tracing::warn!("virtiofsd: it goes on, and is not quoted any more");
        }
        *lock(last_line) = Some(text);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
