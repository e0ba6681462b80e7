//! virtio-console (virtio 1.2 §5.3): the guest's `hvc0`, with VIRTIO_CONSOLE_F_SIZE and VIRTIO_CONSOLE_F_EMERG_WRITE.
//! Character ports with names are a function of their own, [`ports`].

pub mod ports;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::queue::{Chain, Queues};
use super::{Counters, Fault, HostSource, Kind, Lane, Listen, QueueHandler, Start, VirtioDevice};
use crate::backend::console::{ConsoleHub, ConsoleInput};

/// VIRTIO_CONSOLE_F_SIZE: `cols` and `rows` are valid (virtio 1.2 §5.3.3).
const F_SIZE: u64 = 1 << 0;
/// VIRTIO_CONSOLE_F_EMERG_WRITE: what is written to `emerg_wr` is console output.
const F_EMERG_WRITE: u64 = 1 << 2;
/// Where `emerg_wr` is (virtio 1.2 §5.3.4).
const EMERG_WR: usize = 8;
/// Both kinds of virtio-console.
const KIND: Kind = Kind { id: 3, name: "virtio-console", class: [0x07, 0x80] };

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
/// Input read at once.
const INPUT_BYTES: usize = 1024;
/// More than this in one chain is no console output.
const MAX_OUTPUT_BYTES: usize = 1 << 20;

/// Host source: what clients type.
const CLIENTS: usize = 0;
/// Host source: the size of the window.
const WINDOW: usize = 1;
/// Host source: what is typed on our stdin.
const STDIN: usize = 2;

/// The console device.
#[derive(Debug)]
pub struct Console {
    hub: Arc<ConsoleHub>,
    input: Arc<Mutex<Input>>,
    received: Arc<AtomicU64>,
}

/// The host's input, which outlives a reset by the driver.
#[derive(Debug)]
struct Input {
    stdin: Option<ConsoleInput>,
    /// Our stdin ended. It stays open, for the worker still has to stop waiting for it.
    ended: bool,
    /// Input read from the host that the guest has no buffer for yet.
    pending: Vec<u8>,
}

impl Console {
    /// A console that writes to `hub` and reads what clients type there and what comes from `stdin`.
    #[must_use]
    pub fn new(hub: Arc<ConsoleHub>, stdin: Option<ConsoleInput>) -> Self {
        let input = Input { stdin, ended: false, pending: Vec::new() };
        Self { hub, input: Arc::new(Mutex::new(input)), received: Arc::default() }
    }

    fn handler(&self, on_resize: impl Fn() + Send + 'static) -> ConsoleHandler {
        ConsoleHandler {
            hub: Arc::clone(&self.hub),
            input: Arc::clone(&self.input),
            received: Arc::clone(&self.received),
            on_resize: Box::new(on_resize),
        }
    }
}

impl VirtioDevice for Console {
    fn kind(&self) -> Kind {
        KIND
    }

    fn features(&self) -> u64 {
        F_SIZE | F_EMERG_WRITE
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![64, 64]
    }

    /// `cols`, `rows` (0 while nobody has told them), `max_nr_ports` (there is one port), `emerg_wr`.
    fn config(&self) -> Vec<u8> {
        let (cols, rows) = self.hub.window().size().map_or((0, 0), |size| (size.cols, size.rows));
        let mut config = [cols.to_le_bytes(), rows.to_le_bytes()].concat();
        config.resize(12, 0);
        config
    }

    /// A driver may write a character to `emerg_wr` before anything is negotiated. Each costs an exit: it is for a guest
    /// that has nothing else left.
    fn write_config(&self, offset: usize, data: &[u8]) {
        if offset == EMERG_WR && matches!(data.len(), 1 | 2 | 4) {
            self.hub.write(data.get(..1).unwrap_or_default());
        }
    }

    fn start(&self, start: Start<'_>) -> Result<Vec<Lane>, Fault> {
        let config = (start.features & F_SIZE != 0).then_some(start.config);
        let on_resize = move || config.iter().for_each(super::transport::ConfigChange::announce);
        Ok(Lane::all(2, self.handler(on_resize)))
    }

    fn counters(&self) -> Counters {
        let (hub, received) = (Arc::clone(&self.hub), Arc::clone(&self.received));
        Box::new(move || {
            let received = received.load(Ordering::Relaxed);
            let mut counters =
                BTreeMap::from([("bytes_out".into(), hub.bytes()), ("bytes_in".into(), received)]);
            for (name, count) in [("bytes_dropped", hub.dropped()), ("bytes_missed", hub.history().missed())]
            {
                if count > 0 {
                    counters.insert(name.into(), count);
                }
            }
            counters
        })
    }
}

