//! virtio-vsock (virtio 1.2 §5.10): streams between programs of the guest and programs of the host, by port numbers.
//!
//! `header` and `chain` read and write packets, `connection` is the state of one stream, `credit` how much may be
//! on its way; `muxer` has all of them. None of these knows a descriptor: the host's ends are
//! [`Stream`](crate::backend::vsock::Stream)s.

mod chain;
mod connection;
mod credit;
mod header;
mod muxer;
mod receive;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use vm_memory::{Bytes, GuestMemoryMmap};

use self::chain::Packet;
use self::muxer::{Counts, Muxer};
use self::receive::Receive;
use super::queue::{DeviceQueue, Fate, Queues};
use super::{Counters, Fault, HostSource, Kind, Lane, Listen, QueueHandler, Start, VirtioDevice, counted};
use crate::backend::vsock::{Host, HostEvent, Inside, UnixHost, VsockListener};

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const EVENT: usize = 2;

/// VIRTIO_VSOCK_F_STREAM.
const F_STREAM: u64 = 1 << 0;

const QUEUE_SIZE: u16 = 256;
const EVENT_QUEUE_SIZE: u16 = 16;

/// VIRTIO_VSOCK_EVENT_TRANSPORT_RESET (virtio 1.2 §5.10.6.7).
const TRANSPORT_RESET: u32 = 0;

/// Batches of host events that are taken before the queues have their turn.
const EVENT_ROUNDS: usize = 4;
/// Programs of the host that are accepted in one go.
const ACCEPTED_AT_ONCE: usize = 64;

/// The vsock device.
#[derive(Debug)]
pub struct Vsock(Arc<Shared>);

/// What outlives a reset by the driver.
#[derive(Debug)]
struct Shared {
    guest_cid: u32,
    limit: usize,
    listener: Option<Arc<VsockListener>>,
    inside: Inside,
    counts: Arc<Counts>,
    /// The driver is to hear that its connections are gone.
    transport_reset: AtomicBool,
}

impl Vsock {
    /// A guest with the address `guest_cid`, whose programs have at most `limit` connections with those of the host. The
    /// host's programs connect to `listener`, if there is one; this process goes in by `inside`.
    #[must_use]
    pub fn new(guest_cid: u32, limit: u32, listener: Option<VsockListener>, inside: Inside) -> Self {
        Self(Arc::new(Shared {
            guest_cid,
            limit: limit as usize,
            listener: listener.map(Arc::new),
            inside,
            counts: Arc::default(),
            transport_reset: AtomicBool::new(false),
        }))
    }

    /// The guest's memory comes from another run of the machine: when the device is started next, the driver hears that
    /// its connections are gone (VIRTIO_VSOCK_EVENT_TRANSPORT_RESET).
    pub fn restored(&self) {
        self.0.transport_reset.store(true, Ordering::Relaxed);
    }

    /// Who serves the queues, from no connection on.
    fn handler(&self, memory: &GuestMemoryMmap) -> Result<VsockHandler, Fault> {
        let host = UnixHost::new(self.0.listener.clone(), self.0.inside.clone()).map_err(Fault::Host)?;
        let muxer = Muxer::new(host, self.0.guest_cid.into(), self.0.limit, Arc::clone(&self.0.counts));
        Ok(VsockHandler { shared: Arc::clone(&self.0), muxer, memory: memory.clone() })
    }
}

impl VirtioDevice for Vsock {
    fn kind(&self) -> Kind {
        Kind { id: 19, name: "virtio-vsock", class: [0x07, 0x80] }
    }

    fn features(&self) -> u64 {
        F_STREAM
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE, QUEUE_SIZE, EVENT_QUEUE_SIZE]
    }

    /// `guest_cid`, of which the upper half is zero (virtio 1.2 §5.10.4).
    fn config(&self) -> Vec<u8> {
        u64::from(self.0.guest_cid).to_le_bytes().to_vec()
    }

    fn start(&self, start: Start<'_>) -> Result<Vec<Lane>, Fault> {
        Ok(Lane::all(3, self.handler(start.memory)?))
    }

    fn counters(&self) -> Counters {
        let counts = Arc::clone(&self.0.counts);
        Box::new(move || {
            BTreeMap::from([
                counted("connections_open", &counts.open),
                counted("connections_total", &counts.total),
                counted("connections_refused", &counts.refused),
                counted("connections_broken", &counts.broken),
                counted("packets_to_guest", &counts.packets_to_guest),
                counted("packets_to_host", &counts.packets_to_host),
                counted("bytes_to_guest", &counts.bytes_to_guest),
                counted("bytes_to_host", &counts.bytes_to_host),
            ])
        })
    }

    fn backend(&self) -> Option<String> {
        let path = self.0.listener.as_ref().map(|listener| format!(", {}", listener.path().display()));
        Some(format!("cid {}{}", self.0.guest_cid, path.unwrap_or_default()))
    }
}

