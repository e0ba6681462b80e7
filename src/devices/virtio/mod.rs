//! virtio 1.2 devices over PCI.
//!
//! A device is one type that implements [`VirtioDevice`]: what it is, and what it does when a queue or a host file
//! descriptor has something for it. It has no thread and no register of its own: [`worker`] calls it, [`transport`]
//! presents it to the guest, [`queue`] walks its rings.

// A guest chooses the numbers here: what it cannot reach says so.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

pub mod block;
pub mod common;
pub mod console;
pub mod queue;
pub mod rng;
#[cfg(test)]
mod testing;
pub mod transport;
pub mod worker;

use std::collections::BTreeMap;
use std::os::fd::RawFd;

use queue::Queues;

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
}

/// A host file descriptor that wakes a device's worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostSource {
    /// Read readiness of this descriptor wakes the worker. The device keeps it open.
    pub fd: RawFd,
    /// The device still has something from it that the guest had no room for before a reset.
    pub pending: bool,
}

/// Whether the worker should go on listening to the device's [`HostSource`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listen {
    /// Yes.
    Yes,
    /// Not until a queue has been served again: the guest has no room.
    Later,
    /// Never again: the source ended.
    No,
}

/// One virtio device: its identity and its queue logic.
pub trait VirtioDevice: Send {
    /// What it is.
    fn kind(&self) -> Kind;

    /// Device-specific feature bits it offers.
    fn features(&self) -> u64 {
        0
    }

    /// The most entries each of its queues can have.
    fn queue_sizes(&self) -> &'static [u16];

    /// Its configuration structure, as the guest reads it.
    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    /// The driver is ready; `features` is what both sides agreed on. No queue is served before this returns.
    fn on_start(&mut self, _features: u64) {}

    /// Queue `index` has new buffers.
    ///
    /// # Errors
    /// When the guest broke the queue.
    fn on_queue(&mut self, queues: &mut Queues, index: usize) -> Result<(), Fault>;

    /// A host descriptor that should wake it, if any.
    fn host_source(&self) -> Option<HostSource> {
        None
    }

    /// The host descriptor is readable, or a queue was served since [`Listen::Later`].
    ///
    /// # Errors
    /// When the guest broke the queue.
    fn on_host(&mut self, _queues: &mut Queues) -> Result<Listen, Fault> {
        Ok(Listen::No)
    }

    /// The worker is about to hand the device back: nothing may stay only in memory.
    fn on_stop(&mut self) {}

    /// Live numbers for the status, readable while the worker runs.
    fn counters(&self) -> Box<dyn Fn() -> BTreeMap<String, u64> + Send + Sync> {
        Box::new(BTreeMap::new)
    }

    /// What is behind it on the host, for the status.
    fn backend(&self) -> Option<String> {
        None
    }
}
