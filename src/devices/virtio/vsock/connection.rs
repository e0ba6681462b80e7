//! One connection: what its two ends have said, and what each is owed.
//!
//! ```text
//!  host program ── CONNECT 80 ──> Greeting ──> Requested ── RESPONSE ──┐
//!  guest ── REQUEST ───────────────────────────────────────────────> Open ── SHUTDOWN of both ──> Ending ── RST ──> Draining
//! ```
//!
//! In `Ending` the guest is owed a reset, and then has forgotten the connection; in `Draining` the host's program is owed
//! what the guest had sent before.

mod ending;
mod sending;

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::time::{Duration, Instant};

use super::chain::Buffers;
use super::credit::{Credit, Lie};
use super::header::{Header, Op, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use crate::backend::vsock::{Ready, Stream};

pub(super) use self::sending::Turn;

/// The longest greeting is `CONNECT 4294967295\n`; a blank more is forgiven.
const GREETING_BYTES: usize = 32;

/// How long a program of the host may take to say to which port it wants.
pub(super) const GREETING_TIME: Duration = Duration::from_secs(5);
/// How long the guest may take to accept or refuse.
pub(super) const REQUEST_TIME: Duration = Duration::from_secs(10);
/// How long the guest may take to confirm the end of a connection (Linux' own VSOCK_CLOSE_TIMEOUT).
pub(super) const CLOSE_TIME: Duration = Duration::from_secs(8);
/// How long the host's program may take nothing of what the guest sent before it was done.
pub(super) const DRAIN_TIME: Duration = Duration::from_secs(30);

/// The two ports of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) host_port: u32,
    pub(super) guest_port: u32,
}

/// How far a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// A program of the host has connected, and not said to which port.
    Greeting,
    /// The guest is asked.
    Requested,
    /// Bytes flow.
    Open,
    /// The guest is owed a reset.
    Ending,
    /// The guest has done with it; the host's program has bytes to take.
    Draining,
    /// Nobody is owed anything.
    Gone,
}

/// What came of a host program's greeting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Greeting {
    /// There is more to come.
    Incomplete,
    /// It wants this port of the guest.
    Port(u32),
    /// It is none.
    Bad,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Connection<S> {
    pub(super) stage: Stage,
    /// It has been open.
    pub(super) opened: bool,
    pub(super) deadline: Option<Instant>,
    key: Option<Key>,
    /// Gone as soon as there is nothing more to read or to write.
    stream: Option<S>,
    greeting: Vec<u8>,
    /// The first packet to the guest is due: a request, or the response to one.
    opening: bool,
    credit: Credit,
    /// What the guest sent and the host's program has not taken: at most our `buf_alloc`, and no memory while it is empty.
    outbox: VecDeque<u8>,
    /// The host's end may have something to read.
    readable: bool,
    /// What the guest will not do any more (SHUTDOWN flags).
    guest_shut: u32,
    /// What the host's program will not do any more.
    host_shut: u32,
    /// What the guest heard of that.
    told_shut: u32,
    /// The guest wants to hear our counters.
    update_due: bool,
    /// The guest was asked for its counters since it last had room.
    credit_asked: bool,
}

impl<S: Stream> Connection<S> {
    fn new(stage: Stage, stream: S, alloc: u32) -> Self {
        Self {
            stage,
            opened: false,
            deadline: None,
            key: None,
            stream: Some(stream),
            greeting: Vec::new(),
            opening: false,
            credit: Credit::new(alloc),
            outbox: VecDeque::new(),
            readable: false,
            guest_shut: 0,
            host_shut: 0,
            told_shut: 0,
            update_due: false,
            credit_asked: false,
        }
    }

    /// A program of the host has connected.
    pub(super) fn greeted(stream: S, alloc: u32, now: Instant) -> Self {
        let deadline = now.checked_add(GREETING_TIME);
        Self { deadline, ..Self::new(Stage::Greeting, stream, alloc) }
    }

    /// The guest asked for this connection by `request`, and the host's program is there.
    pub(super) fn accepted(stream: S, alloc: u32, key: Key, request: &Header) -> Self {
        let mut connection = Self { key: Some(key), opening: true, ..Self::new(Stage::Open, stream, alloc) };
        connection.opened = true;
        // Nothing was sent, so a count other than 0 cannot be; what it is worth shows with the next packet.
        let _ = connection.credit.hear(request.buf_alloc, 0);
        connection
    }

    /// The guest is to be asked.
    pub(super) fn request(&mut self, key: Key, now: Instant) {
        self.key = Some(key);
        self.stage = Stage::Requested;
        self.opening = true;
        self.greeting = Vec::new();
        // What the program sent right behind its greeting was told of before.
        self.readable = true;
        self.deadline = now.checked_add(REQUEST_TIME);
    }

    /// The ports, once they are known.
    pub(super) fn key(&self) -> Option<Key> {
        self.key
    }

    /// The host's end, as long as there is one.
    pub(super) fn stream(&self) -> Option<&S> {
        self.stream.as_ref()
    }

