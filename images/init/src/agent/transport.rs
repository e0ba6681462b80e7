//! What connects agent and host: vsock; for tests, and for a host in the same system, Unix sockets.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, Shutdown, SockFlag, SockType, SockaddrLike, UnixAddr, VsockAddr,
    accept4, bind, connect, getpeername, listen, send, setsockopt, shutdown, socket, sockopt,
};
use nix::sys::time::TimeVal;

/// The host's number on every vsock (`VMADDR_CID_HOST`).
const HOST: u32 = 2;

/// Ports that in a guest only privileged processes can bind: the host can tell the agent by such a one.
const PRIVILEGED: std::ops::Range<u32> = 960..1024;

/// Where to listen, or where the host listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Address {
    /// `vsock:PORT`
    Vsock(u32),
    /// `unix:PATH`
    Unix(PathBuf),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("vsock", port)) => {
                port.parse().map(Self::Vsock).map_err(|_| format!("{port} is no vsock port"))
            }
            Some(("unix", path)) if !path.is_empty() => Ok(Self::Unix(path.into())),
            _ => Err(format!("{text} is neither vsock:PORT nor unix:PATH")),
        }
    }
}

/// A connection. Reading and writing need no exclusive access, for the two directions are independent.
#[derive(Debug)]
pub(crate) struct Stream(OwnedFd);

/// A socket that takes the host's connections.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: OwnedFd,
    vsock: bool,
}

/// Listens at that address.
pub(crate) fn listen_at(address: &Address) -> io::Result<Listener> {
    let socket = match address {
        Address::Vsock(port) => {
            let socket = new_socket(AddressFamily::Vsock)?;
            bind(socket.as_raw_fd(), &VsockAddr::new(libc::VMADDR_CID_ANY, *port))?;
            socket
        }
        Address::Unix(path) => {
            let socket = new_socket(AddressFamily::Unix)?;
            bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
            socket
        }
    };
    listen(&socket, Backlog::new(128)?)?;
    Ok(Listener { socket, vsock: matches!(address, Address::Vsock(_)) })
}

/// Connects to the host.
pub(crate) fn connect_to(address: &Address) -> io::Result<Stream> {
    match address {
        Address::Vsock(port) => {
            let socket = new_socket(AddressFamily::Vsock)?;
            let mut bound = Err(Errno::EADDRINUSE);
            for own in PRIVILEGED.rev() {
                bound = bind(socket.as_raw_fd(), &VsockAddr::new(libc::VMADDR_CID_ANY, own));
                if bound != Err(Errno::EADDRINUSE) {
                    break;
                }
            }
            bound?;
            connect_uninterrupted(&socket, &VsockAddr::new(HOST, *port))?;
            Ok(Stream(socket))
        }
        Address::Unix(path) => {
            let socket = new_socket(AddressFamily::Unix)?;
            connect_uninterrupted(&socket, &UnixAddr::new(path)?)?;
            Ok(Stream(socket))
        }
    }
}

/// Whether this system has that transport at all, whoever may be at the other end.
pub(crate) fn exists(address: &Address) -> bool {
    match address {
        Address::Vsock(_) => new_socket(AddressFamily::Vsock).is_ok(),
        Address::Unix(_) => true,
    }
}

fn new_socket(family: AddressFamily) -> nix::Result<OwnedFd> {
    socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)
}

fn connect_uninterrupted<A: SockaddrLike>(socket: &OwnedFd, address: &A) -> nix::Result<()> {
    loop {
        match connect(socket.as_raw_fd(), address) {
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
}

impl Listener {
    /// The host's next connection. Others (programs of this guest that came over vsock's loopback) are turned away.
    pub(crate) fn accept(&self) -> io::Result<Stream> {
        loop {
            let accepted = match accept4(self.socket.as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
                Err(Errno::EINTR | Errno::ECONNABORTED) => continue,
                accepted => accepted?,
            };
            // SAFETY: accept4 has just made it, and nobody else has it.
            let stream = Stream(unsafe { OwnedFd::from_raw_fd(accepted) });
            let from_host = || getpeername::<VsockAddr>(accepted).is_ok_and(|peer| peer.cid() == HOST);
            if !self.vsock || from_host() {
                return Ok(stream);
            }
        }
    }
}

impl Stream {
    /// How long a read may wait for the peer; `None`: for ever.
    pub(crate) fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        Ok(setsockopt(&self.0, sockopt::ReceiveTimeout, &time_value(timeout))?)
    }

    /// How long a write may wait for the peer.
    pub(crate) fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        Ok(setsockopt(&self.0, sockopt::SendTimeout, &time_value(timeout))?)
    }

    /// From now on, reads and writes that would wait fail with `WouldBlock`.
    pub(crate) fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        set_nonblocking(&self.0, nonblocking)
    }

    /// Says that nothing more will be written.
    pub(crate) fn shut_write(&self) {
        // A peer that is gone needs not be told.
        let _gone = shutdown(self.0.as_raw_fd(), Shutdown::Write);
    }

    /// Ends the connection, for whoever reads from it too.
    pub(crate) fn shut(&self) {
        let _gone = shutdown(self.0.as_raw_fd(), Shutdown::Both);
    }

    /// Waits until the peer has closed the connection, and takes in what it still says; false when it does not until
    /// then.
    pub(crate) fn wait_for_close(&self, deadline: Instant) -> bool {
        let mut bytes = [0; 1024];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || self.set_read_timeout(Some(left)).is_err() {
                return false;
            }
            match (&mut &*self).read(&mut bytes) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => {
                    return !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
                }
            }
        }
    }

    /// Whether the peer has closed the connection altogether. A Unix socket polls so; a vsock does not, but refuses to
    /// send even nothing.
    pub(crate) fn is_closed_by_peer(&self) -> bool {
        let mut hung_up = [PollFd::new(self.0.as_fd(), PollFlags::empty())];
        poll(&mut hung_up, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
            || send(self.0.as_raw_fd(), &[], MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT)
                == Err(Errno::EPIPE)
    }
}

fn time_value(timeout: Option<Duration>) -> TimeVal {
    let timeout = timeout.unwrap_or_default();
    TimeVal::new(i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX), i64::from(timeout.subsec_micros()))
}

/// Sets or clears O_NONBLOCK.
pub(crate) fn set_nonblocking<F: AsFd>(file: F, nonblocking: bool) -> io::Result<()> {
    let mut flags = OFlag::from_bits_retain(fcntl(&file, FcntlArg::F_GETFL)?);
    flags.set(OFlag::O_NONBLOCK, nonblocking);
    fcntl(&file, FcntlArg::F_SETFL(flags))?;
    Ok(())
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Read for &Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(nix::unistd::read(&self.0, buffer)?)
    }
}

impl Write for &Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(send(self.0.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_a_port_or_a_path() {
        assert_eq!("vsock:700".parse(), Ok(Address::Vsock(700)));
        assert_eq!("unix:/run/a:b".parse(), Ok(Address::Unix("/run/a:b".into())));
        for wrong in ["", "700", "vsock:", "vsock:x", "unix:", "tcp:1"] {
            assert!(wrong.parse::<Address>().is_err(), "{wrong}");
        }
    }
}
