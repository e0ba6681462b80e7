//! virtio-blk (virtio 1.2 §5.2): a disk.
//!
//! The requests of a queue are many at once: the handler begins them on an [`Engine`] and gives their chains back as they
//! are done, in any order. One lane per queue; a disk with a rate limit has one lane for all, which holds the buckets.

mod counts;
mod handler;
mod request;
mod resize;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use self::counts::Counts;
use self::handler::BlockHandler;
use self::request::ID_BYTES;
pub use self::resize::ResizeError;
use super::transport::ConfigChange;
use super::{Counters, Fault, Kind, Lane, Start, VirtioDevice};
use crate::backend::disk::{Disk, DiskError, Engine, Io, SECTOR};
use crate::devices::complaints::Complaints;
use crate::devices::rate_limit::{Rate, RateLimit};

/// VIRTIO_BLK_F_SEG_MAX.
const F_SEG_MAX: u64 = 1 << 2;
/// VIRTIO_BLK_F_RO.
const F_RO: u64 = 1 << 5;
/// VIRTIO_BLK_F_BLK_SIZE.
const F_BLK_SIZE: u64 = 1 << 6;
/// VIRTIO_BLK_F_FLUSH.
const F_FLUSH: u64 = 1 << 9;
/// VIRTIO_BLK_F_CONFIG_WCE.
const F_CONFIG_WCE: u64 = 1 << 11;
/// VIRTIO_BLK_F_MQ.
const F_MQ: u64 = 1 << 12;
/// VIRTIO_BLK_F_DISCARD.
const F_DISCARD: u64 = 1 << 13;
/// VIRTIO_BLK_F_WRITE_ZEROES.
const F_WRITE_ZEROES: u64 = 1 << 14;

const QUEUE_SIZE: u16 = 256;
/// Data segments a request may have: the ring without header and status.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// The most pieces of guest memory in one request: a chain is no longer than its queue (virtio 1.2 §2.7.5.3.1), and a buffer
/// may straddle two regions.
const MAX_PIECES: usize = QUEUE_SIZE as usize * 2;
/// The most data of one request, in bytes.
const MAX_DATA_BYTES: u64 = 1 << 30;
/// Ranges of one discard or write-zeroes request.
const MAX_RANGES: u32 = 16;
/// Sectors of one range to discard.
const MAX_DISCARD_SECTORS: u32 = 1 << 22;
/// Sectors of one range to zero: fewer, for a file system without holes has them written.
const MAX_ZERO_SECTORS: u32 = 1 << 17;
/// Offset of `writeback` in `struct virtio_blk_config`.
const WRITEBACK: usize = 32;

/// How a disk is presented.
#[derive(Debug, Clone)]
pub struct BlockOptions {
    /// What GET_ID returns, at most 20 bytes.
    pub serial: String,
    /// Request queues; at least 1.
    pub queues: u16,
    /// A write is done before it is stable, until the driver says otherwise.
    pub writeback: bool,
    /// Who does the I/O.
    pub io: Io,
    /// The limit of bytes.
    pub bytes: Option<Rate>,
    /// The limit of requests.
    pub operations: Option<Rate>,
}

/// One queue, writeback, no limit: the guest's first disk.
impl Default for BlockOptions {
    fn default() -> Self {
        let serial = "nestling-0".to_owned();
        Self { serial, queues: 1, writeback: true, io: Io::Auto, bytes: None, operations: None }
    }
}

/// A disk device.
#[derive(Debug)]
pub struct Block(Arc<Shared>);

/// What outlives a reset by the driver.
#[derive(Debug)]
struct Shared {
    disk: Arc<dyn Disk>,
    options: BlockOptions,
    serial: [u8; ID_BYTES],
    /// `io_uring` or `threads`.
    engine: &'static str,
    /// `writeback` of the configuration structure.
    writeback: AtomicBool,
    /// The feature bits of the driver that runs, or none.
    negotiated: AtomicU64,
    config: Mutex<Option<ConfigChange>>,
    /// The size in the configuration structure that the driver sees.
    shown_bytes: AtomicU64,
    /// A reset does not fill its buckets.
    limit: Option<RateLimit>,
    counts: Counts,
    complaints: Complaints,
}

impl Block {
    /// A device for an open disk.
    ///
    /// # Errors
    /// When the I/O engine that was asked for cannot be had.
    pub fn new(disk: Arc<dyn Disk>, options: BlockOptions) -> Result<Self, DiskError> {
        let mut serial = [0; ID_BYTES];
        for (to, from) in serial.iter_mut().zip(options.serial.bytes()) {
            *to = from;
        }
        // The engines come with the driver; what they will be is to be known now.
        let trial = Engine::new(&disk, options.io, 1)?;
        if let Some(reason) = trial.instead_of_uring() {
            tracing::debug!(disk = %disk.name(), reason, "no io_uring: threads do the I/O");
        }
        let limit = RateLimit::new(options.bytes, options.operations)
            .map_err(|cause| DiskError::Engine { disk: disk.name(), cause })?;
        Ok(Self(Arc::new(Shared {
            serial,
            limit,
            engine: trial.name(),
            writeback: AtomicBool::new(options.writeback),
            negotiated: AtomicU64::new(0),
            config: Mutex::default(),
            shown_bytes: AtomicU64::default(),
            counts: Counts::default(),
            complaints: Complaints::default(),
            disk,
            options,
        })))
    }

