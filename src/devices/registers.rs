//! Device registers as pages of bytes.
//!
//! A write to a register traps, changes the device, and refreshes the bytes; a read is then only a copy. Because that is
//! all a read is, the pages can be mapped into the guest read-only, and reading a register costs no exit at all.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use vm_memory::{Bytes, MmapRegion, VolatileMemory};

/// Bytes in a page.
pub const PAGE: usize = 4096;

/// A view of one or more register pages. Clones share the same bytes.
#[derive(Debug, Clone)]
pub struct RegisterPages {
    region: Arc<MmapRegion>,
    offset: usize,
    len: usize,
}

impl RegisterPages {
    /// New pages of zeros.
    ///
    /// # Errors
    /// When the kernel has no memory for them.
    pub fn new(pages: usize) -> io::Result<Self> {
        let len = pages * PAGE;
        let region = MmapRegion::new(len).map_err(io::Error::other)?;
        Ok(Self { region: Arc::new(region), offset: 0, len })
    }

    /// The pages `first..first + count` of these. Pages that are not there are left out.
    #[must_use]
    pub fn slice(&self, first: usize, count: usize) -> Self {
        let start = (first * PAGE).min(self.len);
        let len = (count * PAGE).min(self.len - start);
        Self { region: Arc::clone(&self.region), offset: self.offset + start, len }
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no page at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where the bytes are in this process.
    #[must_use]
    pub fn host_address(&self) -> u64 {
        self.region.as_ptr() as u64 + self.offset as u64
    }

    /// Copies registers out. Bytes beyond the end read as all ones.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        data.fill(0xff);
        if let Some(at) = self.range(offset, data.len()) {
            // The range was checked: this cannot fail.
            let _ = self.region.as_volatile_slice().read_slice(data, at);
        }
    }

    /// Copies registers in. Bytes beyond the end are dropped.
    pub fn write(&self, offset: usize, data: &[u8]) {
        if let Some(at) = self.range(offset, data.len()) {
            // The range was checked: this cannot fail.
            let _ = self.region.as_volatile_slice().write_slice(data, at);
        }
    }

    /// One byte.
    #[must_use]
    pub fn u8(&self, offset: usize) -> u8 {
        let mut data = [0; 1];
        self.read(offset, &mut data);
        data[0]
    }

    /// A little-endian 16-bit register.
    #[must_use]
    pub fn u16(&self, offset: usize) -> u16 {
        let mut data = [0; 2];
        self.read(offset, &mut data);
        u16::from_le_bytes(data)
    }

    /// A little-endian 32-bit register.
    #[must_use]
    pub fn u32(&self, offset: usize) -> u32 {
        let mut data = [0; 4];
        self.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    /// Sets one byte, visible to a guest that reads it without an exit.
    pub fn set_u8(&self, offset: usize, value: u8) {
        if let Some(at) = self.range(offset, 1) {
            let _ = self.region.as_volatile_slice().store(value, at, Ordering::Release);
        }
    }

    /// Sets a little-endian 16-bit register in one store.
    pub fn set_u16(&self, offset: usize, value: u16) {
        if let Some(at) = self.range(offset, 2) {
            let _ = self.region.as_volatile_slice().store(value.to_le(), at, Ordering::Release);
        }
    }

    /// Sets a little-endian 32-bit register in one store.
    pub fn set_u32(&self, offset: usize, value: u32) {
        if let Some(at) = self.range(offset, 4) {
            let _ = self.region.as_volatile_slice().store(value.to_le(), at, Ordering::Release);
        }
    }

    fn range(&self, offset: usize, len: usize) -> Option<usize> {
        let end = offset.checked_add(len)?;
        (end <= self.len).then(|| self.offset + offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_share_bytes_and_stay_inside() {
        let pages = RegisterPages::new(3).unwrap();
        let second = pages.slice(1, 1);
        second.set_u32(0, 0x1234_5678);
        assert_eq!(pages.u16(PAGE), 0x5678);
        assert_eq!(second.len(), PAGE);
        assert_eq!(pages.slice(2, 9).len(), PAGE);
        assert!(pages.slice(3, 1).is_empty());
        let mut data = [0; 4];
        second.read(PAGE - 2, &mut data);
        assert_eq!(data, [0xff; 4]);
        second.write(usize::MAX, &[1]);
        second.write(PAGE - 1, &[1, 2]);
        assert_eq!(pages.u8(2 * PAGE), 0);
    }
}
