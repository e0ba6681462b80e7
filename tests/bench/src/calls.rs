//! The system calls of another process, seen through a seccomp filter that the process installs right before its exec.
//!
//! Every VMM is watched in the same way: the calls of interest wait until we have looked at the clocks
//! (seccomp_unotify(2)). Nothing else of the process is slowed down.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use libc::{c_int, c_long, sock_filter};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::Result;
use crate::start::{Slip, Spent};

/// KVM API §4.10.
const KVM_RUN: u64 = 0xae80;
/// `_IOWR('!', 0, struct seccomp_notif)` and `_IOWR('!', 1, struct seccomp_notif_resp)`.
const NOTIFICATION_RECEIVE: libc::c_ulong = 0xc050_2100;
const NOTIFICATION_SEND: libc::c_ulong = 0xc018_2101;
/// Offsets in `struct seccomp_data`: the call's number, and the low half of its second argument.
const NUMBER: u32 = 0;
const SECOND_ARGUMENT: u32 = 24;

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

impl Watch {
    /// The filter program (Documentation/userspace-api/seccomp_filter.rst).
    pub(crate) fn filter(self) -> Vec<sock_filter> {
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
pub(crate) fn install(filter: &[sock_filter]) -> std::io::Result<RawFd> {
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    // SAFETY: plain integers; needed by everybody who is not root.
    unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    let (operation, flags) = (libc::SECCOMP_SET_MODE_FILTER, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER);
    // SAFETY: the program points to a live slice of that many statements.
    let fd = unsafe { libc::syscall(libc::SYS_seccomp, operation, flags, &raw const program) };
    if fd < 0 { Err(std::io::Error::last_os_error()) } else { Ok(fd as RawFd) }
}

/// The watcher's thread: fetches the listener from the child, lets the child go, and counts until it has ended.
pub(crate) fn watch_calls(slip: &Slip, abandoned: &AtomicBool) -> Result<Calls> {
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
