//! Thousands of connections between one guest and its host.
//!
//! Everything here is bounded. Connections by a limit; what is kept of the guest's bytes by what we promised to keep
//! ([`Muxer::allowance`]); resets that answer packets of no connection by [`MOST_RESETS`]: while so many wait for the
//! driver's receive buffers, no packet is taken from it (virtio 1.2 §5.10.6.1.1).

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::chain::Packet;
use super::connection::{Connection, Greeting, Key, Stage, Turn};
use super::header::{Header, Op, TYPE_STREAM};
use super::receive::Receive;
use crate::backend::vsock::{HOST_CID, Host, Ready};
use crate::devices::complaints::Complaints;
use crate::devices::virtio::Fault;

/// Resets that may wait for the guest.
pub(super) const MOST_RESETS: usize = 256;
/// What one connection is allowed to keep of the guest's bytes, at most and at least.
const MOST_ALLOWED: u64 = 256 << 10;
const LEAST_ALLOWED: u64 = 16 << 10;
/// What all connections together are allowed, as far as the least of each leaves a choice.
const ALLOWED_TOGETHER: u64 = 64 << 20;
/// Ports of our ends of connections that the host begins.
const FIRST_HOST_PORT: u32 = 1 << 30;
const LAST_HOST_PORT: u32 = u32::MAX >> 1;

/// What the status shows.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) open: AtomicU64,
    pub(super) total: AtomicU64,
    pub(super) refused: AtomicU64,
    /// Connections the guest lost because it broke the rules.
    pub(super) broken: AtomicU64,
    pub(super) packets_to_guest: AtomicU64,
    pub(super) packets_to_host: AtomicU64,
    pub(super) bytes_to_guest: AtomicU64,
    pub(super) bytes_to_host: AtomicU64,
    pub(super) complaints: Complaints,
}

