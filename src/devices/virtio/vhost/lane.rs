//! The lane of a device whose queues a back end serves: it has no queue, it watches.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::session::{Session, parting};
use super::{Backend, Ring, VhostError};
use crate::devices::eventfd;
use crate::devices::pci::msix::Msix;
use crate::devices::virtio::queue::Queues;
use crate::devices::virtio::{Fault, HostSource, Listen, QueueHandler};

/// What wakes the lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Watched {
    /// A masked vector was signalled.
    Held,
    /// The back end found a ring broken.
    Broken,
    /// The back end hung up.
    Hangup,
    /// It may serve from now on, or must not.
    Opened,
}

/// A back end at work. When it is dropped, the back end has stopped and is the session's again.
pub(super) struct VhostLane<B: Backend + 'static> {
    session: Arc<Session<B>>,
    /// Not there once it is lost.
    backend: Option<B>,
    features: u64,
    memory: GuestMemoryMmap,
    rings: Vec<Ring>,
    broken: EventFd,
    msix: Option<Arc<Msix>>,
    watched: Vec<(Watched, RawFd)>,
    running: bool,
}

impl<B: Backend + 'static> VhostLane<B> {
    pub(super) fn new(
        session: Arc<Session<B>>,
        backend: B,
        features: u64,
        memory: GuestMemoryMmap,
        rings: Vec<Ring>,
        broken: EventFd,
    ) -> Self {
        let msix = rings.first().map(|ring| Arc::clone(ring.msix()));
        let held = msix.as_ref().and_then(|msix| msix.held());
        let watched = [
            (Watched::Held, held),
            (Watched::Broken, Some(broken.as_raw_fd())),
            (Watched::Hangup, backend.hangup()),
            (Watched::Opened, Some(session.change())),
        ];
        let watched = watched.into_iter().filter_map(|(what, fd)| Some((what, fd?))).collect();
        Self {
            session,
            backend: Some(backend),
            features,
            memory,
            rings,
            broken,
            msix,
            watched,
            running: false,
        }
    }

    /// The back end serves from now on, if it may.
    pub(super) fn run(&mut self) -> Result<(), VhostError> {
        if self.running || !self.session.is_open() {
            return Ok(());
        }
        let Some(backend) = &mut self.backend else { return Ok(()) };
        let started = backend.start(self.features, &self.memory, &self.rings, &self.broken);
        if let Err(error) = started {
            return Err(self.lose(error));
        }
        self.running = true;
        self.rings.iter_mut().for_each(Ring::kick);
        Ok(())
    }

    /// The back end leaves the rings alone from now on.
    fn rest(&mut self) -> Result<(), VhostError> {
        let Some(backend) = self.backend.as_mut().filter(|_| self.running) else { return Ok(()) };
        self.running = false;
        match backend.stop(&self.rings) {
            Ok(next) => {
                for (ring, next) in self.rings.iter_mut().zip(next) {
                    ring.next = next;
                }
                Ok(())
            }
            Err(error) => Err(self.lose(error)),
        }
    }

    /// What a back end does that broke the protocol is anybody's guess: nobody talks to it any more.
    fn lose(&mut self, error: VhostError) -> VhostError {
        self.session.lose(&error);
        self.backend = None;
        self.running = false;
        error
    }

    fn who(&self) -> String {
        self.backend.as_ref().map(|backend| backend.name().to_owned()).unwrap_or_default()
    }
}

impl<B: Backend + 'static> QueueHandler for VhostLane<B> {
    fn on_queue(&mut self, _queues: &mut Queues, _index: usize) -> Result<(), Fault> {
        Ok(())
    }

    fn host_sources(&self) -> Vec<HostSource> {
        self.watched.iter().map(|&(_, fd)| HostSource::new(fd)).collect()
    }

    fn on_host(&mut self, _queues: &mut Queues, source: usize) -> Result<Listen, Fault> {
        match self.watched.get(source) {
            Some((Watched::Held, _)) => {
                if let Some(msix) = &self.msix {
                    msix.note_held();
                }
                Ok(Listen::Yes)
            }
            Some((Watched::Broken, _)) if eventfd::take(&self.broken).map_err(Fault::Host)?.is_some() => {
                Err(VhostError::Ring { who: self.who() }.into())
            }
            Some((Watched::Hangup, _)) => match self.backend.as_ref().and_then(parting) {
                Some(why) => Err(self.lose(why).into()),
                None => Ok(Listen::Yes),
            },
            Some((Watched::Opened, _)) if self.session.take_change().map_err(Fault::Host)? => {
                if self.session.is_open() { self.run() } else { self.rest() }?;
                Ok(Listen::Yes)
            }
            _ => Ok(Listen::Yes),
        }
    }

    fn quiesce(&mut self, _queues: &mut Queues) -> Result<(), Fault> {
        Ok(self.rest()?)
    }

    fn go_on(&mut self, _queues: &mut Queues) -> Result<(), Fault> {
        Ok(self.run()?)
    }
}

impl<B: Backend + 'static> Drop for VhostLane<B> {
    fn drop(&mut self) {
        // Its error is the session's to tell.
        let _ = self.rest();
        if let Some(backend) = self.backend.take() {
            self.session.give_back(backend);
        }
    }
}
