//! Unix sockets, and one epoll for thousands of them.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{MsgFlags, Shutdown, UnixAddr, connect, recv, send, shutdown};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use vm_memory::VolatileSlice;

use super::inside::Inside;
use super::listener::{VsockListener, stream_socket};
use super::{Direction, Host, Ready, Stream};

/// UIO_MAXIOV of Linux.
const MAX_VECTORS: usize = 1024;
/// Events taken at once.
const EVENTS: usize = 64;
/// How long nobody is accepted after that failed for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);

const LISTENER: u64 = u64::MAX;
const ALARM: u64 = u64::MAX - 1;
const INSIDE: u64 = u64::MAX - 2;

/// One connected Unix socket.
#[derive(Debug)]
pub struct UnixStreamEnd(OwnedFd);

impl UnixStreamEnd {
    /// `socket` does not block.
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self(socket)
    }
}

impl From<std::os::unix::net::UnixStream> for UnixStreamEnd {
    fn from(stream: std::os::unix::net::UnixStream) -> Self {
        // Fails only for what is no socket.
        let _ = stream.set_nonblocking(true);
        Self(stream.into())
    }
}

impl Stream for UnixStreamEnd {
    fn read(&mut self, room: &[VolatileSlice<'_>]) -> io::Result<usize> {
        let call = |message: &mut libc::msghdr| {
            // SAFETY: the message's vectors are guest memory, mapped as long as the slices they are made of; the guest may
            // change it at any time, but no Rust reference to it exists.
            unsafe { libc::recvmsg(self.0.as_raw_fd(), message, libc::MSG_DONTWAIT) }
        };
        transfer(room, call)
    }

    fn write(&mut self, data: &[VolatileSlice<'_>]) -> io::Result<usize> {
        let call = |message: &mut libc::msghdr| {
            // SAFETY: as for `recvmsg`.
            unsafe { libc::sendmsg(self.0.as_raw_fd(), message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) }
        };
        transfer(data, call)
    }

    fn write_bytes(&mut self, data: &[u8]) -> io::Result<usize> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        again(|| send(self.0.as_raw_fd(), data, flags))
    }

    fn read_line(&mut self, line: &mut Vec<u8>, most: usize) -> io::Result<bool> {
        let socket = self.0.as_raw_fd();
        while line.len() < most {
            let mut buffer = vec![0; most.saturating_sub(line.len())];
            // Looks first, for what follows the line is not ours.
            let seen = match again(|| recv(socket, &mut buffer, MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT))
            {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(seen) => seen,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            };
            let end = buffer.iter().take(seen).position(|&byte| byte == b'\n');
            buffer.truncate(end.map_or(seen, |end| end + 1));
            let taken = again(|| recv(socket, &mut buffer, MsgFlags::MSG_DONTWAIT))?;
            line.extend(buffer.iter().take(taken));
            if line.last() == Some(&b'\n') {
                return Ok(true);
            }
        }
        Ok(true)
    }

    fn shut_down(&mut self, direction: Direction) {
        let how = match direction {
            Direction::ToGuest => Shutdown::Read,
            Direction::ToHost => Shutdown::Write,
        };
        // Fails only when the other end is gone, which is as good.
        let _ = shutdown(self.0.as_raw_fd(), how);
    }
}

impl AsFd for UnixStreamEnd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Repeats what a signal interrupted.
fn again(mut call: impl FnMut() -> nix::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            other => return other.map_err(io::Error::from),
        }
    }
}

/// One call of recvmsg(2) or sendmsg(2) with buffers in guest memory.
fn transfer(
    buffers: &[VolatileSlice<'_>],
    mut call: impl FnMut(&mut libc::msghdr) -> libc::ssize_t,
) -> io::Result<usize> {
    let vector = |slice: &VolatileSlice<'_>| libc::iovec {
        iov_base: slice.ptr_guard_mut().as_ptr().cast(),
        iov_len: slice.len(),
    };
    let mut vectors: Vec<_> = buffers.iter().take(MAX_VECTORS).map(vector).collect();
    // SAFETY: zero is a value of every field.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = vectors.as_mut_ptr();
    message.msg_iovlen = vectors.len() as _;
    again(|| Errno::result(call(&mut message)).map(isize::cast_unsigned))
}

/// What happened on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostEvent {
    /// Somebody connected.
    Knock,
    /// The time of [`UnixHost::set_alarm`] has come.
    Alarm,
    /// A stream's other end did something.
    Stream {
        /// The number it is watched under.
        id: u64,
        /// What.
        ready: Ready,
    },
}

/// All sockets of one vsock device, watched by one epoll, itself a descriptor that is readable when something happened.
#[derive(Debug)]
pub struct UnixHost {
    epoll: Epoll,
    listener: Option<Arc<VsockListener>>,
    inside: Inside,
    timer: TimerFd,
    alarm: Option<Instant>,
    /// Until then nobody is accepted.
    pause: Option<Instant>,
}