/// Moves bytes between the rings and the host.
struct ConsoleHandler {
    hub: Arc<ConsoleHub>,
    input: Arc<Mutex<Input>>,
    received: Arc<AtomicU64>,
    on_resize: Box<dyn Fn() + Send>,
}

impl QueueHandler for ConsoleHandler {
    fn on_queue(&mut self, queues: &mut Queues, index: usize) -> Result<(), Fault> {
        match (index, queues.get(index)) {
            (TRANSMIT, Some(queue)) => queue.serve(|_, chain| {
                transmit(chain, |bytes| self.hub.write(bytes))?;
                Ok(0_u32)
            }),
            // New receive buffers: the worker calls `on_host` next when input is waiting for them.
            _ => Ok(()),
        }
    }

    fn host_sources(&self) -> Vec<HostSource> {
        let input = self.input.lock().unwrap_or_else(PoisonError::into_inner);
        let pending = !input.pending.is_empty();
        let clients = HostSource { fd: self.hub.input().as_fd().as_raw_fd(), pending };
        // A driver that starts is told the size, if there is one.
        let has_size = self.hub.window().size().is_some();
        let window = HostSource { fd: self.hub.window().as_fd().as_raw_fd(), pending: has_size };
        let stdin = input.stdin.as_ref().filter(|_| !input.ended);
        let stdin = stdin.map(|stdin| HostSource { fd: stdin.as_fd().as_raw_fd(), pending });
        [clients, window].into_iter().chain(stdin).collect()
    }

    fn on_host(&mut self, queues: &mut Queues, source: usize) -> Result<Listen, Fault> {
        if source == WINDOW {
            self.hub.window().take_change();
            (self.on_resize)();
            return Ok(Listen::Yes);
        }
        let mut input = self.input.lock().unwrap_or_else(PoisonError::into_inner);
        let Input { stdin, ended, pending } = &mut *input;
        if !self.deliver(queues, pending)? {
            return Ok(Listen::Later);
        }
        match (source, stdin) {
            (CLIENTS, _) => *pending = self.hub.input().read(INPUT_BYTES),
            (STDIN, Some(stdin)) => match stdin.read(INPUT_BYTES) {
                Some(data) => *pending = data,
                None => {
                    *ended = true;
                    return Ok(Listen::No);
                }
            },
            _ => return Ok(Listen::No),
        }
        Ok(if self.deliver(queues, pending)? { Listen::Yes } else { Listen::Later })
    }
}

impl ConsoleHandler {
    /// Gives the guest what waits for it; `false` when it has no room for all of it.
    fn deliver(&self, queues: &mut Queues, pending: &mut Vec<u8>) -> Result<bool, Fault> {
        let delivered = deliver(queues, RECEIVE, pending)?;
        self.received.fetch_add(delivered, Ordering::Relaxed);
        Ok(pending.is_empty())
    }
}

/// Moves `pending` into the receive buffers of queue `index`, as far as there are any; says how many bytes that were.
fn deliver(queues: &mut Queues, index: usize, pending: &mut Vec<u8>) -> Result<u64, Fault> {
    let mut delivered = 0_u64;
    while !pending.is_empty() {
        let Some(queue) = queues.get(index) else { break };
        let mut taken = 0;
        let served = queue.serve_one(|_, chain| {
            taken = receive(pending, chain)?;
            Ok(taken as u32)
        })?;
        pending.drain(..taken);
        delivered = delivered.saturating_add(taken as u64);
        if !served {
            break;
        }
    }
    Ok(delivered)
}

/// Hands what a transmit chain holds to `sink`.
fn transmit(chain: Chain<'_>, mut sink: impl FnMut(&[u8])) -> Result<(), Fault> {
    check_whole(&chain)?;
    let mut reader = chain.reader()?;
    if reader.available_bytes() > MAX_OUTPUT_BYTES {
        return Err(Fault::Chain("more than 1 MiB in one console buffer"));
    }
    let mut buffer = [0; 4096];
    while let Ok(len @ 1..) = reader.read(&mut buffer) {
        sink(buffer.get(..len).unwrap_or_default());
    }
    Ok(())
}

/// Fills a receive chain with as much of `pending` as it takes.
fn receive(pending: &[u8], chain: Chain<'_>) -> Result<usize, Fault> {
    check_whole(&chain)?;
    let mut writer = chain.writer()?;
    match writer.write(pending) {
        Ok(0) | Err(_) => Err(Fault::Chain("a console receive buffer has no room")),
        Ok(len) => Ok(len),
    }
}

/// A chain whose last descriptor still points on leads nowhere: out of the table, in a circle, or into a table in a table.
fn check_whole(chain: &Chain<'_>) -> Result<(), Fault> {
    match chain.clone().last() {
        Some(last) if !last.has_next() => Ok(()),
        _ => Err(Fault::Chain("a console chain has no end")),
    }
}

#[cfg(test)]
mod tests;
