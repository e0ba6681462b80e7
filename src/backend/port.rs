//! The host side of a named character port: a Unix socket that one client at a time talks over. Nothing here ever waits.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, bind, listen, recv, socket,
};
use nix::sys::stat::{Mode, fchmod};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// Bytes from the guest that may wait for the client; what comes with the last buffer is taken whole.
pub const OUTPUT_BYTES: usize = 64 << 10;
/// Clients that may wait for their turn.
const BACKLOG: i32 = 8;

/// Why a port's socket cannot be had. Each text is one sentence with the path and the mend.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// Somebody listens there.
    #[error("the port's socket {} is in use by another process: stop it, or choose another path", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something that is no socket is there.
    #[error("{} exists and is not a socket: remove it, or choose another path for the port", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// A step failed.
    #[error("the port's socket {} cannot be made: {reason}", path.display())]
    Step {
        /// The path.
        path: PathBuf,
        /// The error in words.
        reason: String,
    },
}

/// What a port's client has for the guest.
#[derive(Debug, PartialEq, Eq)]
pub enum Input {
    /// These bytes.
    Bytes(Vec<u8>),
    /// Nothing now.
    Nothing,
    /// Nothing any more: there is no client, or it has just gone.
    Ended,
}

/// What a port wants to be woken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interest {
    /// The guest takes input.
    pub input: bool,
    /// The next client may come.
    pub accept: bool,
}

/// A listening socket and its client. As a descriptor it is readable when something it is interested in can be done.
#[derive(Debug)]
pub struct PortSocket {
    epoll: Epoll,
    listener: UnixListener,
    accepting: bool,
    client: Option<Client>,
    path: PathBuf,
    inode: u64,
}

#[derive(Debug)]
struct Client {
    stream: UnixStream,
    output: VecDeque<u8>,
    /// The client takes nothing any more. What it sent before is still read.
    deaf: bool,
    /// What the epoll was told, if the client is in it.
    watched: Option<EventSet>,
}

impl PortSocket {
    /// Listens at `path`, for our own user alone; a socket nobody listens on any more is replaced.
    ///
    /// # Errors
    /// See [`PortError`].
    pub fn listen(path: &Path) -> Result<Self, PortError> {
        let failed = |error: io::Error| PortError::Step { path: path.to_owned(), reason: error.to_string() };
        clear_dead_socket(path)?;
        let listener = bind_private(path).map_err(|errno| failed(errno.into()))?;
        let inode = fs::symlink_metadata(path).map_err(failed)?.ino();
        let epoll = Epoll::new().map_err(failed)?;
        Ok(Self { epoll, listener, accepting: false, client: None, path: path.to_owned(), inode })
    }

