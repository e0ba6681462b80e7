//! Taking the status socket's path for this process, and giving it back.
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

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 128;
/// A lock file that is removed while we open it is opened again; more often than this it is no accident.
const LOCK_ATTEMPTS: usize = 16;

/// Why a socket path cannot be used. Each text is one sentence with the path and the mend.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Somebody serves it.
    #[error("the socket {} is in use by {owner}: stop it, or choose another path with --socket", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
        /// `process 17`, or what is known.
        owner: String,
    },
    /// Something that is no socket is there.
    #[error("{} exists and is not a socket: remove it, or choose another path with --socket", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// A step failed.
    #[error("cannot {step} {}: {reason}; choose another path with --socket", path.display())]
    Step {
        /// What was tried.
        step: &'static str,
        /// On which path.
        path: PathBuf,
        /// The error in words.
        reason: String,
    },
}

/// A socket path that belongs to this process until this value is dropped.
#[derive(Debug)]
pub struct Claim {
    listener: Option<UnixListener>,
    path: PathBuf,
    lock_path: PathBuf,
    _lock: Flock<File>,
}

impl Claim {
    /// The listener, for the one server that serves it.
    pub(super) fn take_listener(&mut self) -> Option<UnixListener> {
        self.listener.take()
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // The socket first and the lock last: whoever gets the lock next finds a clean path.
        let _ = fs::remove_file(&self.path);
        let _ = fs::remove_file(&self.lock_path);
    }
}

/// Claims `path`: creates its directory, takes its lock, replaces a dead instance's socket, and listens with mode 0600.
/// Must be called inside a tokio runtime.
///
/// # Errors
/// When a live instance has the path, when something else is there, or when a step fails.
pub fn claim(path: &Path) -> Result<Claim, SocketError> {
    create_parent(path)?;
    let lock_path = lock_path_of(path);
    let lock = take_lock(path, &lock_path)?;
    let listener = clear_dead_socket(path).and_then(|()| listen(path)).inspect_err(|_| {
        let _ = fs::remove_file(&lock_path);
    })?;
    Ok(Claim { listener: Some(listener), path: path.to_owned(), lock_path, _lock: lock })
}

fn lock_path_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    name.into()
}

fn step_failed(step: &'static str, path: &Path, error: &io::Error) -> SocketError {
    SocketError::Step { step, path: path.to_owned(), reason: crate::spec::in_words(error) }
}

fn create_parent(path: &Path) -> Result<(), SocketError> {
    let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) else { return Ok(()) };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(parent)
        .map_err(|error| step_failed("create the socket's directory", parent, &error))
}

/// Locks the lock file and writes our process id into it. The file we locked must still be the one at the path:
/// its last owner removes it.
fn take_lock(path: &Path, lock_path: &Path) -> Result<Flock<File>, SocketError> {
    for _ in 0..LOCK_ATTEMPTS {
        let file =
            open_lock(lock_path).map_err(|error| step_failed("open the lock file", lock_path, &error))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut lock) if is_at(&lock, lock_path) => {
                let _ = lock.set_len(0).and_then(|()| write!(*lock, "{}", std::process::id()));
                return Ok(lock);
            }
            Ok(_) => {}
            Err((file, nix::errno::Errno::EWOULDBLOCK)) => return Err(in_use(path, pid_in(file))),
            Err((_, errno)) => return Err(step_failed("lock", lock_path, &errno.into())),
        }
    }
    Err(in_use(path, None))
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

fn in_use(path: &Path, pid: Option<i32>) -> SocketError {
    let owner = match pid {
        Some(pid) if pid > 0 => format!("process {pid}"),
        _ => "another process".to_owned(),
    };
    SocketError::InUse { path: path.to_owned(), owner }
}

/// Removes a socket that nobody listens on; anything else at the path is refused.
fn clear_dead_socket(path: &Path) -> Result<(), SocketError> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(step_failed("look at", path, &error)),
    };
    if !metadata.file_type().is_socket() {
        return Err(SocketError::NotASocket { path: path.to_owned() });
    }
    match UnixStream::connect(path) {
        Ok(stream) => Err(in_use(path, getsockopt(&stream, PeerCredentials).ok().map(|peer| peer.pid()))),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(|error| step_failed("remove the dead socket", path, &error))
        }
        Err(error) => Err(step_failed("connect to the socket that is at", path, &error)),
    }
}

/// Listens with mode 0600 from the first moment: the node's mode is that of the socket's own inode at bind.
fn listen(path: &Path) -> Result<UnixListener, SocketError> {
    let failed = |error: io::Error| step_failed("listen on", path, &error);
    let socket = UnixSocket::new_stream().map_err(failed)?;
    set_private(&socket).map_err(failed)?;
    socket.bind(path).map_err(failed)?;
    socket.listen(BACKLOG).map_err(failed)
}

fn set_private(socket: &UnixSocket) -> io::Result<()> {
    fchmod(socket.as_fd(), Mode::from_bits_truncate(0o600)).map_err(io::Error::from)
}

#[cfg(test)]
#[path = "socket_tests.rs"]
mod tests;
