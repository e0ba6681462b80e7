//! The VM generation ID: 128 random bits in guest memory that change when the machine is not the one it was (Microsoft,
//! "Virtual Machine Generation ID"). A guest that is told so reseeds its random number generator: two machines resumed
//! from one snapshot must not draw the same keys.

use std::io;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use crate::backend::random;

/// Size of an ID.
const BYTES: usize = 16;

/// The ID in guest memory, and the interrupt that tells of a new one.
#[derive(Debug)]
pub struct GenerationId {
    memory: GuestMemoryMmap,
    address: GuestAddress,
    changed: EventFd,
}

impl GenerationId {
    /// Writes a first ID at `address`; `changed` raises the guest's interrupt.
    ///
    /// # Errors
    /// When the kernel has no random bytes, or the guest no memory there.
    pub fn new(memory: GuestMemoryMmap, address: GuestAddress, changed: EventFd) -> io::Result<Self> {
        let id = Self { memory, address, changed };
        id.write()?;
        Ok(id)
    }

    /// Puts a new ID in the old one's place and tells the guest. To be called before any vCPU of a resumed machine runs:
    /// what the guest draws before it is told may have been drawn by another machine.
    ///
    /// # Errors
    /// When the kernel has no random bytes, or the interrupt cannot be raised.
    pub fn renew(&self) -> io::Result<()> {
        self.write()?;
        self.changed.write(1)
    }

    fn write(&self) -> io::Result<()> {
        let mut id = [0; BYTES];
        random::fill(&mut id)?;
        self.memory.write_slice(&id, self.address).map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: GuestAddress = GuestAddress(0x1040);

    fn read(memory: &GuestMemoryMmap) -> u128 {
        memory.read_obj(ADDRESS).unwrap()
    }

    #[test]
    fn every_boot_and_every_renewal_has_its_own_id_and_only_a_renewal_is_told() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x2000)]).unwrap();
        let changed = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let told = changed.try_clone().unwrap();
        let id = GenerationId::new(memory.clone(), ADDRESS, changed).unwrap();
        let first = read(&memory);
        assert!(told.read().is_err(), "nothing has changed yet");
        id.renew().unwrap();
        let second = read(&memory);
        assert_eq!(told.read().unwrap(), 1);
        assert!(first != 0 && second != 0 && first != second);
        let around: [u64; 2] =
            [memory.read_obj(GuestAddress(0x1038)).unwrap(), memory.read_obj(GuestAddress(0x1050)).unwrap()];
        assert_eq!(around, [0, 0]);
    }

    #[test]
    fn an_id_outside_of_ram_is_an_error() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1048)]).unwrap();
        let changed = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        assert!(GenerationId::new(memory, ADDRESS, changed).is_err());
    }
}
