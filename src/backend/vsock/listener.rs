//! The socket that programs of the host connect to.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept4, bind, listen, socket};
use nix::sys::stat::{Mode, fchmod};

use super::unix::UnixStreamEnd;
use crate::status::socket::{PathClaim, SocketError};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;

/// Listens at the VM's vsock path, which belongs to this process until this value is dropped.
#[derive(Debug)]
pub struct VsockListener {
    claim: PathClaim,
    socket: OwnedFd,
    /// Given up for a moment when no other descriptor is left, so that who connects can be told.
    spare: Mutex<Option<File>>,
}

impl VsockListener {
    /// Claims `path` and listens there, with mode 0600. The socket of a dead process is replaced.
    ///
    /// # Errors
    /// When a live process has the path, when something else is there, or when a step fails.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let listen = |path: &Path| listen_at(path).map_err(io::Error::from);
        let (claim, socket) = PathClaim::listen(path, "--vsock path=", listen)?;
        Ok(Self { claim, socket, spare: Mutex::new(File::open("/dev/null").ok()) })
    }

    /// Where.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.claim.path()
    }

    /// The socket that the guest's connections to `port` go to.
    #[must_use]
    pub fn path_of(&self, port: u32) -> PathBuf {
        let mut name = self.path().as_os_str().to_owned();
        name.push(format!("_{port}"));
        name.into()
    }

    /// The next program that has connected. When this process has no descriptor left, it is turned away.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when nobody has; [`io::ErrorKind::ConnectionAborted`] when one was turned away or had
    /// gone; others when nobody can be turned away either.
    pub fn accept(&self) -> io::Result<UnixStreamEnd> {
        match self.accept_one() {
            Ok(socket) => Ok(UnixStreamEnd::new(socket)),
            Err(Errno::EMFILE | Errno::ENFILE) => {
                let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
                drop(spare.take());
                let turned_away = self.accept_one().map(drop);
                *spare = File::open("/dev/null").ok();
                turned_away?;
                Err(io::ErrorKind::ConnectionAborted.into())
            }
            Err(errno) => Err(errno.into()),
        }
    }

    fn accept_one(&self) -> nix::Result<OwnedFd> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = accept4(self.socket.as_raw_fd(), flags)?;
        // SAFETY: the kernel has just made this descriptor for us alone.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

impl AsFd for VsockListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Private from the first moment: the node's mode is that of the socket's own inode at bind.
fn listen_at(path: &Path) -> nix::Result<OwnedFd> {
    let socket = stream_socket()?;
    fchmod(&socket, Mode::from_bits_truncate(0o600))?;
    bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    listen(&socket, Backlog::new(BACKLOG)?)?;
    Ok(socket)
}

/// A Unix socket that never waits.
pub(super) fn stream_socket() -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socket(AddressFamily::Unix, SockType::Stream, flags, None)
}

/// Lets this process have as many descriptors as it may: each connection is one. What the limit is then.
///
/// # Errors
/// The kernel's own.
pub fn raise_descriptor_limit() -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}