impl UnixHost {
    /// Watches `listener`, if there is one, and `inside`.
    ///
    /// # Errors
    /// When the kernel has no descriptor left.
    pub fn new(listener: Option<Arc<VsockListener>>, inside: Inside) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
        if let Some(listener) = &listener {
            epoll.add(&**listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
        }
        epoll.add(&inside, EpollEvent::new(EpollFlags::EPOLLIN, INSIDE))?;
        epoll.add(&timer, EpollEvent::new(EpollFlags::EPOLLIN, ALARM))?;
        Ok(Self { epoll, listener, inside, timer, alarm: None, pause: None })
    }

    /// Takes what happened, some of it if it is much; never waits.
    pub fn take_events(&mut self) -> Vec<HostEvent> {
        let mut events = [EpollEvent::empty(); EVENTS];
        let count = self.epoll.wait(&mut events, EpollTimeout::ZERO).unwrap_or(0);
        events.iter().take(count).map(|event| self.event(event)).collect()
    }

    fn event(&self, event: &EpollEvent) -> HostEvent {
        match event.data() {
            LISTENER | INSIDE => HostEvent::Knock,
            ALARM => {
                // It has expired, so this does not wait; the count is of no use.
                let _ = self.timer.wait();
                HostEvent::Alarm
            }
            id => {
                let has = |flags| event.events().intersects(flags);
                let hung_up = has(EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR);
                let readable = hung_up || has(EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP);
                HostEvent::Stream {
                    id,
                    ready: Ready { readable, writable: has(EpollFlags::EPOLLOUT), hung_up },
                }
            }
        }
    }

    /// The next program that has connected; `None` when nobody has any more, or nobody can be accepted for a while.
    ///
    /// # Errors
    /// When one was turned away.
    pub fn accept(&mut self, now: Instant) -> Option<io::Result<UnixStreamEnd>> {
        if let Some(stream) = self.inside.accept() {
            return Some(Ok(stream));
        }
        match self.listener.as_ref()?.accept() {
            Ok(stream) => Some(Ok(stream)),
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock => None,
                io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted => Some(Err(error)),
                // Who waits there would wake us without end.
                _ => {
                    self.listen(false);
                    self.pause = now.checked_add(ACCEPT_PAUSE);
                    None
                }
            },
        }
    }

    fn listen(&self, wanted: bool) {
        let Some(listener) = &self.listener else { return };
        let flags = if wanted { EpollFlags::EPOLLIN } else { EpollFlags::empty() };
        if let Err(error) = self.epoll.modify(&**listener, &mut EpollEvent::new(flags, LISTENER)) {
            tracing::warn!(%error, "the vsock socket cannot be waited for");
        }
    }

    /// [`HostEvent::Alarm`] comes not later than at `wanted`. It may come sooner, and without need.
    pub fn set_alarm(&mut self, wanted: Option<Instant>, now: Instant) {
        if self.pause.is_some_and(|until| until <= now) {
            self.pause = None;
            self.listen(true);
        }
        if self.alarm.is_some_and(|alarm| alarm <= now) {
            self.alarm = None;
        }
        let Some(wanted) = wanted.into_iter().chain(self.pause).min() else { return };
        if self.alarm.is_some_and(|alarm| alarm <= wanted) {
            return;
        }
        // Zero would disarm it.
        let wait = wanted.saturating_duration_since(now).max(Duration::from_millis(1));
        let expiration = Expiration::OneShot(TimeSpec::from_duration(wait));
        match self.timer.set(expiration, TimerSetTimeFlags::empty()) {
            Ok(()) => self.alarm = Some(wanted),
            Err(error) => tracing::warn!(%error, "vsock has no timer"),
        }
    }
}

impl AsFd for UnixHost {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }
}

impl Host for UnixHost {
    type Stream = UnixStreamEnd;

    fn connect(&mut self, port: u32, from: u32) -> io::Result<UnixStreamEnd> {
        if let Some(ours) = self.inside.receive(port, from) {
            return ours;
        }
        let listener = self.listener.as_ref().ok_or(io::ErrorKind::ConnectionRefused)?;
        let socket = stream_socket()?;
        // A Unix socket connects at once or not at all.
        connect(socket.as_raw_fd(), &UnixAddr::new(&listener.path_of(port))?)?;
        Ok(UnixStreamEnd(socket))
    }

    fn watch(&mut self, stream: &UnixStreamEnd, id: u64) -> io::Result<()> {
        self.epoll.add(stream, EpollEvent::new(INTEREST, id)).map_err(io::Error::from)
    }

    fn watch_room(&mut self, stream: &UnixStreamEnd, id: u64, wanted: bool) {
        let flags = if wanted { INTEREST | EpollFlags::EPOLLOUT } else { INTEREST };
        if let Err(error) = self.epoll.modify(stream, &mut EpollEvent::new(flags, id)) {
            tracing::warn!(%error, "a vsock connection cannot be waited for");
        }
    }
}

/// Each change is told once: nothing has to be turned off while the guest has no room. Room is told of only when it is
/// wanted, for each read at the other end makes some.
const INTEREST: EpollFlags = EpollFlags::EPOLLIN.union(EpollFlags::EPOLLRDHUP).union(EpollFlags::EPOLLET);
