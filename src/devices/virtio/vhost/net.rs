//! vhost-net: the kernel moves the frames of one queue pair between the guest and a queue of a tap.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use vhost::net::VhostNet as _;
use vhost::vhost_kern::VhostKernBackend;
use vhost::vhost_kern::net::Net;
use vm_memory::GuestMemoryMmap;

use super::kernel::{KernelDevice, VhostKernel};
use super::{Session, VhostError};

/// One queue pair in the kernel.
pub type PairSession = Arc<Session<VhostKernel<Pair>>>;

/// A vhost-net device and the queue of the tap it serves.
pub struct Pair {
    device: Net<Arc<GuestMemoryMmap>>,
    tap: File,
}

/// Opens `/dev/vhost-net` for the queue pair whose receive queue is `first`; `tap` is its other end, a queue whose frames
/// have 12-byte headers.
///
/// # Errors
/// When it is not there or cannot be used.
pub fn open(first: usize, memory: &GuestMemoryMmap, tap: OwnedFd) -> Result<PairSession, VhostError> {
    let (memory, tap) = (memory.clone(), File::from(tap));
    Session::open(Box::new(move || {
        let name = "vhost-net".to_owned();
        let device = Net::new(Arc::new(memory.clone())).map_err(|error| {
            let (path, module) = ("/dev/vhost-net", "vhost_net");
            VhostError::of_opening(error, &name, path, module, "leave out vhost=on")
        })?;
        let tap = tap.try_clone().map_err(|error| {
            VhostError::Unreachable(format!("a queue of the tap cannot be shared with vhost-net: {error}"))
        })?;
        VhostKernel::new(name, Pair { device, tap }, first)
    }))
}

impl AsRawFd for Pair {
    fn as_raw_fd(&self) -> RawFd {
        self.device.as_raw_fd()
    }
}

impl VhostKernBackend for Pair {
    type AS = Arc<GuestMemoryMmap>;

    fn mem(&self) -> &Self::AS {
        self.device.mem()
    }
}

impl KernelDevice for Pair {
    fn begin(&self, rings: &[usize]) -> vhost::Result<()> {
        rings.iter().try_for_each(|&ring| self.device.set_backend(ring, Some(&self.tap)))
    }

    fn end(&self, rings: &[usize]) -> vhost::Result<()> {
        rings.iter().try_for_each(|&ring| self.device.set_backend(ring, None))
    }
}