/// Moves packets between the rings and the host's sockets.
struct VsockHandler {
    shared: Arc<Shared>,
    muxer: Muxer<UnixHost>,
    memory: GuestMemoryMmap,
}

impl QueueHandler for VsockHandler {
    fn on_queue(&mut self, queues: &mut Queues, index: usize) -> Result<(), Fault> {
        let now = Instant::now();
        self.muxer.wake(now);
        if index == EVENT {
            return announce_reset(&self.shared.transport_reset, queues);
        }
        if index == TRANSMIT {
            take_packets(&mut self.muxer, queues, now)?;
        }
        self.send(queues, now)
    }

    fn host_sources(&self) -> Vec<HostSource> {
        vec![HostSource::new(self.muxer.host_ref().as_fd().as_raw_fd())]
    }

    fn on_host(&mut self, queues: &mut Queues, _source: usize) -> Result<Listen, Fault> {
        let now = Instant::now();
        self.muxer.wake(now);
        for _ in 0..EVENT_ROUNDS {
            let events = self.muxer.host().take_events();
            if events.is_empty() {
                break;
            }
            for event in events {
                match event {
                    HostEvent::Knock => self.accept(now),
                    HostEvent::Alarm => self.muxer.expire(now),
                    HostEvent::Stream { id, ready } => self.muxer.on_host(id, ready, now),
                }
            }
        }
        self.send(queues, now)?;
        Ok(Listen::Yes)
    }

    /// Nothing is between the rings and the connections: only time stands still.
    fn quiesce(&mut self, _queues: &mut Queues) -> Result<(), Fault> {
        self.muxer.rest(Instant::now());
        Ok(())
    }
}

impl VsockHandler {
    fn accept(&mut self, now: Instant) {
        for _ in 0..ACCEPTED_AT_ONCE {
            match self.muxer.host().accept(now) {
                Some(Ok(stream)) => self.muxer.knock(stream, now),
                Some(Err(_)) => self.muxer.refused(),
                None => break,
            }
        }
    }

    fn send(&mut self, queues: &mut Queues, now: Instant) -> Result<(), Fault> {
        send_packets(&mut self.muxer, &self.memory, self.shared.guest_cid.into(), queues, now)?;
        let alarm = self.muxer.next_alarm();
        self.muxer.host().set_alarm(alarm, now);
        Ok(())
    }
}

/// Serves the transmit queue as long as there is room for answers.
fn take_packets<H: Host>(muxer: &mut Muxer<H>, queues: &mut Queues, now: Instant) -> Result<(), Fault> {
    let Some(queue) = queues.get(TRANSMIT) else { return Ok(()) };
    queue.serve(|memory, chain| {
        if !muxer.has_room() {
            return Ok(Fate::Later);
        }
        muxer.on_guest(Packet::parse(memory, chain)?, now);
        Ok(Fate::Used(0))
    })
}

/// Serves the receive queue; when that made room for answers again, the transmit queue is looked at again.
fn send_packets<H: Host>(
    muxer: &mut Muxer<H>,
    memory: &GuestMemoryMmap,
    guest_cid: u64,
    queues: &mut Queues,
    now: Instant,
) -> Result<(), Fault> {
    let had_room = muxer.has_room();
    if muxer.has_something()
        && let Some(queue) = queues.get(RECEIVE)
    {
        let mut receive = Receive::new(queue, memory, guest_cid);
        muxer.send(&mut receive, now)?;
        receive.end(muxer.has_something())?;
    }
    if !had_room && muxer.has_room() {
        queues.get(TRANSMIT).map(DeviceQueue::ring_again);
    }
    Ok(())
}

/// Tells the driver once that its connections are gone, if it is to hear that.
fn announce_reset(due: &AtomicBool, queues: &mut Queues) -> Result<(), Fault> {
    if !due.load(Ordering::Relaxed) {
        return Ok(());
    }
    let Some(queue) = queues.get(EVENT) else { return Ok(()) };
    let told = queue.serve_one(|memory, mut chain| {
        let event = chain.next().filter(|descriptor| descriptor.is_write_only() && descriptor.len() >= 4);
        let event = event.ok_or(Fault::Chain("an event buffer has no room for an event"))?;
        memory
            .write_obj(TRANSPORT_RESET.to_le(), event.addr())
            .map_err(|_| Fault::Chain("an event buffer lies outside guest memory"))?;
        Ok(4)
    })?;
    if told {
        due.store(false, Ordering::Relaxed);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
