//! A process from `exec` on: what it has spent since, and the system calls it makes.
//!
//! Every VMM is watched in the same way: a seccomp filter, installed between fork and exec, lets the calls of interest
//! wait until we have looked at the clocks (seccomp_unotify(2)). Nothing else of the process is slowed down.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use libc::{c_int, c_long, sock_filter};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::Result;

/// KVM API §4.10.
const KVM_RUN: u64 = 0xae80;
/// `_IOWR('!', 0, struct seccomp_notif)` and `_IOWR('!', 1, struct seccomp_notif_resp)`.
const NOTIFICATION_RECEIVE: libc::c_ulong = 0xc050_2100;
const NOTIFICATION_SEND: libc::c_ulong = 0xc018_2101;
/// Offsets in `struct seccomp_data`: the call's number, and the low half of its second argument.
const NUMBER: u32 = 0;
const SECOND_ARGUMENT: u32 = 24;

/// Time that a process has used since its exec.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Spent {
    pub(crate) wall_ms: f64,
    /// User and system time of all its threads.
    pub(crate) cpu_ms: f64,
}

/// Which system calls are looked at.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Watch {
    /// Only KVM_RUN: the process runs undisturbed up to there.
    KvmRun,
    /// Every one: for counting.
    EveryCall,
}

/// The system calls of a process, from its exec to its end.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Calls {
    /// What had been spent when the first KVM_RUN came.
    pub(crate) at_first_run: Option<Spent>,
    /// System calls before the first KVM_RUN.
    pub(crate) before_first_run: u64,
    /// ioctls among them.
    pub(crate) ioctls_before_first_run: u64,
    /// KVM_RUN calls in all.
    pub(crate) runs: u64,
}

/// What parent and child tell each other around exec: a page that both see.
#[derive(Debug)]
struct Slip {
    pid: AtomicI32,
    /// The number the listener has in the child; -1 until there is one.
    listener: AtomicI32,
    /// The parent has the listener, or does without.
    go: AtomicBool,
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

    fn spent(&self) -> Spent {
        let wall = clock_ns(libc::CLOCK_MONOTONIC);
        let cpu = clock_ns(cpu_clock(self.pid.load(Ordering::Relaxed)));
        let ms = |now: u64, then: &AtomicU64| now.saturating_sub(then.load(Ordering::Relaxed)) as f64 / 1e6;
        Spent { wall_ms: ms(wall, &self.wall_ns), cpu_ms: ms(cpu, &self.cpu_ns) }
    }
}

impl Watch {
    /// The filter program (Documentation/userspace-api/seccomp_filter.rst).
    fn filter(self) -> Vec<sock_filter> {
        let load = |offset| statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset, 0, 0);
        let unless = |value, skip| statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, value, 0, skip);
        let answer = |action| statement(libc::BPF_RET | libc::BPF_K, action, 0, 0);
        match self {
            Self::EveryCall => vec![answer(libc::SECCOMP_RET_USER_NOTIF)],
            Self::KvmRun => vec![
                load(NUMBER),
                unless(libc::SYS_ioctl as u32, 3),
                load(SECOND_ARGUMENT),
                unless(KVM_RUN as u32, 1),
                answer(libc::SECCOMP_RET_USER_NOTIF),
                answer(libc::SECCOMP_RET_ALLOW),
            ],
        }
    }
}

fn statement(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code: code as u16, jt, jf, k }
}

/// Installs the filter for this process; the number of its listener.
fn install(filter: &[sock_filter]) -> std::io::Result<RawFd> {
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    // SAFETY: plain integers; needed by everybody who is not root.
    unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    let (operation, flags) = (libc::SECCOMP_SET_MODE_FILTER, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER);
    // SAFETY: the program points to a live slice of that many statements.
    let fd = unsafe { libc::syscall(libc::SYS_seccomp, operation, flags, &raw const program) };
    if fd < 0 { Err(std::io::Error::last_os_error()) } else { Ok(fd as RawFd) }
}

/// The watcher's thread: fetches the listener from the child, lets the child go, and counts until it has ended.
fn watch_calls(slip: &Slip, abandoned: &AtomicBool) -> Result<Calls> {
    let listener = loop {
        match slip.listener.load(Ordering::Acquire) {
            -1 if abandoned.load(Ordering::Relaxed) => return Ok(Calls::default()),
            -1 => thread::sleep(Duration::from_micros(50)),
            fd => break fetch(slip.pid.load(Ordering::Relaxed), fd),
        }
    };
    slip.go.store(true, Ordering::Release);
    let listener = listener?;
    let mut calls = Calls::default();
    while let Some((id, data)) = receive(&listener)? {
        calls.count(slip, &data);
        let _ = go_on(&listener, id);
    }
    Ok(calls)
}

/// Takes a descriptor of another process.
fn fetch(pid: c_int, fd: RawFd) -> std::io::Result<OwnedFd> {
    let process = descriptor(
        // SAFETY: plain integers.
        unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) },
    )?;
    descriptor(
        // SAFETY: plain integers.
        unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), fd, 0) },
    )
}

fn descriptor(result: c_long) -> std::io::Result<OwnedFd> {
    if result < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the call that returned it made it for us alone.
    Ok(OwnedFd::from(unsafe { File::from_raw_fd(result as RawFd) }))
}

/// The next call that waits; `None` when the process is gone.
fn receive(listener: &OwnedFd) -> Result<Option<(u64, libc::seccomp_data)>> {
    loop {
        let mut waiting = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        poll(&mut waiting, PollTimeout::NONE)?;
        if !waiting[0].revents().unwrap_or(PollFlags::POLLHUP).contains(PollFlags::POLLIN) {
            return Ok(None);
        }
        // SAFETY: all-zero is what the kernel wants to find here.
        let mut notice: libc::seccomp_notif = unsafe { std::mem::zeroed() };
        // SAFETY: the structure is the one this request fills.
        if unsafe { libc::ioctl(listener.as_raw_fd(), NOTIFICATION_RECEIVE as _, &raw mut notice) } == 0 {
            return Ok(Some((notice.id, notice.data)));
        }
        // The caller was killed meanwhile.
    }
}

/// Lets a waiting call happen.
fn go_on(listener: &OwnedFd, id: u64) -> std::io::Result<()> {
    let flags = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32;
    let mut answer = libc::seccomp_notif_resp { id, val: 0, error: 0, flags };
    // SAFETY: the structure is the one this request reads.
    match unsafe { libc::ioctl(listener.as_raw_fd(), NOTIFICATION_SEND as _, &raw mut answer) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

impl Calls {
    fn count(&mut self, slip: &Slip, data: &libc::seccomp_data) {
        let number = c_long::from(data.nr);
        if number == libc::SYS_execve {
            // What came before was the child on its way to exec.
            *self = Self::default();
        }
        let is_ioctl = number == libc::SYS_ioctl;
        if is_ioctl && data.args[1] == KVM_RUN {
            self.runs += 1;
            self.at_first_run.get_or_insert_with(|| slip.spent());
        } else if self.at_first_run.is_none() {
            self.before_first_run += 1;
            self.ioctls_before_first_run += u64::from(is_ioctl);
        }
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
        command.args(["-c", "echo up; sleep 100"]);
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
