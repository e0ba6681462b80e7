//! Named character ports: virtio-console with VIRTIO_CONSOLE_F_MULTIPORT (virtio 1.2 §5.3).
//!
//! They are a function of their own. So the console stays what the simplest driver expects, costs no control messages at
//! boot, and is told its size by a configuration change; the RESIZE message of MULTIPORT has its two fields in one order in
//! the specification and in some kernels, and in the other order in other kernels.
//!
//! Port 0, which a driver without MULTIPORT takes for a console, is not used: what is sent there is dropped.

mod control;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use self::control::{Event, Message};
use super::{INPUT_BYTES, KIND, deliver, receive, transmit};
use crate::backend::port::{Input, Interest, PortSocket};
use crate::devices::complaints::Complaints;
use crate::devices::virtio::queue::{Fate, Queues};
use crate::devices::virtio::{
    Counters, Fault, HostSource, Kind, Lane, Listen, QueueHandler, Start, VirtioDevice,
};

/// VIRTIO_CONSOLE_F_MULTIPORT: the device has control queues and `max_nr_ports` ports (virtio 1.2 §5.3.3).
const F_MULTIPORT: u64 = 1 << 1;
/// The most named ports.
pub const MAX_PORTS: usize = 15;
/// Queue with control messages for the driver.
const CONTROL_RECEIVE: usize = 2;
/// Queue with control messages from the driver.
const CONTROL_TRANSMIT: usize = 3;

/// A port's name and its socket.
#[derive(Debug)]
pub struct NamedPort {
    /// What the guest sees under `/dev/virtio-ports`.
    pub name: String,
    /// The host side.
    pub socket: PortSocket,
}

/// The device with the named ports.
#[derive(Debug)]
pub struct Ports {
    ports: Vec<Arc<Port>>,
    complaints: Arc<Complaints>,
}

/// What of a port outlives a reset by the driver.
#[derive(Debug)]
struct Port {
    name: String,
    host: Mutex<Host>,
    /// Bytes the guest took, bytes it sent, and those of the latter that nobody was there for.
    received: AtomicU64,
    sent: AtomicU64,
    dropped: AtomicU64,
}

/// What a client is read of before it is the next port's turn: a guest that gives buffers as fast as they are filled must not keep the
/// worker from hearing anybody else, nor an order to rest.
const TURN_BYTES: u64 = 64 << 10;

#[derive(Debug)]
struct Host {
    socket: PortSocket,
    /// Input read from the client that the guest has no buffer for yet.
    pending: Vec<u8>,
}

impl Port {
    fn lock(&self) -> MutexGuard<'_, Host> {
        self.host.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ports {
    /// A device with these ports, at most [`MAX_PORTS`], numbered from 1 on.
    #[must_use]
    pub fn new(ports: Vec<NamedPort>) -> Self {
        let port = |NamedPort { name, socket }| {
            let (received, sent, dropped) = Default::default();
            let host = Mutex::new(Host { socket, pending: Vec::new() });
            Arc::new(Port { name, host, received, sent, dropped })
        };
        Self { ports: ports.into_iter().map(port).collect(), complaints: Arc::default() }
    }

    /// The machine has ended: clients are let go, and the sockets go away.
    pub fn close(&self) {
        self.ports.iter().for_each(|port| port.lock().socket.close());
    }

    fn handler(&self, multiport: bool) -> PortsHandler {
        let driver = |port: &Arc<Port>| Driver { port: Arc::clone(port), guest: Guest::default() };
        PortsHandler {
            ports: if multiport { self.ports.iter().map(driver).collect() } else { Vec::new() },
            complaints: Arc::clone(&self.complaints),
        }
    }

    /// Ports with number 0, and the control queues' place.
    fn slots(&self) -> usize {
        self.ports.len().saturating_add(1)
    }

    fn queue_count(&self) -> usize {
        self.slots().saturating_mul(2).saturating_add(2)
    }
}

impl VirtioDevice for Ports {
    fn kind(&self) -> Kind {
        KIND
    }

    fn features(&self) -> u64 {
        F_MULTIPORT
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![64; self.queue_count()]
    }

    /// `cols`, `rows` (there is no SIZE), `max_nr_ports`, `emerg_wr`.
    fn config(&self) -> Vec<u8> {
        let mut config = vec![0; 4];
        config.extend((self.slots() as u32).to_le_bytes());
        config.extend([0; 4]);
        config
    }

