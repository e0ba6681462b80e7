//! A back end between two starts of its device.

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use vmm_sys_util::eventfd::EventFd;

use super::lane::VhostLane;
use super::{Backend, Ring, VhostError};
use crate::devices::eventfd;
use crate::devices::virtio::{Fault, Lane, Start};

/// The way to a back end.
pub type Reach<B> = Box<dyn FnMut() -> Result<B, VhostError> + Send>;

/// Keeps the back end of a device while no driver uses it, and finds a new one when it is gone.
pub struct Session<B> {
    features: u64,
    /// Apart from the state, which is read for the status: reaching one takes seconds when it is silent.
    reach: Mutex<Reach<B>>,
    state: Mutex<State<B>>,
    /// Whether the back end may serve at all.
    open: AtomicBool,
    /// Tells the lane that this has changed.
    changed: EventFd,
}

struct State<B> {
    /// Who it is or was.
    name: String,
    /// Not there while a lane has it, and after it was lost.
    backend: Option<B>,
    /// Why it was lost.
    lost: Option<String>,
}

impl<B: Backend + 'static> Session<B> {
    /// Reaches the back end for the first time, to learn what it can.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub fn open(mut reach: Reach<B>) -> Result<Arc<Self>, VhostError> {
        let backend = reach()?;
        let (features, name) = (backend.features(), backend.name().to_owned());
        let state = State { name: name.clone(), backend: Some(backend), lost: None };
        let changed = EventFd::new(libc::EFD_NONBLOCK)
            .map_err(|error| VhostError::Unreachable(format!("{name} cannot be watched: {error}")))?;
        Ok(Arc::new(Self {
            features,
            reach: Mutex::new(reach),
            state: Mutex::new(state),
            open: AtomicBool::new(true),
            changed,
        }))
    }

    /// The feature bits the back end can serve.
    #[must_use]
    pub fn features(&self) -> u64 {
        self.features
    }

    /// From now on the back end serves no ring, or does again. The driver does not hear of it: what it makes available
    /// meanwhile waits.
    pub fn set_open(&self, open: bool) {
        self.open.store(open, Ordering::SeqCst);
        // Fails only when the counter is full, and then the lane is on its way.
        let _ = self.changed.write(1);
    }

    /// Whether it may serve.
    pub(super) fn is_open(&self) -> bool {
        self.open.load(Ordering::SeqCst)
    }

    /// Readable when that has changed; and it is read.
    pub(super) fn change(&self) -> RawFd {
        self.changed.as_raw_fd()
    }

    pub(super) fn take_change(&self) -> io::Result<bool> {
        eventfd::take(&self.changed).map(|written| written.is_some())
    }

    /// Who it is, for the status.
    #[must_use]
    pub fn describe(&self) -> String {
        let state = self.lock();
        match &state.lost {
            Some(why) => format!("{} (lost: {why})", state.name),
            None => state.name.clone(),
        }
    }

    /// Hands those queues of `queues` that the driver enabled to the back end, which serves them from now on, and returns
    /// the lane that watches over it. A back end that was lost is reached anew.
    ///
    /// # Errors
    /// When the back end does not serve, or there is no descriptor for it.
    pub fn serve(self: &Arc<Self>, start: &mut Start<'_>, queues: Range<usize>) -> Result<Lane, Fault> {
        let mut rings = Vec::new();
        for index in queues {
            if let Some(queue) = start.queues.take(index) {
                rings.push(Ring::new(index, queue).map_err(Fault::Host)?);
            }
        }
        let broken = EventFd::new(libc::EFD_NONBLOCK).map_err(Fault::Host)?;
        let backend = self.take()?;
        let features = start.features & self.features;
        let mut lane =
            VhostLane::new(Arc::clone(self), backend, features, start.memory.clone(), rings, broken);
        lane.run()?;
        Ok(Lane { queues: Vec::new(), handler: Box::new(lane) })
    }

    /// The back end as it was left, or another one when that is gone: nobody watched it meanwhile.
    fn take(&self) -> Result<B, VhostError> {
        let kept = self.lock().backend.take();
        if let Some(backend) = kept {
            match parting(&backend) {
                None => return Ok(backend),
                Some(why) => self.lose(&why),
            }
        }
        let reached = (self.reach.lock().unwrap_or_else(PoisonError::into_inner))();
        let backend = reached.inspect_err(|error| self.lose(error))?;
        if self.features & !backend.features() != 0 {
            let (who, what) = (backend.name().to_owned(), "features the last one had".to_owned());
            let lacks = VhostError::Lacks { who, what };
            self.lose(&lacks);
            return Err(lacks);
        }
        self.lock().lost = None;
        Ok(backend)
    }

    /// The lane is over; the next one finds the back end here.
    pub(super) fn give_back(&self, backend: B) {
        self.lock().backend = Some(backend);
    }

    /// The lane is over and the back end too.
    pub(super) fn lose(&self, why: &impl ToString) {
        self.lock().lost = Some(why.to_string());
    }

    fn lock(&self) -> MutexGuard<'_, State<B>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<B> std::fmt::Debug for Session<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("features", &self.features).finish_non_exhaustive()
    }
}

/// Why nothing more is to be expected of a back end whose socket can be read; `None` while it cannot.
pub(super) fn parting(backend: &impl Backend) -> Option<VhostError> {
    let mut byte = [0];
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    let who = || backend.name().to_owned();
    match recv(backend.hangup()?, &mut byte, flags) {
        Err(Errno::EAGAIN | Errno::EINTR) => None,
        Ok(1..) => Some(VhostError::Unasked { who: who() }),
        Ok(0) | Err(_) => Some(VhostError::Gone { who: who() }),
    }
}
