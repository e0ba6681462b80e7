//! Begins the requests of one lane's queues and gives them back when they are done.

use std::collections::BTreeSet;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::counts::Counts;
use super::request::{Kind, Request, Step};
use super::{MAX_DATA_BYTES, Shared};
use crate::backend::disk::{self, Buffers, Engine, Operation, SECTOR};
use crate::devices::rate_limit::{Admission, RateLimit};
use crate::devices::virtio::queue::{Chain, Fate, Queues};
use crate::devices::virtio::{Fault, HostSource, Listen, QueueHandler};

/// VIRTIO_BLK_S_OK.
pub(super) const STATUS_OK: u8 = 0;
/// VIRTIO_BLK_S_IOERR.
pub(super) const STATUS_IOERR: u8 = 1;
/// VIRTIO_BLK_S_UNSUPP.
pub(super) const STATUS_UNSUPP: u8 = 2;

/// Host sources by number.
const ENGINE: usize = 0;
const TIMER: usize = 1;
/// How often a worker looks for completions before it looks at its other events.
const ROUNDS: usize = 8;

/// Serves the requests of its queues.
#[derive(Debug)]
pub(super) struct BlockHandler {
    shared: Arc<Shared>,
    features: u64,
    // Dropped before the memory that its requests use, and waits for them.
    pub(super) engine: Engine,
    limit: Option<RateLimit>,
    /// Requests in the engine; the tag is the index.
    begun: Vec<Option<Begun>>,
    free: Vec<usize>,
    /// Queues whose next chain found no room or no token.
    stalled: BTreeSet<usize>,
    memory: GuestMemoryMmap,
}

/// A request whose chain the device keeps.
#[derive(Debug)]
struct Begun {
    queue: usize,
    head: u16,
    kind: Kind,
    bytes: u64,
    status: GuestAddress,
    /// What is still to do, last first.
    rest: Vec<Step>,
}

impl BlockHandler {
    pub(super) fn new(
        shared: Arc<Shared>,
        features: u64,
        engine: Engine,
        limit: Option<RateLimit>,
        memory: GuestMemoryMmap,
    ) -> Self {
        let slots = engine.room();
        let begun = std::iter::repeat_with(|| None).take(slots).collect();
        let free = (0..slots).collect();
        Self { shared, features, engine, limit, begun, free, stalled: BTreeSet::new(), memory }
    }

    /// Begins what is in a queue, as far as there is room.
    fn serve(&mut self, queues: &mut Queues, index: usize) -> Result<(), Fault> {
        let Some(queue) = queues.get(index) else { return Ok(()) };
        self.stalled.remove(&index);
        queue.serve(|memory, chain| self.begin(memory, chain, index))?;
        self.engine.kick().map_err(Fault::Host)
    }

    /// Begins one request, or answers it at once.
    fn begin(&mut self, memory: &GuestMemoryMmap, chain: Chain<'_>, queue: usize) -> Result<Fate, Fault> {
        let head = chain.head_index();
        let request = Request::parse(memory, chain)?;
        if request.kind == Kind::GetId {
            let written = request.fill(&self.shared.serial);
            return self.answer(request.status, STATUS_OK, written);
        }
        let (first, rest) = match self.steps(&request) {
            Ok(steps) => steps,
            Err(status) => {
                Counts::add(&self.shared.counts.errors, 1);
                return self.answer(request.status, status, 0);
            }
        };
        let Request { kind, data: buffers, status, .. } = request;
        let bytes = buffers.len();
        if !self.has_room() || !self.is_admitted(bytes) {
            self.stalled.insert(queue);
            return Ok(Fate::Later);
        }
        let Some(step) = first else { return self.answer(status, STATUS_OK, 0) };
        let Some(tag) = self.free.pop() else { return Ok(Fate::Later) };
        let begun = Begun { queue, head, kind, bytes, status, rest };
        // SAFETY: the buffers lie in `self.memory`, which stays mapped at least as long as the engine, which waits for
        // its requests before it goes.
        let buffers = unsafe { buffers.outlive() };
        self.engine.submit(engine_request(tag, step, buffers)).map_err(Fault::Host)?;
        if let Some(slot) = self.begun.get_mut(tag) {
            *slot = Some(begun);
        }
        Ok(Fate::Kept)
    }