    fn start(&self, start: Start<'_>) -> Result<Vec<Lane>, Fault> {
        Ok(Lane::all(self.queue_count(), self.handler(start.features & F_MULTIPORT != 0)))
    }

    fn counters(&self) -> Counters {
        let ports = self.ports.clone();
        Box::new(move || {
            let sum = |count: fn(&Port) -> &AtomicU64| {
                ports.iter().map(|port| count(port).load(Ordering::Relaxed)).sum::<u64>()
            };
            let connected = ports.iter().filter(|port| port.lock().socket.is_connected()).count();
            let mut counters = BTreeMap::from([
                ("bytes_out".to_owned(), sum(|port| &port.sent)),
                ("bytes_in".to_owned(), sum(|port| &port.received)),
                ("clients".to_owned(), connected as u64),
            ]);
            let dropped = sum(|port| &port.dropped);
            if dropped > 0 {
                counters.insert("bytes_dropped".to_owned(), dropped);
            }
            counters
        })
    }

    fn backend(&self) -> Option<String> {
        let names: Vec<&str> = self.ports.iter().map(|port| port.name.as_str()).collect();
        Some(format!("ports {}", names.join(", ")))
    }
}

/// One port and what its driver said.
#[derive(Debug)]
struct Driver {
    port: Arc<Port>,
    guest: Guest,
}

/// What the driver knows of a port, and what it is still to be told. A driver that asks for something again and again is
/// answered once for all the times that it gave no room for the answer.
#[derive(Debug, Default)]
struct Guest {
    owed_add: bool,
    owed_name: bool,
    /// It has the port.
    is_ready: bool,
    /// A process of the guest has it open.
    is_open: bool,
    /// It was told that a client is there.
    told_connected: bool,
}

/// Moves bytes between the rings and the sockets.
#[derive(Debug)]
struct PortsHandler {
    ports: Vec<Driver>,
    complaints: Arc<Complaints>,
}

impl QueueHandler for PortsHandler {
    fn on_queue(&mut self, queues: &mut Queues, index: usize) -> Result<(), Fault> {
        match index {
            // What is there for port 0 is for nobody.
            super::RECEIVE => Ok(()),
            super::TRANSMIT => drop_all(queues),
            CONTROL_RECEIVE => self.advance_all(queues),
            CONTROL_TRANSMIT => {
                self.hear(queues)?;
                self.advance_all(queues)
            }
            _ => self.advance(queues, (index / 2).saturating_sub(2)),
        }
    }

    fn host_sources(&self) -> Vec<HostSource> {
        // Each is looked at when the worker starts, whatever happened before.
        let source =
            |driver: &Driver| HostSource { fd: driver.port.lock().socket.as_fd().as_raw_fd(), pending: true };
        self.ports.iter().map(source).collect()
    }

    fn on_host(&mut self, queues: &mut Queues, source: usize) -> Result<Listen, Fault> {
        self.advance(queues, source)?;
        Ok(Listen::Yes)
    }
}

impl PortsHandler {
    /// Takes the driver's control messages.
    fn hear(&mut self, queues: &mut Queues) -> Result<(), Fault> {
        let Some(queue) = queues.get(CONTROL_TRANSMIT) else { return Ok(()) };
        queue.serve(|_, chain| {
            let mut bytes = Vec::new();
            transmit(chain, |part| {
                let room = Message::LEN.saturating_sub(bytes.len());
                bytes.extend(part.get(..room).unwrap_or(part));
            })?;
            match Message::parse(&bytes) {
                Some(message) => self.obey(message),
                None => self.complain("the guest sent half a control message to the ports"),
            }
            Ok(0_u32)
        })
    }

    fn obey(&mut self, message: Message) {
        if message.event == Event::DeviceReady {
            if message.value == 1 {
                self.ports
                    .iter_mut()
                    .for_each(|port| port.guest = Guest { owed_add: true, ..Guest::default() });
            } else {
                self.complain("the guest cannot set up its ports");
            }
            return;
        }
        let Some(driver) = self.ports.get_mut((message.id as usize).wrapping_sub(1)) else {
            return self.complain("the guest spoke of a port that is not there");
        };
        match (message.event, message.value) {
            (Event::PortReady, 1) => {
                driver.guest.owed_name = true;
                driver.guest.is_ready = true;
            }
            (Event::PortReady, _) => self.complain("the guest cannot set up a port"),
            (Event::PortOpen, value) => driver.guest.is_open = value != 0,
            _ => self.complain("the guest sent a control message that is not a driver's"),
        }
    }

