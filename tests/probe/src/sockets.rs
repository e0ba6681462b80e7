//! Every kind of stream socket that leads into or out of a guest, behind one type.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{
    AddressFamily, Backlog, Shutdown, SockFlag, SockType, VsockAddr, accept4, bind, connect, listen,
    shutdown, socket,
};

use crate::error::{Doing, Error, Result};

/// Where a stream begins or ends.
#[derive(Debug, Clone)]
pub(crate) enum Address {
    Tcp(SocketAddr),
    Vsock {
        cid: u32,
        port: u32,
    },
    Unix(PathBuf),
    /// A vsock port of a guest through the VMM's Unix socket: `CONNECT port`, answered by `OK number`.
    Hybrid {
        path: PathBuf,
        port: u32,
    },
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "tcp:{address}"),
            Self::Vsock { cid, port } => write!(f, "vsock:{cid}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Hybrid { path, port } => write!(f, "unix:{}:{port}", path.display()),
        }
    }
}

/// A connected stream.
#[derive(Debug)]
pub(crate) struct Socket(File);

impl Socket {
    /// Connects.
    pub(crate) fn connect(to: &Address) -> Result<Self> {
        let doing = || format!("connect to {to}");
        let fd: OwnedFd = match to {
            Address::Tcp(address) => {
                let stream = TcpStream::connect(address).doing(doing())?;
                stream.set_nodelay(true).doing(doing())?;
                stream.into()
            }
            Address::Vsock { cid, port } => {
                let fd = vsock().doing(doing())?;
                connect(fd.as_raw_fd(), &VsockAddr::new(*cid, *port)).doing(doing())?;
                fd
            }
            Address::Unix(path) => UnixStream::connect(path).doing(doing())?.into(),
            Address::Hybrid { path, port } => {
                let mut stream = UnixStream::connect(path).doing(doing())?;
                stream.write_all(format!("CONNECT {port}\n").as_bytes()).doing(doing())?;
                acknowledged(&mut stream, to)?;
                stream.into()
            }
        };
        Ok(Self(fd.into()))
    }

    /// From now on what would block is an error instead.
    pub(crate) fn set_nonblocking(&self) -> Result<()> {
        let flags = fcntl(&self.0, FcntlArg::F_GETFL).doing("read a socket's flags")?;
        let flags = OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK;
        fcntl(&self.0, FcntlArg::F_SETFL(flags)).doing("set a socket's flags").map(drop)
    }

    /// Says that nothing more will be sent; receiving goes on.
    pub(crate) fn finish_sending(&self) -> Result<()> {
        shutdown(self.0.as_raw_fd(), Shutdown::Write).doing("shut down one direction")
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Socket {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.0.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads `OK number\n` byte by byte, for what follows belongs to the stream.
fn acknowledged(stream: &mut UnixStream, to: &Address) -> Result<()> {
    let mut line = Vec::new();
    let mut byte = [0];
    while line.last() != Some(&b'\n') && line.len() < 32 {
        if stream.read(&mut byte).doing(format!("connect to {to}"))? == 0 {
            break;
        }
        line.extend_from_slice(&byte);
    }
    let text = String::from_utf8_lossy(&line).into_owned();
    let number = text.strip_prefix("OK ").and_then(|rest| rest.strip_suffix('\n'));
    match number.map(str::parse::<u32>) {
        Some(Ok(_)) => Ok(()),
        _ => Err(Error::Mismatch(format!("{to} answered {text:?} to CONNECT, not \"OK <number>\\n\""))),
    }
}

fn vsock() -> nix::Result<OwnedFd> {
    socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)
}

/// A socket that waits for others.
#[derive(Debug)]
pub(crate) struct Listener(OwnedFd);

impl Listener {
    const BACKLOG: i32 = 1024;

    /// Listens. A Unix socket that a dead process left is replaced.
    pub(crate) fn bind(at: &Address) -> Result<Self> {
        let doing = || format!("listen on {at}");
        let fd: OwnedFd = match at {
            Address::Tcp(address) => TcpListener::bind(address).doing(doing())?.into(),
            Address::Vsock { cid, port } => {
                let fd = vsock().doing(doing())?;
                bind(fd.as_raw_fd(), &VsockAddr::new(*cid, *port)).doing(doing())?;
                fd
            }
            Address::Unix(path) | Address::Hybrid { path, .. } => {
                // Nobody listens there now, or binding fails and says so.
                if UnixStream::connect(path).is_err() {
                    drop(std::fs::remove_file(path));
                }
                UnixListener::bind(path).doing(doing())?.into()
            }
        };
        // Again for those that the library made: it asks for a shorter queue than thousands of guests need.
        listen(&fd, Backlog::new(Self::BACKLOG).doing(doing())?).doing(doing())?;
        println!("listening={at}");
        Ok(Self(fd))
    }

    /// The next connection.
    pub(crate) fn accept(&self) -> Result<Socket> {
        let fd = accept4(self.0.as_raw_fd(), SockFlag::SOCK_CLOEXEC).doing("accept a connection")?;
        // SAFETY: the kernel has just made this descriptor for us alone.
        Ok(Socket(unsafe { File::from_raw_fd(fd) }))
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// As many descriptors as we may have: thousands of connections are meant.
pub(crate) fn raise_descriptor_limit() -> Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).doing("read the limit of open files")?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).doing("raise the limit of open files")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn answer(line: &[u8]) -> Result<()> {
        let (mut near, mut far) = UnixStream::pair().unwrap();
        far.write_all(line).unwrap();
        drop(far);
        acknowledged(&mut near, &Address::Hybrid { path: "/s".into(), port: 5 })
    }

    #[test]
    fn only_ok_and_a_number_is_a_connection() {
        answer(b"OK 1073741824\nand more").unwrap();
        for wrong in [&b""[..], b"OK \n", b"OK x\n", b"OK 5", b"NO 5\n", &[b'x'; 100]] {
            assert!(answer(wrong).is_err(), "{wrong:?}");
        }
    }
}
