//! Taking a socket's path for this process, and giving it back; listening at the status socket's.
//!
//! A lock file beside the socket decides between two starters; the socket itself says whether an instance without a
//! lock is alive. Both are removed by the process that made them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::sys::stat::{Mode, fchmod};
use tokio::net::{UnixListener, UnixSocket};

/// Connections that may wait to be accepted; the kernel's own limit is net.core.somaxconn.
const BACKLOG: u32 = 1024;
/// A lock file that is removed while we open it is opened again; more often than this it is no accident.
const LOCK_ATTEMPTS: usize = 16;

/// Why a socket path cannot be used. Each text is one sentence with the path and the mend.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Somebody serves it.
    #[error("the socket {} is in use by {owner}: stop it, or choose another path with {flag}", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
        /// `process 17`, or what is known.
        owner: String,
        /// What names the path.
        flag: &'static str,
    },
    /// Something that is no socket is there.
    #[error("{} exists and is not a socket: remove it, or choose another path with {flag}", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
        /// What names it.
        flag: &'static str,
    },
    /// A step failed.
    #[error("cannot {step} {}: {reason}; choose another path with {flag}", path.display())]
    Step {
        /// What was tried.
        step: &'static str,
        /// On which path.
        path: PathBuf,
        /// The error in words.
        reason: String,
        /// What names the path.
        flag: &'static str,
    },
}

/// The status socket, which belongs to this process until this value is dropped.
#[derive(Debug)]
pub struct Claim {
    _path: PathClaim,
    listener: Option<UnixListener>,
}

impl Claim {
    /// The listener, for the one server that serves it.
    pub(super) fn take_listener(&mut self) -> Option<UnixListener> {
        self.listener.take()
    }
}

/// Claims `path` and listens there with mode 0600. Must be called inside a tokio runtime.
///
/// # Errors
/// When a live instance has the path, when something else is there, or when a step fails.
pub fn claim(path: &Path) -> Result<Claim, SocketError> {
    let (claim, listener) = PathClaim::listen(path, "--socket", listen)?;
    Ok(Claim { _path: claim, listener: Some(listener) })
}

/// A path at which this process alone may listen, until this value is dropped.
#[derive(Debug)]
pub(crate) struct PathClaim {
    path: PathBuf,
    lock_path: PathBuf,
    _lock: Flock<File>,
}

impl PathClaim {
    /// Claims `path`, which `flag` names: creates its directory, takes its lock, removes a dead instance's socket; then
    /// `listen` makes the new one.
    ///
    /// # Errors
    /// When a live instance has the path, when something else is there, or when a step fails.
    pub(crate) fn listen<L>(
        path: &Path,
        flag: &'static str,
        listen: impl FnOnce(&Path) -> io::Result<L>,
    ) -> Result<(Self, L), SocketError> {
        let wanted = Wanted { path, flag };
        wanted.create_parent()?;
        let lock_path = lock_path_of(path);
        let lock = wanted.take_lock(&lock_path)?;
        let listening = wanted
            .clear_dead_socket()
            .and_then(|()| listen(path).map_err(|error| wanted.failed("listen on", path, &error)));
        let listener = listening.inspect_err(|_| {
            let _ = fs::remove_file(&lock_path);
        })?;
        Ok((Self { path: path.to_owned(), lock_path, _lock: lock }, listener))
    }

    /// The path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for PathClaim {
    fn drop(&mut self) {
        // The socket first and the lock last: whoever gets the lock next finds a clean path.
        let _ = fs::remove_file(&self.path);
        let _ = fs::remove_file(&self.lock_path);
    }
}

fn lock_path_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    name.into()
}

/// A path that is being claimed.
#[derive(Debug, Clone, Copy)]
struct Wanted<'a> {
    path: &'a Path,
    flag: &'static str,
}

impl Wanted<'_> {
    fn failed(self, step: &'static str, path: &Path, error: &io::Error) -> SocketError {
        let reason = crate::spec::in_words(error);
        SocketError::Step { step, path: path.to_owned(), reason, flag: self.flag }
    }

    fn create_parent(self) -> Result<(), SocketError> {
        let Some(parent) = self.path.parent().filter(|parent| !parent.as_os_str().is_empty()) else {
            return Ok(());
        };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(parent)
            .map_err(|error| self.failed("create the socket's directory", parent, &error))
    }

    /// Locks the lock file and writes our process id into it. The file we locked must still be the one at the path:
    /// its last owner removes it.
    fn take_lock(self, lock_path: &Path) -> Result<Flock<File>, SocketError> {
        for _ in 0..LOCK_ATTEMPTS {
            let file =
                open_lock(lock_path).map_err(|error| self.failed("open the lock file", lock_path, &error))?;
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(mut lock) if is_at(&lock, lock_path) => {
                    let _ = lock.set_len(0).and_then(|()| write!(*lock, "{}", std::process::id()));
                    return Ok(lock);
                }
                Ok(_) => {}
                Err((file, nix::errno::Errno::EWOULDBLOCK)) => return Err(self.in_use(pid_in(file))),
                Err((_, errno)) => return Err(self.failed("lock", lock_path, &errno.into())),
            }
        }
        Err(self.in_use(None))
    }

    fn in_use(self, pid: Option<i32>) -> SocketError {
        let owner = match pid {
            Some(pid) if pid > 0 => format!("process {pid}"),
            _ => "another process".to_owned(),
        };
        SocketError::InUse { path: self.path.to_owned(), owner, flag: self.flag }
    }

    /// Removes a socket that nobody listens on; anything else at the path is refused.
    fn clear_dead_socket(self) -> Result<(), SocketError> {
        let path = self.path;
        let metadata = match fs::symlink_metadata(path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(self.failed("look at", path, &error)),
        };
        if !metadata.file_type().is_socket() {
            return Err(SocketError::NotASocket { path: path.to_owned(), flag: self.flag });
        }
        match UnixStream::connect(path) {
            Ok(stream) => Err(self.in_use(getsockopt(&stream, PeerCredentials).ok().map(|peer| peer.pid()))),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                fs::remove_file(path).map_err(|error| self.failed("remove the dead socket", path, &error))
            }
            Err(error) => Err(self.failed("connect to the socket that is at", path, &error)),
        }
    }
}

fn open_lock(lock_path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(lock_path)
}

fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::symlink_metadata(path)) {
        (Ok(ours), Ok(there)) => ours.dev() == there.dev() && ours.ino() == there.ino(),
        _ => false,
    }
}

fn pid_in(file: File) -> Option<i32> {
    let mut text = String::new();
    file.take(16).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

/// Listens with mode 0600 from the first moment: the node's mode is that of the socket's own inode at bind.
fn listen(path: &Path) -> io::Result<UnixListener> {
    let socket = UnixSocket::new_stream()?;
    set_private(&socket)?;
    socket.bind(path)?;
    socket.listen(BACKLOG)
}

fn set_private(socket: &UnixSocket) -> io::Result<()> {
    fchmod(socket.as_fd(), Mode::from_bits_truncate(0o600)).map_err(io::Error::from)
}

#[cfg(test)]
#[path = "socket_tests.rs"]
mod tests;