    fn has_room(&self) -> bool {
        self.engine.room() > 0 && !self.free.is_empty()
    }

    fn is_admitted(&mut self, bytes: u64) -> bool {
        let Some(limit) = &mut self.limit else { return true };
        let now = limit.admit(bytes) == Admission::Now;
        if !now {
            Counts::add(&self.shared.counts.throttled, 1);
        }
        now
    }

    /// What a request takes: the first step, which is all of most requests, and the others, last first. The error is the
    /// status the guest gets.
    fn steps(&self, request: &Request<'_>) -> Result<(Option<Step>, Vec<Step>), u8> {
        let durable = self.shared.write_through(self.features);
        let readonly = self.shared.disk.readonly();
        let step = |operation, offset| Step { operation, offset, bytes: request.data.len() };
        let one = |operation, offset| Ok((Some(step(operation, offset)), Vec::new()));
        match request.kind {
            Kind::Read => one(Operation::Read, self.check_range(request)?),
            Kind::Write | Kind::Discard | Kind::WriteZeroes if readonly => Err(STATUS_IOERR),
            Kind::Write => one(Operation::Write { durable }, self.check_range(request)?),
            Kind::Flush if readonly => Ok((None, Vec::new())),
            Kind::Flush => one(Operation::Flush, 0),
            Kind::Discard | Kind::WriteZeroes => {
                let mut steps = request.ranges(self.shared.disk.size_bytes())?;
                if durable && request.kind == Kind::WriteZeroes {
                    steps.push(Step { operation: Operation::Flush, offset: 0, bytes: 0 });
                }
                steps.reverse();
                Ok((steps.pop(), steps))
            }
            Kind::GetId | Kind::Unknown(_) => Err(STATUS_UNSUPP),
        }
    }

    /// Byte offset of a request that lies on the disk and is a whole number of sectors.
    fn check_range(&self, request: &Request<'_>) -> Result<u64, u8> {
        let bytes = request.data.len();
        let offset = request.sector.checked_mul(SECTOR).ok_or(STATUS_IOERR)?;
        let end = offset.checked_add(bytes).ok_or(STATUS_IOERR)?;
        let fits = bytes.is_multiple_of(SECTOR) && bytes <= MAX_DATA_BYTES;
        if fits && end <= self.shared.disk.size_bytes() { Ok(offset) } else { Err(STATUS_IOERR) }
    }

    /// Writes the status byte of a request that is not kept.
    fn answer(&self, at: GuestAddress, status: u8, written: u32) -> Result<Fate, Fault> {
        self.write_status(at, status)?;
        Ok(Fate::Used(written.saturating_add(1)))
    }

    fn write_status(&self, at: GuestAddress, status: u8) -> Result<(), Fault> {
        let outside = |_| Fault::Chain("the status byte is outside memory");
        let byte = self.memory.get_slice(at, 1).map_err(outside)?;
        byte.write_obj(status, 0).map_err(|_| Fault::Chain("the status byte cannot be written"))
    }

    /// Gives back what is done, and begins what found no room before.
    fn pump(&mut self, queues: &mut Queues) -> Result<(), Fault> {
        for _ in 0..ROUNDS {
            let done = self.collect(queues)?;
            if done == 0 || self.stalled.is_empty() {
                return Ok(());
            }
            self.serve_stalled(queues)?;
        }
        // The worker comes back after a look at its other events.
        for index in &self.stalled {
            if let Some(queue) = queues.get(*index) {
                queue.ring_again();
            }
        }
        Ok(())
    }

    fn serve_stalled(&mut self, queues: &mut Queues) -> Result<(), Fault> {
        for index in std::mem::take(&mut self.stalled) {
            self.serve(queues, index)?;
        }
        Ok(())
    }

    /// Takes completions once; returns how many requests are done.
    fn collect(&mut self, queues: &mut Queues) -> Result<usize, Fault> {
        let mut ended = Vec::new();
        let taken = self.engine.completions(&mut |tag, result| ended.push((tag, result)));
        let done = self.end(queues, ended)?;
        taken.map_err(Fault::Host)?;
        Ok(done)
    }

