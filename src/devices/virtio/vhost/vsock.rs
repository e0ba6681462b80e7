//! vhost-vsock: a virtio-vsock device (virtio 1.2 §5.10) whose other end is the host's own AF_VSOCK.

use std::sync::Arc;

use vhost::vhost_kern::vsock::Vsock;
use vhost::vsock::VhostVsock as _;
use vm_memory::GuestMemoryMmap;

use super::kernel::{KernelDevice, VhostKernel};
use super::{Session, VhostError};
use crate::devices::virtio::{F_EVENT_IDX, F_INDIRECT_DESC, Fault, Kind, Lane, Start, VirtioDevice};

/// VIRTIO_VSOCK_F_SEQPACKET (virtio 1.2 §5.10.3).
const F_SEQPACKET: u64 = 1 << 1;
/// Receive, transmit, event. The kernel serves the first two; it has no event to send.
const QUEUES: usize = 3;
const DATA_QUEUES: usize = 2;

type Kernel = VhostKernel<Vsock<Arc<GuestMemoryMmap>>>;

/// The device.
#[derive(Debug)]
pub struct VhostVsock {
    cid: u64,
    session: Arc<Session<Kernel>>,
}

impl VhostVsock {
    /// A device whose guest has the address `cid`.
    ///
    /// # Errors
    /// When there is no `/dev/vhost-vsock`, or another VM on this node has that address.
    pub fn new(cid: u32, memory: &GuestMemoryMmap) -> Result<Self, VhostError> {
        let (cid, memory) = (u64::from(cid), memory.clone());
        let session = Session::open(Box::new(move || open(cid, memory.clone())))?;
        Ok(Self { cid, session })
    }
}

fn open(cid: u64, memory: GuestMemoryMmap) -> Result<Kernel, VhostError> {
    let name = format!("vhost-vsock, cid {cid}");
    let device = Vsock::new(Arc::new(memory)).map_err(|error| {
        let without = "write path=/run/nestling/vm.vsock in place of vhost=true";
        VhostError::of_opening(error, &name, "/dev/vhost-vsock", "vhost_vsock", without)
    })?;
    let kernel = VhostKernel::new(name, device, 0)?;
    kernel.device().set_guest_cid(cid).map_err(|error| no_cid(cid, error))?;
    Ok(kernel)
}

/// Why the kernel does not give the guest this address (VHOST_VSOCK_SET_GUEST_CID).
fn no_cid(cid: u64, error: vhost::Error) -> VhostError {
    match error {
        vhost::Error::IoctlError(cause) if cause.raw_os_error() == Some(libc::EADDRINUSE) => {
            VhostError::CidTaken { cid }
        }
        other => VhostError::refused(&format!("vhost-vsock, cid {cid}"), "the guest's cid")(other),
    }
}

impl KernelDevice for Vsock<Arc<GuestMemoryMmap>> {
    fn begin(&self, _rings: &[usize]) -> vhost::Result<()> {
        self.start()
    }

    fn end(&self, _rings: &[usize]) -> vhost::Result<()> {
        self.stop()
    }
}

impl VirtioDevice for VhostVsock {
    fn kind(&self) -> Kind {
        Kind { id: 19, name: "vhost-vsock", class: [0x07, 0x80] }
    }

    fn features(&self) -> u64 {
        self.session.features() & F_SEQPACKET
    }

    fn ring_features(&self) -> u64 {
        self.session.features() & (F_EVENT_IDX | F_INDIRECT_DESC)
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![256; QUEUES]
    }

    fn config(&self) -> Vec<u8> {
        self.cid.to_le_bytes().to_vec()
    }

    fn start(&self, mut start: Start<'_>) -> Result<Vec<Lane>, Fault> {
        Ok(vec![self.session.serve(&mut start, 0..DATA_QUEUES)?])
    }

    fn backend(&self) -> Option<String> {
        Some(self.session.describe())
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn a_cid_that_another_vm_has_is_told_with_the_mend() {
        let refusal = |errno| vhost::Error::IoctlError(io::Error::from_raw_os_error(errno));
        let taken = no_cid(7, refusal(libc::EADDRINUSE)).to_string();
        let words = "the vsock cid 7 is taken: another VM on this node has it; give this one another, as in --vsock cid=8,";
        assert!(taken.starts_with(words), "{taken}");
        assert!(matches!(no_cid(7, refusal(libc::EINVAL)), VhostError::Refused { .. }));
    }
}