    fn handler(&self, features: u64, memory: &vm_memory::GuestMemoryMmap) -> Result<BlockHandler, Fault> {
        let Shared { disk, options, .. } = &*self.0;
        let engine = Engine::new(disk, options.io, QUEUE_SIZE)
            .map_err(|error| Fault::Host(std::io::Error::other(error)))?;
        let limit = self.0.limit.as_ref().map(RateLimit::share).transpose().map_err(Fault::Host)?;
        Ok(BlockHandler::new(Arc::clone(&self.0), features, engine, limit, memory.clone()))
    }
}

impl Shared {
    /// Whether a write must be stable when it is done: the driver never flushes (virtio 1.2 §5.2.6.2), or does not want to.
    fn write_through(&self, features: u64) -> bool {
        features & F_FLUSH == 0 || !self.writeback.load(Ordering::Acquire)
    }

    fn flush(&self) {
        if !self.disk.readonly()
            && let Err(error) = self.disk.flush()
        {
            tracing::error!(disk = %self.disk.name(), %error, "the disk could not be flushed");
        }
    }
}

impl VirtioDevice for Block {
    fn kind(&self) -> Kind {
        Kind { id: 2, name: "virtio-blk", class: [0x01, 0x80] }
    }

    fn features(&self) -> u64 {
        let change = if self.0.disk.readonly() { F_RO } else { F_DISCARD | F_WRITE_ZEROES };
        F_SEG_MAX | F_BLK_SIZE | F_FLUSH | F_CONFIG_WCE | F_MQ | change
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; self.0.options.queues.max(1).into()]
    }

    /// `struct virtio_blk_config` (virtio 1.2 §5.2.4) up to `write_zeroes_may_unmap`.
    fn config(&self) -> Vec<u8> {
        let block = self.0.disk.block_bytes();
        let mut config = Vec::with_capacity(60);
        let size_bytes = self.0.disk.size_bytes();
        self.0.shown_bytes.store(size_bytes, Ordering::Release);
        config.extend((size_bytes / SECTOR).to_le_bytes());
        config.extend(0_u32.to_le_bytes()); // size_max: not offered
        config.extend(SEG_MAX.to_le_bytes());
        config.extend([0; 4]); // geometry: not offered
        config.extend(block.to_le_bytes());
        config.extend([0; 8]); // topology: not offered
        config.extend([u8::from(self.0.writeback.load(Ordering::Acquire)), 0]);
        config.extend(self.0.options.queues.max(1).to_le_bytes());
        config.extend(MAX_DISCARD_SECTORS.to_le_bytes());
        config.extend(MAX_RANGES.to_le_bytes());
        config.extend(block.div_euclid(SECTOR as u32).to_le_bytes());
        config.extend(MAX_ZERO_SECTORS.to_le_bytes());
        config.extend(MAX_RANGES.to_le_bytes());
        config.extend([1, 0, 0, 0]); // write_zeroes_may_unmap
        config
    }

    /// Only `writeback` can be written, and only when CONFIG_WCE was agreed on.
    fn write_config(&self, offset: usize, data: &[u8]) {
        let written = WRITEBACK.checked_sub(offset).and_then(|at| data.get(at));
        let agreed = self.0.negotiated.load(Ordering::Acquire) & F_CONFIG_WCE != 0;
        let Some(writeback) = written.filter(|_| agreed) else { return };
        let before = self.0.writeback.swap(*writeback != 0, Ordering::AcqRel);
        // What was written until now counts as stable from here on (virtio 1.2 §5.2.6.2).
        if before && *writeback == 0 {
            self.0.flush();
        }
    }

    fn start(&self, start: Start<'_>) -> Result<Vec<Lane>, Fault> {
        let enabled = start.queues.0.iter().enumerate();
        let enabled: Vec<usize> =
            enabled.filter_map(|(index, queue)| queue.as_ref().map(|_| index)).collect();
        let sets = if self.0.limit.is_some() {
            vec![enabled]
        } else {
            enabled.into_iter().map(|index| vec![index]).collect()
        };
        let mut lanes = Vec::with_capacity(sets.len());
        for queues in sets {
            let handler = Box::new(self.handler(start.features, start.memory)?);
            lanes.push(Lane { queues, handler });
        }
        self.0.negotiated.store(start.features, Ordering::Release);
        let mut config = self.0.config.lock().unwrap_or_else(PoisonError::into_inner);
        // It was resized while no driver could be told.
        if self.0.shown_bytes.load(Ordering::Acquire) != self.0.disk.size_bytes() {
            start.config.announce();
        }
        *config = Some(start.config);
        Ok(lanes)
    }

    fn stop(&self) {
        self.0.flush();
        self.0.negotiated.store(0, Ordering::Release);
        self.0.writeback.store(self.0.options.writeback, Ordering::Release);
    }

    fn counters(&self) -> Counters {
        let shared = Arc::clone(&self.0);
        Box::new(move || shared.counts.by_name())
    }

    fn backend(&self) -> Option<String> {
        let Shared { disk, engine, .. } = &*self.0;
        Some(format!("{} ({}, {engine})", disk.name(), disk.description()))
    }
}

#[cfg(test)]
mod tests;
