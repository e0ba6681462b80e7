//! virtio 1.2 devices over PCI.
//!
//! A device is two types. The one that implements [`VirtioDevice`] says what it is and lives as long as the machine; when
//! the driver is ready, it starts one [`QueueHandler`] per lane: a set of queues that one thread serves. Neither has a
//! thread or a register of its own: [`worker`] calls the handlers, [`transport`] presents the device to the guest,
//! [`queue`] walks its rings.

// A guest chooses the numbers here: what it cannot reach says so.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

pub mod balloon;
pub mod block;
pub mod common;
pub mod console;
pub mod fs;
pub mod net;
pub mod queue;
pub mod rng;
#[cfg(any(test, feature = "test-utils"))]
pub mod testing;
pub mod transport;
pub mod vhost;
pub mod vsock;
pub mod worker;

use std::collections::BTreeMap;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU64, Ordering};

use queue::Queues;
use transport::ConfigChange;
use vhost::VhostError;
use vm_memory::GuestMemoryMmap;

/// VIRTIO_F_INDIRECT_DESC (virtio 1.2 §6).
pub const F_INDIRECT_DESC: u64 = 1 << 28;
/// VIRTIO_F_EVENT_IDX (virtio 1.2 §6).
pub const F_EVENT_IDX: u64 = 1 << 29;
/// VIRTIO_F_VERSION_1 (virtio 1.2 §6).
pub const F_VERSION_1: u64 = 1 << 32;

/// What kind of device this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// Device id (virtio 1.2 §5).
    pub id: u16,
    /// Name in the status and of the worker's thread, for example `virtio-blk`.
    pub name: &'static str,
    /// PCI base class and sub-class.
    pub class: [u8; 2],
}

/// A device cannot go on, most often because the guest broke the rules of a queue. It stops and asks to be reset; nothing
/// else happens.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// A ring index or address is impossible.
    #[error("the guest's virtqueue is broken: {0}")]
    Ring(#[from] virtio_queue::Error),
    /// A descriptor chain does not have the shape this device needs.
    #[error("the guest sent a malformed descriptor chain: {0}")]
    Chain(&'static str),
    /// The host has no thread or descriptor for it.
    #[error("the host cannot run the device: {0}")]
    Host(#[source] std::io::Error),
    /// Whoever serves its queues in our place does not.
    #[error(transparent)]
    Vhost(#[from] VhostError),
}

/// A host file descriptor that wakes a handler's worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostSource {
    /// Read readiness of this descriptor wakes the worker. The handler keeps it open.
    pub fd: RawFd,
    /// The device still has something from it that the guest had no room for before a reset.
    pub pending: bool,
}

impl HostSource {
    /// A source without anything left over.
    #[must_use]
    pub fn new(fd: RawFd) -> Self {
        Self { fd, pending: false }
    }
}

/// Whether the worker should go on listening to a [`HostSource`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listen {
    /// Yes.
    Yes,
    /// Not until a queue or another source has been served: the guest has no room, or a rate limit says to wait.
    Later,
    /// Never again: the source ended.
    No,
}

/// Live numbers of a device, readable while its workers run.
pub type Counters = Box<dyn Fn() -> BTreeMap<String, u64> + Send + Sync>;

/// One of the [`Counters`] by its name.
fn counted(name: &str, counter: &AtomicU64) -> (String, u64) {
    (name.to_owned(), counter.load(Ordering::Relaxed))
}

/// One virtio device: its identity, and what outlives a reset by the driver.
pub trait VirtioDevice: Send + Sync {
    /// What it is.
    fn kind(&self) -> Kind;

    /// Device-specific feature bits it offers.
    fn features(&self) -> u64 {
        0
    }

    /// The features of its rings that it can serve: all the transport knows, unless somebody else serves them.
    fn ring_features(&self) -> u64 {
        F_EVENT_IDX | F_INDIRECT_DESC
    }

    /// The most entries each of its queues can have.
    fn queue_sizes(&self) -> Vec<u16>;

    /// Its configuration structure, as the guest reads it.
    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    /// The driver wrote into the configuration structure. What it then reads is [`VirtioDevice::config`] again.
    fn write_config(&self, _offset: usize, _data: &[u8]) {}

    /// The driver is ready: who serves its queues from now on. A queue that no lane names is not served.
    ///
    /// # Errors
    /// When what the driver set up cannot be served, or the host has no descriptor for it.
    fn start(&self, start: Start<'_>) -> Result<Vec<Lane>, Fault>;

    /// Every handler is gone, by a reset or the machine's end: nothing may stay only in memory.
    fn stop(&self) {}

    /// Live numbers for the status.
    fn counters(&self) -> Counters {
        Box::new(BTreeMap::new)
    }

    /// What is behind it on the host now, for the status.
    fn backend(&self) -> Option<String> {
        None
    }
}

/// What a device is started with.
#[derive(Debug)]
pub struct Start<'a> {
    /// The feature bits both sides agreed on.
    pub features: u64,
    /// Guest memory, for what outlives a call of a handler.
    pub memory: &'a GuestMemoryMmap,
    /// The queues the driver enabled. A device whose queues the kernel or another process serves takes them out.
    pub queues: &'a mut Queues,
    /// Tells the driver that the configuration structure has changed.
    pub config: ConfigChange,
}

/// Some of a device's queues and who serves them, on a thread of their own.
pub struct Lane {
    /// The queues by index.
    pub queues: Vec<usize>,
    /// Who serves them.
    pub handler: Box<dyn QueueHandler>,
}

impl Lane {
    /// The only lane of a device with `queues` queues.
    #[must_use]
    pub fn all(queues: usize, handler: impl QueueHandler + 'static) -> Vec<Self> {
        vec![Self { queues: (0..queues).collect(), handler: Box::new(handler) }]
    }
}

/// The queue logic of one lane: guest memory in, guest memory out.
pub trait QueueHandler: Send {
    /// Queue `index` has new buffers.
    ///
    /// # Errors
    /// When the guest broke the queue.
    fn on_queue(&mut self, queues: &mut Queues, index: usize) -> Result<(), Fault>;

    /// Host descriptors that should wake it; asked once, when its worker starts.
    fn host_sources(&self) -> Vec<HostSource> {
        Vec::new()
    }

    /// Host descriptor number `source` is readable, or a queue or another source was served since [`Listen::Later`].
    ///
    /// # Errors
    /// When the guest broke the queue.
    fn on_host(&mut self, _queues: &mut Queues, _source: usize) -> Result<Listen, Fault> {
        Ok(Listen::No)
    }

    /// The worker is about to rest, because the machine pauses or the device stops: requests it has begun are finished and
    /// given back, none is begun.
    ///
    /// # Errors
    /// When the guest broke the queue.
    fn quiesce(&mut self, _queues: &mut Queues) -> Result<(), Fault> {
        Ok(())
    }

    /// The worker goes on after a rest. It serves every queue next, whether its doorbell rang or not.
    ///
    /// # Errors
    /// When the device cannot go on.
    fn go_on(&mut self, _queues: &mut Queues) -> Result<(), Fault> {
        Ok(())
    }
}
