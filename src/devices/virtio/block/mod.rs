//! virtio-blk (virtio 1.2 §5.2): a disk.

mod request;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestMemoryMmap};

use self::request::{Operation, Request};
use super::queue::Queues;
use super::{Fault, Kind, VirtioDevice};
use crate::backend::disk::{Buffers, Disk, SECTOR};
use crate::devices::complaints::Complaints;

/// VIRTIO_BLK_F_SEG_MAX.
const F_SEG_MAX: u64 = 1 << 2;
/// VIRTIO_BLK_F_RO.
const F_RO: u64 = 1 << 5;
/// VIRTIO_BLK_F_BLK_SIZE.
const F_BLK_SIZE: u64 = 1 << 6;
/// VIRTIO_BLK_F_FLUSH.
const F_FLUSH: u64 = 1 << 9;

const QUEUE_SIZE: u16 = 256;
/// Data segments a request may have: the ring without header and status.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;

/// VIRTIO_BLK_S_OK.
const STATUS_OK: u8 = 0;
/// VIRTIO_BLK_S_IOERR.
const STATUS_IOERR: u8 = 1;
/// VIRTIO_BLK_S_UNSUPP.
const STATUS_UNSUPP: u8 = 2;

#[derive(Debug, Default)]
struct Counters {
    reads: AtomicU64,
    writes: AtomicU64,
    flushes: AtomicU64,
    bytes_read: AtomicU64,
    bytes_written: AtomicU64,
    errors: AtomicU64,
}

/// A disk device.
#[derive(Debug)]
pub struct Block {
    disk: Arc<dyn Disk>,
    serial: [u8; request::ID_BYTES],
    /// The driver never flushes, so every write must be stable when it is done.
    write_through: bool,
    counters: Arc<Counters>,
    complaints: Complaints,
}

impl Block {
    /// The guest's disk number `index`: its serial is `nestling-<index>`.
    #[must_use]
    pub fn new(disk: Arc<dyn Disk>, index: usize) -> Self {
        let mut serial = [0; request::ID_BYTES];
        for (to, from) in serial.iter_mut().zip(format!("nestling-{index}").bytes()) {
            *to = from;
        }
        Self {
            disk,
            serial,
            write_through: false,
            counters: Arc::default(),
            complaints: Complaints::default(),
        }
    }

    /// Serves one request and returns the bytes written into its chain, the status byte included.
    fn serve(
        &self,
        memory: &GuestMemoryMmap,
        chain: DescriptorChain<&GuestMemoryMmap>,
    ) -> Result<u32, Fault> {
        let request = Request::parse(memory, chain)?;
        let done = self.execute(&request);
        let (status, written) = match done {
            Ok(written) => (STATUS_OK, written),
            Err(status) => {
                self.counters.errors.fetch_add(1, Ordering::Relaxed);
                (status, 0)
            }
        };
        memory
            .write_obj(status, request.status)
            .map_err(|_| Fault::Chain("the status byte is outside memory"))?;
        Ok(written.saturating_add(1))
    }

    /// Does the operation; the error is the status the guest gets.
    fn execute(&self, request: &Request<'_>) -> Result<u32, u8> {
        let count = |counter: &AtomicU64, by: u64| counter.fetch_add(by, Ordering::Relaxed);
        let counters = &self.counters;
        match request.operation {
            Operation::Read => {
                let offset = self.check_range(request)?;
                self.disk
                    .read_at(&Buffers::of(&request.data), offset)
                    .map_err(|error| self.failed("read", offset, &error))?;
                count(&counters.reads, 1);
                count(&counters.bytes_read, request.data_bytes);
                Ok(request.data_bytes as u32)
            }
            Operation::Write if self.disk.readonly() => Err(STATUS_IOERR),
            Operation::Write => {
                let offset = self.check_range(request)?;
                self.disk
                    .write_at(&Buffers::of(&request.data), offset)
                    .map_err(|error| self.failed("write", offset, &error))?;
                if self.write_through {
                    self.flush()?;
                }
                count(&counters.writes, 1);
                count(&counters.bytes_written, request.data_bytes);
                Ok(0)
            }
            Operation::Flush => self.flush().map(|()| 0),
            Operation::GetId => Ok(request.fill(&self.serial)),
            Operation::Unknown(_) => Err(STATUS_UNSUPP),
        }
    }

