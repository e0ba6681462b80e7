//! One ring as a back end needs it.

use std::io;
use std::sync::Arc;

use vhost::{VhostBackend, VringConfigData};
use virtio_queue::QueueT;
use vmm_sys_util::eventfd::EventFd;

use super::VhostError;
use crate::devices::pci::msix::Msix;
use crate::devices::virtio::queue::DeviceQueue;

/// One virtqueue that a back end serves: its place in guest memory was checked when the driver enabled it.
#[derive(Debug)]
pub struct Ring {
    /// The device's number of the queue.
    pub index: usize,
    /// Index of the next available entry (virtio 1.2 §2.7.6).
    pub next: u16,
    /// The queue, which keeps the doorbell open.
    queue: DeviceQueue,
    call: EventFd,
}

impl Ring {
    /// The ring of queue `index`, with the vector's own eventfd to call.
    ///
    /// # Errors
    /// When there is no descriptor for it.
    pub fn new(index: usize, queue: DeviceQueue) -> io::Result<Self> {
        let call = queue.interrupt().lend()?;
        Ok(Self { index, next: queue.ring().next_avail(), queue, call })
    }

    /// Where it is, in guest addresses.
    #[must_use]
    pub fn addresses(&self) -> VringConfigData {
        let ring = self.queue.ring();
        VringConfigData {
            queue_max_size: ring.max_size(),
            queue_size: ring.size(),
            flags: 0,
            desc_table_addr: ring.desc_table(),
            used_ring_addr: ring.used_ring(),
            avail_ring_addr: ring.avail_ring(),
            log_addr: None,
        }
    }

    /// The interrupts of the device.
    pub(super) fn msix(&self) -> &Arc<Msix> {
        &self.queue.interrupt().msix
    }

    /// Rings the doorbell: a back end looks at what became available before it started.
    pub(super) fn kick(&mut self) {
        self.queue.ring_again();
    }

    /// Tells a back end all about it: size, addresses (`addresses`, as this back end counts them), next entry, whom to call,
    /// who kicks, whom to tell that it is broken. It knows the ring as number `at`.
    pub(super) fn hand_over(
        &self,
        backend: &impl VhostBackend,
        who: &str,
        at: usize,
        addresses: &VringConfigData,
        broken: &EventFd,
    ) -> Result<(), VhostError> {
        let refused = |doing| VhostError::refused(who, doing);
        backend.set_vring_num(at, addresses.queue_size).map_err(refused("a ring's size (SET_VRING_NUM)"))?;
        backend.set_vring_base(at, self.next).map_err(refused("a ring's next entry (SET_VRING_BASE)"))?;
        backend.set_vring_addr(at, addresses).map_err(refused("a ring's place (SET_VRING_ADDR)"))?;
        backend.set_vring_err(at, broken).map_err(refused("a ring's error eventfd (SET_VRING_ERR)"))?;
        backend.set_vring_call(at, &self.call).map_err(refused("a ring's interrupt (SET_VRING_CALL)"))?;
        backend.set_vring_kick(at, self.queue.notify()).map_err(refused("a ring's doorbell (SET_VRING_KICK)"))
    }
}
