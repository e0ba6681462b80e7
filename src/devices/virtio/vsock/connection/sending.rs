//! What a connection sends to the guest when it is its turn.

use std::io::ErrorKind;
use std::time::Instant;

use super::{CLOSE_TIME, Connection, Key, Stage};
use crate::backend::vsock::Stream;
use crate::devices::virtio::Fault;
use crate::devices::virtio::vsock::chain::Room;
use crate::devices::virtio::vsock::header::{Header, Op, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use crate::devices::virtio::vsock::receive::Receive;

/// What one connection sends before it is the next one's turn.
const TURN_BYTES: usize = 64 << 10;
/// Linux' receive buffers of a turn, and some.
const MANY: usize = 20;

/// How a connection's turn ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Turn {
    /// It has sent what it may.
    Done,
    /// The guest has no buffer left.
    NoRoom,
}

impl<S: Stream> Connection<S> {
    pub(super) fn may_read(&self) -> bool {
        self.stream.is_some() && (self.host_shut & SHUTDOWN_SEND | self.guest_shut & SHUTDOWN_RECEIVE) == 0
    }

    /// It has something for the guest.
    pub(in super::super) fn wants_turn(&self) -> bool {
        let data = self.readable && self.may_read() && (self.credit.room() > 0 || !self.credit_asked);
        match self.stage {
            Stage::Requested => self.opening,
            Stage::Open => {
                let news = self.update_due || self.credit.is_news();
                self.opening || data || news || self.host_shut != self.told_shut
            }
            Stage::Ending => true,
            Stage::Greeting | Stage::Draining | Stage::Gone => false,
        }
    }

    /// Sends to the guest what is due, and at most [`TURN_BYTES`] of data. `read` counts the bytes.
    ///
    /// # Errors
    /// When the guest broke the queue.
    pub(in super::super) fn turn(
        &mut self,
        receive: &mut Receive<'_, '_>,
        now: Instant,
        read: &mut u64,
    ) -> Result<Turn, Fault> {
        let first = match self.stage {
            Stage::Ending => Some(Op::Reset),
            Stage::Requested if self.opening => Some(Op::Request),
            Stage::Open if self.opening => Some(Op::Response),
            _ => None,
        };
        if let Some(op) = first {
            if !self.send(receive, op, 0)? {
                return Ok(Turn::NoRoom);
            }
            self.opening = false;
            if op == Op::Reset {
                self.guest_is_done(now);
            }
        }
        if self.stage != Stage::Open {
            return Ok(Turn::Done);
        }
        if self.readable && self.may_read() && self.credit.room() > 0 {
            match self.send_data(receive)? {
                Some(count) => *read = read.saturating_add(count),
                None => return Ok(Turn::NoRoom),
            }
        }
        if self.readable && self.may_read() && self.credit.room() == 0 && !self.credit_asked {
            if !self.send(receive, Op::CreditRequest, 0)? {
                return Ok(Turn::NoRoom);
            }
            self.credit_asked = true;
        }
        // While there is more to read, the end of both directions may be near: one packet can tell of both.
        let reads_on = self.readable && self.may_read() && self.credit.room() > 0;
        if self.host_shut != self.told_shut && !reads_on {
            if !self.send(receive, Op::Shutdown, self.host_shut)? {
                return Ok(Turn::NoRoom);
            }
            self.told_shut = self.host_shut;
            if self.told_shut == SHUTDOWN_BOTH {
                self.deadline = now.checked_add(CLOSE_TIME);
            }
        }
        if (self.update_due || self.credit.is_news()) && !self.send(receive, Op::CreditUpdate, 0)? {
            return Ok(Turn::NoRoom);
        }
        Ok(Turn::Done)
    }

    pub(super) fn header(&mut self, guest_cid: u64, op: Op) -> Header {
        let Key { host_port, guest_port } = self.key.unwrap_or(Key { host_port: 0, guest_port: 0 });
        let (buf_alloc, fwd_cnt) = self.credit.tell();
        self.update_due = false;
        Header { buf_alloc, fwd_cnt, ..Header::to_guest(guest_cid, host_port, guest_port, op) }
    }

    /// Sends a packet without data; `false` when there is no room for it.
    pub(super) fn send(&mut self, receive: &mut Receive<'_, '_>, op: Op, flags: u32) -> Result<bool, Fault> {
        let Some(room) = receive.room()? else { return Ok(false) };
        let header = Header { flags, ..self.header(receive.guest_cid, op) };
        receive.fill(&room, &header);
        Ok(true)
    }

    /// Reads from the host straight into the guest's buffers, as many as there are at once; `None` when there is none.
    pub(super) fn send_data(&mut self, receive: &mut Receive<'_, '_>) -> Result<Option<u64>, Fault> {
        let most = TURN_BYTES.min(self.credit.room() as usize);
        let (mut rooms, mut slices) = (Vec::with_capacity(MANY), Vec::with_capacity(MANY));
        let mut space = 0_usize;
        while space < most {
            let Some(mut room): Option<Room<'_>> = receive.room()? else { break };
            let (data, _) = std::mem::take(&mut room.data).split(most.saturating_sub(space));
            space = space.saturating_add(data.len());
            slices.extend(data.slices());
            room.data = data;
            rooms.push(room);
        }
        if rooms.is_empty() {
            return Ok(None);
        }
        let result = match &mut self.stream {
            Some(stream) => stream.read(&slices),
            None => Err(ErrorKind::NotConnected.into()),
        };
        let mut rest = match result {
            Ok(count @ 1..) => count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.readable = false;
                0
            }
            Ok(_) => {
                self.host_sends_nothing();
                0
            }
            // The other end is gone, without having taken everything.
            Err(_) => {
                self.host_takes_nothing();
                self.host_sends_nothing();
                0
            }
        };
        let count = rest as u64;
        let mut unused = 0_u16;
        for room in &rooms {
            let len = room.data.len().min(rest);
            if len == 0 {
                unused = unused.saturating_add(1);
                continue;
            }
            rest = rest.saturating_sub(len);
            self.credit.send(len as u32);
            let header = Header { len: len as u32, ..self.header(receive.guest_cid, Op::Data) };
            receive.fill(room, &header);
        }
        receive.show()?;
        receive.put_back(unused);
        Ok(Some(count))
    }
}
