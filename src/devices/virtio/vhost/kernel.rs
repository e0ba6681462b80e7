//! A back end in the kernel (Linux `drivers/vhost`): it works in our address space, on any guest memory.

use vhost::{VhostBackend, VhostUserMemoryRegionInfo};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use super::{Backend, Ring, VhostError};

/// What one kind of kernel back end has besides rings.
pub trait KernelDevice: VhostBackend + Send {
    /// Begins to serve the rings with these numbers.
    ///
    /// # Errors
    /// The kernel's own.
    fn begin(&self, rings: &[usize]) -> vhost::Result<()>;

    /// Ends it; when this returns, none of them is touched any more.
    ///
    /// # Errors
    /// The kernel's own.
    fn end(&self, rings: &[usize]) -> vhost::Result<()>;
}

/// One open vhost device, and us as its owner.
pub struct VhostKernel<D> {
    name: String,
    device: D,
    features: u64,
    /// The queue that the kernel knows as ring 0.
    first: usize,
}

impl<D: KernelDevice> VhostKernel<D> {
    /// Claims the device, whose ring 0 is queue `first`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn new(name: String, device: D, first: usize) -> Result<Self, VhostError> {
        device.set_owner().map_err(VhostError::refused(&name, "our claim to it"))?;
        let features = device.get_features().map_err(VhostError::refused(&name, "its features"))?;
        Ok(Self { name, device, features, first })
    }

    /// The kernel's numbers of these rings.
    fn numbers(&self, rings: &[Ring]) -> Vec<usize> {
        rings.iter().map(|ring| ring.index.saturating_sub(self.first)).collect()
    }

    /// The device itself.
    pub fn device(&self) -> &D {
        &self.device
    }
}

impl<D: KernelDevice> Backend for VhostKernel<D> {
    fn name(&self) -> &str {
        &self.name
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn start(
        &mut self,
        features: u64,
        memory: &GuestMemoryMmap,
        rings: &[Ring],
        broken: &EventFd,
    ) -> Result<(), VhostError> {
        let refused = |doing| VhostError::refused(&self.name, doing);
        self.device.set_features(features).map_err(refused("the driver's features"))?;
        let regions: Vec<_> = memory
            .iter()
            .map(|region| VhostUserMemoryRegionInfo {
                guest_phys_addr: region.start_addr().raw_value(),
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
                mmap_offset: 0,
                mmap_handle: -1,
            })
            .collect();
        self.device.set_mem_table(&regions).map_err(refused("guest memory"))?;
        let numbers = self.numbers(rings);
        for (&at, ring) in numbers.iter().zip(rings) {
            ring.hand_over(&self.device, &self.name, at, &ring.addresses(), broken)?;
        }
        self.device.begin(&numbers).map_err(refused("to begin"))
    }

    fn stop(&mut self, rings: &[Ring]) -> Result<Vec<u16>, VhostError> {
        let refused = |doing| VhostError::refused(&self.name, doing);
        let numbers = self.numbers(rings);
        self.device.end(&numbers).map_err(refused("to stop"))?;
        let next = numbers.iter().map(|&at| self.device.get_vring_base(at).map(|next| next as u16));
        next.collect::<vhost::Result<_>>().map_err(refused("a ring's next entry"))
    }
}