    fn flush(&self) -> Result<(), u8> {
        self.disk.flush().map_err(|error| self.failed("flush", 0, &error))?;
        self.counters.flushes.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Byte offset of a request that lies on the disk and is a whole number of sectors.
    fn check_range(&self, request: &Request<'_>) -> Result<u64, u8> {
        let sectors = request.data_bytes / SECTOR;
        let end = request.sector.checked_add(sectors).ok_or(STATUS_IOERR)?;
        let whole = request.data_bytes.is_multiple_of(SECTOR);
        let offset = request.sector.checked_mul(SECTOR).ok_or(STATUS_IOERR)?;
        if whole && end <= self.disk.size_bytes() / SECTOR { Ok(offset) } else { Err(STATUS_IOERR) }
    }

    fn failed(&self, what: &str, offset: u64, error: &std::io::Error) -> u8 {
        // A guest repeats a failed request as often as it likes.
        if self.complaints.may_speak() {
            tracing::warn!(disk = %self.disk.path().display(), offset, %error, "a disk {what} failed; the guest sees an I/O error");
        }
        STATUS_IOERR
    }
}

impl VirtioDevice for Block {
    fn kind(&self) -> Kind {
        Kind { id: 2, name: "virtio-blk", class: [0x01, 0x80] }
    }

    fn features(&self) -> u64 {
        let readonly = if self.disk.readonly() { F_RO } else { 0 };
        F_SEG_MAX | F_BLK_SIZE | F_FLUSH | readonly
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[QUEUE_SIZE]
    }

    /// `struct virtio_blk_config` (virtio 1.2 §5.2.4) up to `blk_size`.
    fn config(&self) -> Vec<u8> {
        let mut config = Vec::with_capacity(24);
        config.extend_from_slice(&(self.disk.size_bytes() / SECTOR).to_le_bytes());
        config.extend_from_slice(&0_u32.to_le_bytes()); // size_max: not offered
        config.extend_from_slice(&SEG_MAX.to_le_bytes());
        config.extend_from_slice(&[0; 4]); // geometry: not offered
        config.extend_from_slice(&(SECTOR as u32).to_le_bytes());
        config
    }

    /// A driver without FLUSH must find each write stable when it is done (virtio 1.2 §5.2.6.2).
    fn on_start(&mut self, features: u64) {
        self.write_through = features & F_FLUSH == 0;
    }

    fn on_queue(&mut self, queues: &mut Queues, index: usize) -> Result<(), Fault> {
        match queues.get(index) {
            Some(queue) => queue.serve(|memory, chain| self.serve(memory, chain)),
            None => Ok(()),
        }
    }

    fn on_stop(&mut self) {
        if !self.disk.readonly()
            && let Err(error) = self.disk.flush()
        {
            tracing::error!(disk = %self.disk.path().display(), %error, "the disk could not be flushed");
        }
    }

    fn counters(&self) -> Box<dyn Fn() -> BTreeMap<String, u64> + Send + Sync> {
        let counters = Arc::clone(&self.counters);
        Box::new(move || {
            let load = |name: &str, counter: &AtomicU64| (name.to_owned(), counter.load(Ordering::Relaxed));
            BTreeMap::from([
                load("reads", &counters.reads),
                load("writes", &counters.writes),
                load("flushes", &counters.flushes),
                load("bytes_read", &counters.bytes_read),
                load("bytes_written", &counters.bytes_written),
                load("errors", &counters.errors),
            ])
        })
    }

    fn backend(&self) -> Option<String> {
        Some(format!("{} ({})", self.disk.path().display(), self.disk.description()))
    }
}

#[cfg(test)]
mod tests;