    /// Whether a client is there.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.client.is_some()
    }

    /// Whether output of the guest is taken: there is room, or nobody who wants it.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.client.as_ref().is_none_or(|client| client.deaf || client.output.len() < OUTPUT_BYTES)
    }

    /// Takes output of the guest. `false` when there is no client for it; then it is gone.
    pub fn write(&mut self, data: &[u8]) -> bool {
        let Some(client) = self.client.as_mut().filter(|client| !client.deaf) else { return false };
        client.output.extend(data);
        client.flush();
        true
    }

    /// Reads input for the guest, at most `room` bytes.
    pub fn read(&mut self, room: usize) -> Input {
        let Some(client) = &mut self.client else { return Input::Ended };
        let mut data = vec![0; room];
        match client.stream.read(&mut data) {
            Ok(0) => {
                self.hang_up();
                Input::Ended
            }
            Ok(len) => {
                data.truncate(len);
                Input::Bytes(data)
            }
            Err(error) if is_later(&error) => Input::Nothing,
            Err(_) => {
                self.hang_up();
                Input::Ended
            }
        }
    }

    /// Does what can be done without the guest: lets the next client in, writes what waits for the client, and notices that
    /// a client has gone without leaving anything.
    pub fn advance(&mut self) {
        if self.client.is_none()
            && self.accepting
            && let Ok((stream, _)) = self.listener.accept()
            && stream.set_nonblocking(true).is_ok()
        {
            self.client = Some(Client { stream, output: VecDeque::new(), deaf: false, watched: None });
        }
        if let Some(client) = &mut self.client {
            client.flush();
            if client.watched == Some(EventSet::empty()) && client.left_nothing() {
                self.hang_up();
            }
        }
    }

    /// Says what to be woken for, beside room for waiting output.
    pub fn set_interest(&mut self, interest: Interest) {
        if self.accepting != interest.accept {
            let operation = if interest.accept { ControlOperation::Add } else { ControlOperation::Delete };
            if self.control(operation, self.listener.as_raw_fd(), EventSet::IN) {
                self.accepting = interest.accept;
            }
        }
        let Some(client) = &self.client else { return };
        let mut wanted = EventSet::empty();
        if interest.input {
            wanted |= EventSet::IN;
        }
        if !client.output.is_empty() {
            wanted |= EventSet::OUT;
        }
        // A hang-up is told whatever is wanted. One that left something which the guest does not take yet would tell
        // without end.
        let wanted = (!wanted.is_empty() || !client.has_hung_up()).then_some(wanted);
        let operation = match (client.watched, wanted) {
            (before, after) if before == after => return,
            (Some(_), Some(_)) => ControlOperation::Modify,
            (None, _) => ControlOperation::Add,
            (_, None) => ControlOperation::Delete,
        };
        let done = self.control(operation, client.stream.as_raw_fd(), wanted.unwrap_or(EventSet::empty()));
        if let Some(client) = self.client.as_mut().filter(|_| done) {
            client.watched = wanted;
        }
    }

    /// Whether the epoll knows of it now.
    fn control(&self, operation: ControlOperation, fd: i32, events: EventSet) -> bool {
        let done = self.epoll.ctl(operation, fd, EpollEvent::new(events, 0));
        if let Err(error) = &done {
            tracing::warn!(%error, path = %self.path.display(), "a port's socket cannot be waited for");
        }
        done.is_ok()
    }

    /// The client is gone. Closing its descriptor takes it out of the epoll.
    fn hang_up(&mut self) {
        self.client = None;
    }
}

impl Client {
    fn flush(&mut self) {
        while !self.output.is_empty() {
            match self.stream.write(self.output.as_slices().0) {
                Ok(done @ 1..) => drop(self.output.drain(..done)),
                Err(error) if is_later(&error) => return,
                Ok(0) | Err(_) => {
                    self.deaf = true;
                    self.output.clear();
                }
            }
        }
    }

    fn has_hung_up(&self) -> bool {
        let mut fds = [nix::poll::PollFd::new(self.stream.as_fd(), nix::poll::PollFlags::empty())];
        nix::poll::poll(&mut fds, nix::poll::PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    /// Whether it has gone and nothing that it sent is left.
    fn left_nothing(&self) -> bool {
        let mut byte = [0];
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        self.has_hung_up() && recv(self.stream.as_raw_fd(), &mut byte, flags) == Ok(0)
    }
}

impl AsFd for PortSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as the epoll is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.epoll.as_raw_fd()) }
    }
}

impl Drop for PortSocket {
    fn drop(&mut self) {
        self.close();
    }
}

impl PortSocket {
    /// Nobody can connect any more, and the client is let go.
    pub fn close(&mut self) {
        self.hang_up();
        // Only our own: somebody may have put another in its place.
        if fs::symlink_metadata(&self.path).is_ok_and(|metadata| metadata.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn is_later(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// Removes a socket that nobody listens on; anything else at the path is refused.
fn clear_dead_socket(path: &Path) -> Result<(), PortError> {
    let Ok(metadata) = fs::symlink_metadata(path) else { return Ok(()) };
    if !metadata.file_type().is_socket() {
        return Err(PortError::NotASocket { path: path.to_owned() });
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)
            .map_err(|error| PortError::Step { path: path.to_owned(), reason: error.to_string() }),
        _ => Err(PortError::InUse { path: path.to_owned() }),
    }
}

/// Listens with mode 0600 from the first moment: the node's mode is that of the socket's own inode at bind.
fn bind_private(path: &Path) -> nix::Result<UnixListener> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket: OwnedFd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    fchmod(&socket, Mode::from_bits_truncate(0o600))?;
    bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    listen(&socket, Backlog::new(BACKLOG)?)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests;