fn add(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

/// A connection, and what the muxer notes of it.
#[derive(Debug)]
struct Entry<S> {
    connection: Connection<S>,
    allowed: u64,
    /// It is in the line of those that have something for the guest.
    in_line: bool,
    room_watched: bool,
    alarm: Option<Instant>,
    counted: bool,
}

/// All connections of one device.
#[derive(Debug)]
pub(super) struct Muxer<H: Host> {
    host: H,
    guest_cid: u64,
    limit: usize,
    counts: Arc<Counts>,
    entries: HashMap<u64, Entry<H::Stream>>,
    /// Those the guest knows.
    by_ports: HashMap<Key, u64>,
    /// Who has something for the guest, in turn.
    line: VecDeque<u64>,
    resets: VecDeque<Header>,
    alarms: BTreeSet<(Instant, u64)>,
    allowed: u64,
    next_id: u64,
    next_port: u32,
    resting: Option<Instant>,
}

impl<H: Host> Muxer<H> {
    /// No connection yet, and never more than `limit`.
    pub(super) fn new(host: H, guest_cid: u64, limit: usize, counts: Arc<Counts>) -> Self {
        Self {
            host,
            guest_cid,
            limit,
            counts,
            entries: HashMap::new(),
            by_ports: HashMap::new(),
            line: VecDeque::new(),
            resets: VecDeque::new(),
            alarms: BTreeSet::new(),
            allowed: 0,
            next_id: 0,
            next_port: FIRST_HOST_PORT,
            resting: None,
        }
    }

    /// Where streams come from.
    pub(super) fn host(&mut self) -> &mut H {
        &mut self.host
    }

    /// The same, only to look at.
    pub(super) fn host_ref(&self) -> &H {
        &self.host
    }

    /// A packet from the guest can be taken, whatever it is.
    pub(super) fn has_room(&self) -> bool {
        self.resets.len() < MOST_RESETS
    }

    /// Somebody has something for the guest.
    pub(super) fn has_something(&self) -> bool {
        !self.resets.is_empty() || !self.line.is_empty()
    }

    /// When [`Muxer::expire`] is to be called next.
    pub(super) fn next_alarm(&self) -> Option<Instant> {
        self.alarms.first().map(|&(at, _)| at)
    }

    // ---- from the host ---------------------------------------------------------------------------------------------

    /// A program of the host has connected.
    pub(super) fn knock(&mut self, stream: H::Stream, now: Instant) {
        let allowed = self.allowance();
        let added = self.add(Connection::greeted(stream, allowed as u32, now), allowed);
        match added {
            Some(id) => self.greet(id, now),
            None => self.refused(),
        }
    }

    /// One was turned away, for want of a descriptor.
    pub(super) fn refused(&self) {
        add(&self.counts.refused, 1);
    }

    /// A stream's other end did something.
    pub(super) fn on_host(&mut self, id: u64, ready: Ready, now: Instant) {
        // One that went in the same batch of events.
        let Some(entry) = self.entries.get_mut(&id) else { return };
        if entry.connection.stage == Stage::Greeting {
            return self.greet(id, now);
        }
        let taken = entry.connection.on_host(ready, now);
        add(&self.counts.bytes_to_host, taken);
        self.settle(id, false);
    }

    fn greet(&mut self, id: u64, now: Instant) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        match entry.connection.read_greeting() {
            Greeting::Incomplete => {}
            Greeting::Bad => {
                entry.connection.vanish();
                self.refused();
            }
            Greeting::Port(guest_port) => {
                let key = self.free_ports(guest_port);
                self.by_ports.insert(key, id);
                if let Some(entry) = self.entries.get_mut(&id) {
                    entry.connection.request(key, now);
                }
            }
        }
        self.settle(id, false);
    }

    /// A port of our own for a connection to the guest's `guest_port`. There are more ports than connections.
    fn free_ports(&mut self, guest_port: u32) -> Key {
        loop {
            let host_port = self.next_port;
            self.next_port =
                if host_port < LAST_HOST_PORT { host_port.wrapping_add(1) } else { FIRST_HOST_PORT };
            let key = Key { host_port, guest_port };
            if !self.by_ports.contains_key(&key) {
                return key;
            }
        }
    }

    // ---- from the guest --------------------------------------------------------------------------------------------

    /// Takes a packet; [`Muxer::has_room`] was asked before.
    pub(super) fn on_guest(&mut self, packet: Packet<'_>, now: Instant) {
        let Packet { header, data } = packet;
        add(&self.counts.packets_to_host, 1);
        // Not from whom the guest is: there is nobody to answer.
        if header.src_cid != self.guest_cid {
            return self.complain("sent a packet in another's name");
        }
        if header.kind != TYPE_STREAM || header.dst_cid != HOST_CID {
            return self.answer_with_reset(&header);
        }
        let key = Key { host_port: header.dst_port, guest_port: header.src_port };
        let Some(&id) = self.by_ports.get(&key) else {
            match header.op {
                Op::Request => self.open(key, &header),
                _ => self.answer_with_reset(&header),
            }
            return;
        };
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let was_asked = entry.connection.stage == Stage::Requested;
        match entry.connection.on_guest(&header, data, now) {
            Ok(taken) => add(&self.counts.bytes_to_host, taken),
            Err(_) => {
                entry.connection.break_off();
                add(&self.counts.broken, 1);
                self.complain("broke the rules of a connection, which was reset");
            }
        }
        if was_asked && header.op == Op::Reset {
            self.refused();
        }
        self.settle(id, false);
    }

    /// A reset answers every packet that belongs nowhere, but no reset.
    fn answer_with_reset(&mut self, header: &Header) {
        if header.op != Op::Reset {
            self.resets.push_back(header.reset());
        }
    }

    fn open(&mut self, key: Key, request: &Header) {
        let allowed = self.allowance();
        let stream = if self.entries.len() < self.limit {
            self.host.connect(key.host_port, key.guest_port).ok()
        } else {
            None
        };
        let id = stream
            .and_then(|stream| self.add(Connection::accepted(stream, allowed as u32, key, request), allowed));
        match id {
            Some(id) => {
                self.by_ports.insert(key, id);
                self.settle(id, false);
            }
            None => {
                self.refused();
                self.answer_with_reset(request);
            }
        }
    }

    fn complain(&self, what: &str) {
        if self.counts.complaints.may_speak() {
            tracing::warn!(cid = self.guest_cid, "the guest {what} (vsock)");
        }
    }

    // ---- to the guest ----------------------------------------------------------------------------------------------

    /// Fills the guest's buffers, each connection in turn.
    ///
    /// # Errors
    /// When the guest broke the queue.
    pub(super) fn send(&mut self, receive: &mut Receive<'_, '_>, now: Instant) -> Result<(), Fault> {
        let sent = self.send_in_turn(receive, now);
        add(&self.counts.packets_to_guest, receive.filled().into());
        sent
    }

    fn send_in_turn(&mut self, receive: &mut Receive<'_, '_>, now: Instant) -> Result<(), Fault> {
        while let Some(header) = self.resets.front() {
            let Some(room) = receive.room()? else { return Ok(()) };
            receive.fill(&room, header);
            self.resets.pop_front();
        }
        while let Some(id) = self.line.pop_front() {
            let Some(entry) = self.entries.get_mut(&id) else { continue };
            entry.in_line = false;
            let (before, mut read) = (receive.filled(), 0);
            let turn = entry.connection.turn(receive, now, &mut read)?;
            add(&self.counts.bytes_to_guest, read);
            // Who found no buffer at all has not had a turn.
            let had_none = turn == Turn::NoRoom && receive.filled() == before;
            self.settle(id, had_none);
            if turn == Turn::NoRoom {
                break;
            }
        }
        Ok(())
    }

    // ---- time ------------------------------------------------------------------------------------------------------

    /// Ends what took too long.
    pub(super) fn expire(&mut self, now: Instant) {
        while let Some(&(at, id)) = self.alarms.first() {
            if at > now {
                break;
            }
            self.alarms.pop_first();
            let Some(entry) = self.entries.get_mut(&id) else { continue };
            entry.alarm = None;
            if matches!(entry.connection.stage, Stage::Greeting | Stage::Requested) {
                add(&self.counts.refused, 1);
            }
            entry.connection.expire();
            self.settle(id, false);
        }
    }

    /// The machine pauses: until [`Muxer::wake`] no time passes.
    pub(super) fn rest(&mut self, now: Instant) {
        self.resting.get_or_insert(now);
    }

    /// It goes on.
    pub(super) fn wake(&mut self, now: Instant) {
        let Some(since) = self.resting.take() else { return };
        let pause = now.saturating_duration_since(since);
        self.shift(pause);
    }

    fn shift(&mut self, by: Duration) {
        self.alarms.clear();
        for (&id, entry) in &mut self.entries {
            let later = entry.connection.deadline.and_then(|deadline| deadline.checked_add(by));
            entry.connection.deadline = later;
            entry.alarm = later;
            self.alarms.extend(later.map(|at| (at, id)));
        }
    }

    // ---- bookkeeping -----------------------------------------------------------------------------------------------

    /// What a new connection may keep: less the more there are.
    fn allowance(&self) -> u64 {
        let share = ALLOWED_TOGETHER.saturating_sub(self.allowed) / 16;
        share.clamp(LEAST_ALLOWED, MOST_ALLOWED)
    }

    fn add(&mut self, connection: Connection<H::Stream>, allowed: u64) -> Option<u64> {
        let id = self.next_id;
        let stream = connection.stream()?;
        if self.entries.len() >= self.limit || self.host.watch(stream, id).is_err() {
            return None;
        }
        self.next_id = id.wrapping_add(1);
        self.allowed = self.allowed.saturating_add(allowed);
        let alarm = connection.deadline;
        self.alarms.extend(alarm.map(|at| (at, id)));
        let entry = Entry { connection, allowed, in_line: false, room_watched: false, alarm, counted: false };
        self.entries.insert(id, entry);
        Some(id)
    }

    /// Brings what is noted of a connection up to its state. With `first`, it is the next in line.
    fn settle(&mut self, id: u64, first: bool) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let connection = &entry.connection;
        if connection.opened && !entry.counted {
            entry.counted = true;
            add(&self.counts.total, 1);
            add(&self.counts.open, 1);
        }
        if connection.deadline != entry.alarm {
            if let Some(at) = entry.alarm {
                self.alarms.remove(&(at, id));
            }
            entry.alarm = connection.deadline;
            self.alarms.extend(entry.alarm.map(|at| (at, id)));
        }
        let watched = connection.wants_room();
        if entry.room_watched != watched
            && let Some(stream) = connection.stream()
        {
            self.host.watch_room(stream, id, watched);
            entry.room_watched = watched;
        }
        if !entry.in_line && connection.wants_turn() {
            entry.in_line = true;
            if first { self.line.push_front(id) } else { self.line.push_back(id) }
        }
        if matches!(connection.stage, Stage::Draining | Stage::Gone)
            && let Some(key) = connection.key()
            && self.by_ports.get(&key) == Some(&id)
        {
            self.by_ports.remove(&key);
        }
        if connection.stage == Stage::Gone {
            self.remove(id);
        }
    }

    fn remove(&mut self, id: u64) {
        let Some(entry) = self.entries.remove(&id) else { return };
        self.allowed = self.allowed.saturating_sub(entry.allowed);
        if let Some(at) = entry.alarm {
            self.alarms.remove(&(at, id));
        }
        if entry.in_line {
            // Else a guest without receive buffers makes the line longer with each connection that comes and goes.
            self.line.retain(|&other| other != id);
        }
        if entry.counted {
            self.counts.open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl<H: Host> Drop for Muxer<H> {
    /// The driver was reset, or the machine ends: every connection does.
    fn drop(&mut self) {
        let open = self.entries.values().filter(|entry| entry.counted).count();
        self.counts.open.fetch_sub(open as u64, Ordering::Relaxed);
    }
}

/// How much there is of everything, for tests of its bounds.
#[cfg(test)]
#[derive(Debug, Clone, Copy)]
pub(super) struct Size {
    pub(super) entries: usize,
    pub(super) ports: usize,
    pub(super) in_line: usize,
    pub(super) alarms: usize,
    pub(super) resets: usize,
    pub(super) allowed: u64,
    /// Bytes of the guest that wait for programs.
    pub(super) kept: u64,
}

#[cfg(test)]
impl<H: Host> Muxer<H> {
    pub(super) fn size(&self) -> Size {
        Size {
            entries: self.entries.len(),
            ports: self.by_ports.len(),
            in_line: self.line.len(),
            alarms: self.alarms.len(),
            resets: self.resets.len(),
            allowed: self.allowed,
            kept: self.entries.values().map(|entry| entry.connection.kept()).sum(),
        }
    }
}