    fn complain(&self, what: &str) {
        if self.complaints.may_speak() {
            tracing::warn!("{what}");
        }
    }

    fn advance_all(&mut self, queues: &mut Queues) -> Result<(), Fault> {
        (0..self.ports.len()).try_for_each(|index| self.advance(queues, index))
    }

    /// Moves everything of one port that can be moved now. What cannot is looked at again when its queue, the control
    /// queue or the socket has room.
    fn advance(&mut self, queues: &mut Queues, index: usize) -> Result<(), Fault> {
        let Some(driver) = self.ports.get_mut(index) else { return Ok(()) };
        let Driver { port, guest } = driver;
        let port_receive = index.saturating_mul(2).saturating_add(4);
        let mut host = port.lock();
        let host = &mut *host;
        host.socket.advance();
        send(queues, port_receive.saturating_add(1), &mut host.socket, port)?;
        let (mut has_buffers, mut turn) = (true, 0);
        // What is left of a client that sends without end, its socket tells of again.
        while guest.is_open && has_buffers && turn < TURN_BYTES {
            let delivered = deliver(queues, port_receive, &mut host.pending)?;
            port.received.fetch_add(delivered, Ordering::Relaxed);
            turn = turn.saturating_add(delivered);
            has_buffers = host.pending.is_empty();
            if !has_buffers {
                break;
            }
            match host.socket.read(INPUT_BYTES) {
                Input::Bytes(bytes) => host.pending = bytes,
                Input::Nothing | Input::Ended => break,
            }
        }
        tell(queues, index, port, guest, host.socket.is_connected())?;
        host.socket.set_interest(Interest {
            input: guest.is_open && has_buffers,
            // The next client comes when the guest knows that the last one has gone and has all that it sent.
            accept: !host.socket.is_connected() && !guest.told_connected && host.pending.is_empty(),
        });
        Ok(())
    }
}

/// What the guest sends goes to the client, as long as there is room for it.
fn send(queues: &mut Queues, index: usize, socket: &mut PortSocket, port: &Port) -> Result<(), Fault> {
    let Some(queue) = queues.get(index) else { return Ok(()) };
    queue.serve(|_, chain| {
        if !socket.has_room() {
            return Ok(Fate::Later);
        }
        transmit(chain, |bytes| {
            port.sent.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            if !socket.write(bytes) {
                port.dropped.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            }
        })?;
        Ok(Fate::Used(0))
    })
}

/// Tells the driver what it does not know yet, as far as it gave room for it.
fn tell(
    queues: &mut Queues,
    index: usize,
    port: &Port,
    guest: &mut Guest,
    is_connected: bool,
) -> Result<(), Fault> {
    let id = (index as u32).saturating_add(1);
    let mut say = |event: Event, value: u16, name: &str| -> Result<bool, Fault> {
        let Some(queue) = queues.get(CONTROL_RECEIVE) else { return Ok(false) };
        let message = [&Message { id, event, value }.bytes(), name.as_bytes()].concat();
        queue.serve_one(|_, chain| match receive(&message, chain)? {
            len if len == message.len() => Ok(len as u32),
            _ => Err(Fault::Chain("a control buffer is too small for its message")),
        })
    };
    if guest.owed_add {
        guest.owed_add = !say(Event::PortAdd, 1, "")?;
    }
    if guest.owed_name && !guest.owed_add {
        guest.owed_name = !say(Event::PortName, 1, &port.name)?;
    }
    if guest.is_ready
        && !guest.owed_name
        && guest.told_connected != is_connected
        && say(Event::PortOpen, is_connected.into(), "")?
    {
        guest.told_connected = is_connected;
    }
    Ok(())
}

/// A driver that knows no ports takes the first two queues for a console's: nobody is there.
fn drop_all(queues: &mut Queues) -> Result<(), Fault> {
    let Some(queue) = queues.get(super::TRANSMIT) else { return Ok(()) };
    queue.serve(|_, chain| {
        transmit(chain, |_| {})?;
        Ok(0_u32)
    })
}

#[cfg(test)]
mod tests;
