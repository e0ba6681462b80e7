//! A process from `exec` on: what it has spent since, and the system calls it makes.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use libc::sock_filter;

use crate::Result;
use crate::calls::{Calls, Watch, install, watch_calls};

/// Time that a process has used since its exec.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Spent {
    pub(crate) wall_ms: f64,
    /// User and system time of all its threads.
    pub(crate) cpu_ms: f64,
}

/// What parent and child tell each other around exec: a page that both see.
#[derive(Debug)]
pub(crate) struct Slip {
    pub(crate) pid: AtomicI32,
    /// The number the listener has in the child; -1 until there is one.
    pub(crate) listener: AtomicI32,
    /// The parent has the listener, or does without.
    pub(crate) go: AtomicBool,
    /// The clocks right before exec, in nanoseconds.
    wall_ns: AtomicU64,
    cpu_ns: AtomicU64,
}

/// A running process. Killed when dropped.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    stdout: ChildStdout,
    slip: &'static Slip,
    watcher: Option<JoinHandle<Calls>>,
}

impl Process {
    /// Starts the command; its stdout is ours to read.
    pub(crate) fn start(mut command: Command, watch: Option<Watch>) -> Result<Self> {
        let slip = Slip::shared()?;
        let abandoned = Arc::new(AtomicBool::new(false));
        let filter = watch.map(Watch::filter);
        let watcher = watch.map(|_| {
            let abandoned = Arc::clone(&abandoned);
            thread::spawn(move || watch_calls(slip, &abandoned).unwrap_or_default())
        });
        // SAFETY: between fork and exec only system calls and stores to the shared page are made.
        unsafe { command.pre_exec(move || slip.fill(filter.as_deref())) };
        let spawned = command.stdout(Stdio::piped()).spawn();
        let mut child = spawned.map_err(|error| {
            abandoned.store(true, Ordering::Relaxed);
            format!("{} cannot be started: {error}", command.get_program().display())
        })?;
        let stdout = child.stdout.take().ok_or("a process without stdout")?;
        Ok(Self { child, stdout, slip, watcher })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the first line on its stdout and says what had been spent by then.
    pub(crate) fn await_line(&mut self) -> Result<Spent> {
        let mut byte = [0];
        while byte != *b"\n" {
            if self.stdout.read(&mut byte)? == 0 {
                return Err(format!("the VMM ended before its guest spoke: {}", self.child.wait()?).into());
            }
        }
        Ok(self.slip.spent())
    }

    /// Kills it, and says which calls it made.
    pub(crate) fn end(mut self) -> Calls {
        self.kill();
        self.watcher.take().and_then(|watcher| watcher.join().ok()).unwrap_or_default()
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Slip {
    /// A page of its own, shared with the child. It is never unmapped: a measurement has a few dozen of them.
    fn shared() -> Result<&'static Self> {
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping at an address of the kernel's choice.
        let page = unsafe { libc::mmap(std::ptr::null_mut(), size_of::<Self>(), protection, flags, -1, 0) };
        if page == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error().into());
        }
        let slip = page.cast::<Self>();
        let blank = Self {
            pid: AtomicI32::new(0),
            listener: AtomicI32::new(-1),
            go: AtomicBool::new(false),
            wall_ns: AtomicU64::new(0),
            cpu_ns: AtomicU64::new(0),
        };
        // SAFETY: the mapping is large enough, aligned to a page, and nobody else has it yet.
        unsafe { slip.write(blank) };
        // SAFETY: it was initialised just now and stays mapped for ever.
        Ok(unsafe { &*slip })
    }

    /// The child's side, right before exec.
    fn fill(&self, filter: Option<&[sock_filter]>) -> std::io::Result<()> {
        // SAFETY: getpid cannot fail.
        self.pid.store(unsafe { libc::getpid() }, Ordering::Relaxed);
        if let Some(filter) = filter {
            self.listener.store(install(filter)?, Ordering::Release);
            while !self.go.load(Ordering::Acquire) {
                std::hint::spin_loop();
            }
        }
        self.cpu_ns.store(clock_ns(libc::CLOCK_PROCESS_CPUTIME_ID), Ordering::Relaxed);
        self.wall_ns.store(clock_ns(libc::CLOCK_MONOTONIC), Ordering::Release);
        Ok(())
    }

    /// What the process has used since its exec.
    pub(crate) fn spent(&self) -> Spent {
        let wall = clock_ns(libc::CLOCK_MONOTONIC);
        let cpu = clock_ns(cpu_clock(self.pid.load(Ordering::Relaxed)));
        let ms = |now: u64, then: &AtomicU64| now.saturating_sub(then.load(Ordering::Relaxed)) as f64 / 1e6;
        Spent { wall_ms: ms(wall, &self.wall_ns), cpu_ms: ms(cpu, &self.cpu_ns) }
    }
}

/// The clock of a process' CPU time, as clock_getcpuclockid(3) makes it.
fn cpu_clock(pid: libc::pid_t) -> libc::clockid_t {
    const CPUCLOCK_SCHED: libc::clockid_t = 2;
    (!pid << 3) | CPUCLOCK_SCHED
}

fn clock_ns(clock: libc::clockid_t) -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a local structure.
    unsafe { libc::clock_gettime(clock, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn echo() -> Command {
        let mut command = Command::new("/bin/sh");
        // It stops itself: a child of its own would live on, and its listener with it.
        command.args(["-c", "echo up; kill -STOP $$"]);
        command
    }

    #[test]
    fn a_process_is_timed_from_its_exec() {
        let mut process = Process::start(echo(), None).unwrap();
        let spent = process.await_line().unwrap();
        assert!(spent.wall_ms > 0.0 && spent.cpu_ms > 0.0, "{spent:?}");
        process.end();
    }

    #[test]
    fn calls_are_counted_from_exec_on() {
        let mut process = Process::start(echo(), Some(Watch::EveryCall)).unwrap();
        process.await_line().unwrap();
        let calls = process.end();
        assert!(calls.before_first_run > 5, "{calls:?}");
        assert_eq!(calls.runs, 0);
    }

    #[test]
    fn a_program_that_is_not_there_is_an_error() {
        for watch in [None, Some(Watch::KvmRun)] {
            assert!(Process::start(Command::new("/no/such/program"), watch).is_err());
        }
    }
}
