//! virtio-console (virtio 1.2 §5.3), one port: the guest's `hvc0`.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use virtio_queue::DescriptorChain;
use vm_memory::GuestMemoryMmap;

use super::queue::Queues;
use super::{Counters, Fault, HostSource, Kind, Lane, Listen, QueueHandler, Start, VirtioDevice};
use crate::backend::console::{ConsoleInput, ConsoleLog};

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
/// Input read at once.
const INPUT_BYTES: usize = 1024;
/// More than this in one chain is no console output.
const MAX_OUTPUT_BYTES: usize = 1 << 20;

/// The console device.
#[derive(Debug)]
pub struct Console {
    log: Arc<ConsoleLog>,
    input: Arc<Mutex<Input>>,
    received: Arc<AtomicU64>,
}

/// The host's input, which outlives a reset by the driver.
#[derive(Debug)]
struct Input {
    source: Option<ConsoleInput>,
    /// The input ended. It stays open, for the worker still has to stop waiting for it.
    ended: bool,
    /// Input read from the host that the guest has no buffer for yet.
    pending: Vec<u8>,
}

impl Console {
    /// A console that writes to `log` and reads from `input`.
    #[must_use]
    pub fn new(log: Arc<ConsoleLog>, input: Option<ConsoleInput>) -> Self {
        let input = Input { source: input, ended: false, pending: Vec::new() };
        Self { log, input: Arc::new(Mutex::new(input)), received: Arc::default() }
    }

    fn handler(&self) -> ConsoleHandler {
        ConsoleHandler {
            log: Arc::clone(&self.log),
            input: Arc::clone(&self.input),
            received: Arc::clone(&self.received),
        }
    }
}

impl VirtioDevice for Console {
    fn kind(&self) -> Kind {
        Kind { id: 3, name: "virtio-console", class: [0x07, 0x80] }
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![64, 64]
    }

    /// `cols`, `rows`, `max_nr_ports`, `emerg_wr`: none is offered, so all are zero.
    fn config(&self) -> Vec<u8> {
        vec![0; 12]
    }

    fn start(&self, _start: Start<'_>) -> Result<Vec<Lane>, Fault> {
        Ok(Lane::all(2, self.handler()))
    }

    fn counters(&self) -> Counters {
        let (log, received) = (Arc::clone(&self.log), Arc::clone(&self.received));
        Box::new(move || {
            let received = received.load(Ordering::Relaxed);
            let mut counters =
                BTreeMap::from([("bytes_out".into(), log.bytes()), ("bytes_in".into(), received)]);
            if log.dropped() > 0 {
                counters.insert("bytes_dropped".into(), log.dropped());
            }
            counters
        })
    }
}

/// Moves bytes between the rings and the host.
#[derive(Debug)]
struct ConsoleHandler {
    log: Arc<ConsoleLog>,
    input: Arc<Mutex<Input>>,
    received: Arc<AtomicU64>,
}

impl QueueHandler for ConsoleHandler {
    fn on_queue(&mut self, queues: &mut Queues, index: usize) -> Result<(), Fault> {
        match (index, queues.get(index)) {
            (TRANSMIT, Some(queue)) => queue.serve(|memory, chain| transmit(&self.log, memory, chain)),
            // New receive buffers: the worker calls `on_host` next when input is waiting for them.
            _ => Ok(()),
        }
    }

    fn host_sources(&self) -> Vec<HostSource> {
        let input = self.input.lock().unwrap_or_else(PoisonError::into_inner);
        let pending = !input.pending.is_empty();
        let source = input.source.as_ref().filter(|_| !input.ended);
        source.map(|source| HostSource { fd: source.as_fd().as_raw_fd(), pending }).into_iter().collect()
    }

    fn on_host(&mut self, queues: &mut Queues, _source: usize) -> Result<Listen, Fault> {
        let mut input = self.input.lock().unwrap_or_else(PoisonError::into_inner);
        let Input { source, ended, pending } = &mut *input;
        let Some(source) = source.as_mut() else { return Ok(Listen::No) };
        if pending.is_empty() {
            match source.read(INPUT_BYTES) {
                Some(data) => *pending = data,
                None => {
                    *ended = true;
                    return Ok(Listen::No);
                }
            }
        }
        if pending.is_empty() {
            return Ok(Listen::Yes);
        }
        let Some(queue) = queues.get(RECEIVE) else { return Ok(Listen::Later) };
        while !pending.is_empty() {
            let mut taken = 0;
            let served = queue.serve_one(|memory, chain| {
                taken = receive(pending, memory, chain)?;
                Ok(taken as u32)
            })?;
            self.received.fetch_add(taken as u64, Ordering::Relaxed);
            pending.drain(..taken);
            if !served {
                return Ok(Listen::Later);
            }
        }
        Ok(Listen::Yes)
    }
}

fn transmit(
    log: &ConsoleLog,
    memory: &GuestMemoryMmap,
    chain: DescriptorChain<&GuestMemoryMmap>,
) -> Result<u32, Fault> {
    let mut reader = chain.reader(memory)?;
    if reader.available_bytes() > MAX_OUTPUT_BYTES {
        return Err(Fault::Chain("more than 1 MiB in one console buffer"));
    }
    let mut buffer = [0; 4096];
    while let Ok(len @ 1..) = reader.read(&mut buffer) {
        log.write(buffer.get(..len).unwrap_or_default());
    }
    Ok(0)
}

fn receive(
    pending: &[u8],
    memory: &GuestMemoryMmap,
    chain: DescriptorChain<&GuestMemoryMmap>,
) -> Result<usize, Fault> {
    let mut writer = chain.writer(memory)?;
    match writer.write(pending) {
        Ok(0) | Err(_) => Err(Fault::Chain("a console receive buffer has no room")),
        Ok(len) => Ok(len),
    }
}

#[cfg(test)]
mod tests;