    /// The host's program is to take more when it can.
    pub(super) fn wants_room(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// Bytes that wait for the host's program.
    #[cfg(test)]
    pub(super) fn kept(&self) -> u64 {
        self.outbox.len() as u64
    }

    /// Reads on in a greeting.
    pub(super) fn read_greeting(&mut self) -> Greeting {
        let Some(stream) = &mut self.stream else { return Greeting::Bad };
        match stream.read_line(&mut self.greeting, GREETING_BYTES) {
            Ok(true) => greeting_port(&self.greeting).map_or(Greeting::Bad, Greeting::Port),
            Ok(false) => Greeting::Incomplete,
            Err(_) => Greeting::Bad,
        }
    }

    /// The host's end changed; returns bytes its program took.
    pub(super) fn on_host(&mut self, ready: Ready, now: Instant) -> u64 {
        self.readable |= ready.readable;
        let mut taken = 0;
        if ready.writable {
            taken = self.flush(now);
        }
        if ready.hung_up {
            self.host_takes_nothing();
        }
        taken
    }

    /// A packet from the guest; returns bytes the host's program took.
    ///
    /// # Errors
    /// When the guest may not send this now. [`Connection::break_off`] is what follows.
    pub(super) fn on_guest(&mut self, header: &Header, data: Buffers<'_>, now: Instant) -> Result<u64, Lie> {
        match (self.stage, header.op) {
            (Stage::Requested | Stage::Open | Stage::Ending, Op::Reset) => {
                self.guest_is_done(now);
                return Ok(0);
            }
            (Stage::Requested, Op::Response) if !self.opening => self.open(header)?,
            // A response of ours that the guest has not seen yet promises it no room.
            (Stage::Open, Op::Data) if self.opening => return Err(Lie),
            (Stage::Open, Op::Data | Op::Shutdown | Op::CreditUpdate | Op::CreditRequest) => {
                self.credit.hear(header.buf_alloc, header.fwd_cnt)?;
            }
            // Its reset is on the way.
            (Stage::Ending, _) => return Ok(0),
            _ => return Err(Lie),
        }
        if self.credit.room() > 0 {
            self.credit_asked = false;
        }
        match header.op {
            Op::Data => return self.take(data, header.len),
            Op::Shutdown => self.guest_shuts(header.flags & SHUTDOWN_BOTH, now),
            Op::CreditRequest => self.update_due = true,
            _ => {}
        }
        Ok(0)
    }

    /// The guest accepted: the program hears it, and the number of its own end.
    fn open(&mut self, response: &Header) -> Result<(), Lie> {
        self.credit.hear(response.buf_alloc, response.fwd_cnt)?;
        self.stage = Stage::Open;
        self.opened = true;
        self.deadline = None;
        let line = format!("OK {}\n", self.key.map_or(0, |key| key.host_port));
        let written = self.stream.as_mut().map(|stream| stream.write_bytes(line.as_bytes()));
        // The first bytes into an empty socket: all or none.
        if !matches!(written, Some(Ok(count)) if count == line.len()) {
            self.host_takes_nothing();
        }
        Ok(())
    }

    fn take(&mut self, data: Buffers<'_>, len: u32) -> Result<u64, Lie> {
        let (data, _) = data.split(len as usize);
        if data.len() < len as usize || self.guest_shut & SHUTDOWN_SEND != 0 {
            return Err(Lie);
        }
        self.credit.receive(len)?;
        if self.host_shut & SHUTDOWN_RECEIVE != 0 {
            self.credit.forward(len);
            return Ok(0);
        }
        let mut taken = 0;
        if self.outbox.is_empty() && len > 0 {
            let slices: Vec<_> = data.slices().copied().collect();
            match self.stream.as_mut().map(|stream| stream.write(&slices)) {
                Some(Ok(count)) => taken = count,
                Some(Err(error)) if error.kind() == ErrorKind::WouldBlock => {}
                _ => {
                    self.credit.forward(len);
                    self.host_takes_nothing();
                    return Ok(0);
                }
            }
        }
        self.credit.forward(taken as u32);
        let (_, rest) = data.split(taken);
        rest.read(|bytes| self.outbox.extend(bytes));
        Ok(taken as u64)
    }

    /// Lets the host's program have what is waiting for it; returns how much it took.
    fn flush(&mut self, now: Instant) -> u64 {
        let mut taken = 0_u64;
        while !self.outbox.is_empty() {
            let (front, _) = self.outbox.as_slices();
            match self.stream.as_mut().map(|stream| stream.write_bytes(front)) {
                Some(Ok(count)) => {
                    self.outbox.drain(..count.min(front_len(&self.outbox)));
                    self.credit.forward(count as u32);
                    taken = taken.saturating_add(count as u64);
                }
                Some(Err(error)) if error.kind() == ErrorKind::WouldBlock => break,
                _ => {
                    self.host_takes_nothing();
                    return taken;
                }
            }
        }
        if taken > 0 && self.stage == Stage::Draining {
            self.deadline = now.checked_add(DRAIN_TIME);
        }
        if self.outbox.is_empty() {
            self.outbox = VecDeque::new();
            self.all_taken();
        }
        taken
    }
}

fn front_len(outbox: &VecDeque<u8>) -> usize {
    outbox.as_slices().0.len()
}

/// The port of `CONNECT port`.
fn greeting_port(line: &[u8]) -> Option<u32> {
    let line = std::str::from_utf8(line.strip_suffix(b"\n")?).ok()?;
    let (word, port) = line.trim_end().split_once(' ')?;
    let is_number = port.bytes().all(|byte| byte.is_ascii_digit());
    if word.eq_ignore_ascii_case("CONNECT") && is_number { port.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_greeting_is_one_word_and_one_port() {
        assert_eq!(greeting_port(b"CONNECT 52\n"), Some(52));
        assert_eq!(greeting_port(b"connect 4294967295\r\n"), Some(u32::MAX));
        for bad in [
            &b""[..],
            b"\n",
            b"CONNECT\n",
            b"CONNECT \n",
            b"CONNECT 4294967296\n",
            b"CONNECT -1\n",
            b"CONNECT +1\n",
            b"CONNECT 5",
            b"CONNECT 5 6\n",
            b"GET / HTTP/1.1\r\n",
            b"CONNECT \xff\n",
        ] {
            assert_eq!(greeting_port(bad), None, "{bad:?}");
        }
    }
}
