//! Connections with programs of the guest that begin or end in this very process: no path, and nobody in between.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::unix::UnixStreamEnd;

/// Connections of ours that the device has not accepted yet. More would mean that it does not run.
const MOST_WAITING: usize = 256;
/// The first port that any program of a guest can have.
const UNPRIVILEGED: u32 = 1024;

/// Takes our end of a connection that the guest began. It must not wait.
pub type Serve = Arc<dyn Fn(UnixStream) + Send + Sync>;

/// The way into the guest for this process, beside the sockets of [`VsockListener`](super::VsockListener).
#[derive(Debug, Clone)]
pub struct Inside(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// Readable while somebody waits to be accepted.
    knock: EventFd,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<UnixStream>,
    served: HashMap<u32, Serve>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inside").finish_non_exhaustive()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inside {
    /// Nothing is served, and nobody waits.
    ///
    /// # Errors
    /// When the kernel has no descriptor left.
    pub fn new() -> io::Result<Self> {
        let knock = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self(Arc::new(Shared { state: Mutex::default(), knock })))
    }

    /// From now on the guest's connections to `port` of the host end here, whatever socket there may be for it. They come from
    /// ports below 1024, which in a guest take a privilege (CAP_NET_BIND_SERVICE): others are refused.
    pub fn serve(&self, port: u32, serve: Serve) {
        self.0.lock().served.insert(port, serve);
    }

    /// Begins a connection to `port` of the guest. The greeting is said; the line `OK n` is the first to be read when the
    /// guest has accepted, and the end when it has not.
    ///
    /// # Errors
    /// When the kernel has no descriptor left, or too many wait already.
    pub fn connect(&self, port: u32) -> io::Result<UnixStream> {
        let (ours, device) = UnixStream::pair()?;
        // Into an empty socket: this does not wait.
        (&ours).write_all(format!("CONNECT {port}\n").as_bytes())?;
        let mut state = self.0.lock();
        if state.waiting.len() >= MOST_WAITING {
            return Err(io::Error::new(io::ErrorKind::WouldBlock, "the guest's vsock device accepts nobody"));
        }
        state.waiting.push_back(device);
        drop(state);
        self.0.knock.write(1)?;
        Ok(ours)
    }

    /// The device's end of the next connection that we have begun.
    pub(super) fn accept(&self) -> Option<UnixStreamEnd> {
        let mut state = self.0.lock();
        if state.waiting.len() <= 1 {
            // Taken under the lock, so that no later knock is lost with it.
            let _ = self.0.knock.read();
        }
        state.waiting.pop_front().map(UnixStreamEnd::from)
    }

    /// The device's end of a connection that the guest begins, if its port is served here.
    pub(super) fn receive(&self, port: u32, from: u32) -> Option<io::Result<UnixStreamEnd>> {
        let serve = self.0.lock().served.get(&port).map(Arc::clone)?;
        if from >= UNPRIVILEGED {
            return Some(Err(io::ErrorKind::PermissionDenied.into()));
        }
        Some(UnixStream::pair().map(|(ours, device)| {
            serve(ours);
            device.into()
        }))
    }
}

impl AsFd for Inside {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.knock.as_fd()
    }
}