    /// Goes on with requests whose step has ended, or gives them back.
    fn end(&mut self, queues: &mut Queues, ended: Vec<(u64, std::io::Result<u64>)>) -> Result<usize, Fault> {
        let mut done = 0_usize;
        for (tag, result) in ended {
            let tag = tag as usize;
            let Some(mut begun) = self.begun.get_mut(tag).and_then(Option::take) else { continue };
            let next = if result.is_ok() { begun.rest.pop() } else { None };
            if let Some(step) = next {
                self.engine.submit(engine_request(tag, step, Buffers::default())).map_err(Fault::Host)?;
                if let Some(slot) = self.begun.get_mut(tag) {
                    *slot = Some(begun);
                }
                continue;
            }
            self.free.push(tag);
            done = done.saturating_add(1);
            let (status, written) = self.outcome(&begun, &result);
            self.write_status(begun.status, status)?;
            if let Some(queue) = queues.get(begun.queue) {
                queue.complete(begun.head, written.saturating_add(1))?;
            }
        }
        self.engine.kick().map_err(Fault::Host)?;
        for queue in queues.0.iter_mut().flatten() {
            queue.announce()?;
        }
        Ok(done)
    }

    /// Status and bytes written into the chain, and what is counted.
    fn outcome(&self, begun: &Begun, result: &std::io::Result<u64>) -> (u8, u32) {
        let counts = &self.shared.counts;
        if let Err(error) = result {
            Counts::add(&counts.errors, 1);
            // A guest repeats a failed request as often as it likes.
            if self.shared.complaints.may_speak() {
                let disk = self.shared.disk.name();
                tracing::warn!(%disk, request = ?begun.kind, %error, "a disk request failed; the guest sees an I/O error");
            }
            return (STATUS_IOERR, 0);
        }
        let (requests, bytes): (&AtomicU64, Option<&AtomicU64>) = match begun.kind {
            Kind::Read => (&counts.reads, Some(&counts.bytes_read)),
            Kind::Write => (&counts.writes, Some(&counts.bytes_written)),
            Kind::Flush => (&counts.flushes, None),
            Kind::Discard => (&counts.discards, None),
            Kind::WriteZeroes => (&counts.zeroes, None),
            Kind::GetId | Kind::Unknown(_) => return (STATUS_UNSUPP, 0),
        };
        Counts::add(requests, 1);
        if let Some(counter) = bytes {
            Counts::add(counter, begun.bytes);
        }
        let written = if begun.kind == Kind::Read { begun.bytes } else { 0 };
        (STATUS_OK, u32::try_from(written).unwrap_or(u32::MAX))
    }
}

fn engine_request(tag: usize, step: Step, buffers: Buffers<'static>) -> disk::Request {
    // A request without data has what its header or its ranges say.
    let buffers = match step.operation {
        Operation::Read | Operation::Write { .. } => buffers,
        _ => Buffers::default(),
    };
    disk::Request {
        tag: tag as u64,
        operation: step.operation,
        offset: step.offset,
        bytes: step.bytes,
        buffers,
    }
}

impl QueueHandler for BlockHandler {
    fn on_queue(&mut self, queues: &mut Queues, index: usize) -> Result<(), Fault> {
        self.serve(queues, index)?;
        // What the page cache had is done by now.
        self.pump(queues)
    }

    fn host_sources(&self) -> Vec<HostSource> {
        let timer = self.limit.as_ref().map(RateLimit::fd);
        std::iter::once(self.engine.event().as_raw_fd()).chain(timer).map(HostSource::new).collect()
    }

    fn on_host(&mut self, queues: &mut Queues, source: usize) -> Result<Listen, Fault> {
        match (source, &mut self.limit) {
            (ENGINE, _) => self.pump(queues)?,
            (TIMER, Some(limit)) => {
                limit.settle();
                self.serve_stalled(queues)?;
                self.pump(queues)?;
            }
            _ => return Ok(Listen::No),
        }
        Ok(Listen::Yes)
    }

    /// Waits for what is in the engine. What is stalled stays in the ring.
    fn quiesce(&mut self, queues: &mut Queues) -> Result<(), Fault> {
        while self.engine.in_flight() > 0 {
            let mut ended = Vec::new();
            self.engine.drain(&mut |tag, result| ended.push((tag, result))).map_err(Fault::Host)?;
            // A request of several steps goes on with the next one.
            self.end(queues, ended)?;
        }
        Ok(())
    }
}
