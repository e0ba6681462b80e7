//! How a connection ends: by halves, in good order, or not.

use std::collections::VecDeque;
use std::time::Instant;

use super::{Connection, DRAIN_TIME, Stage};
use crate::backend::vsock::{Direction, Stream};
use crate::devices::virtio::vsock::header::{SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};

impl<S: Stream> Connection<S> {
    /// The host's program has everything that the guest sent.
    pub(super) fn all_taken(&mut self) {
        if self.guest_shut & SHUTDOWN_SEND != 0
            && let Some(stream) = &mut self.stream
        {
            stream.shut_down(Direction::ToHost);
        }
        match self.stage {
            Stage::Ending => self.stream = None,
            Stage::Draining => self.vanish(),
            _ => {}
        }
    }

    /// The host's program does not take anything any more, so what waits for it is thrown away in its place.
    pub(super) fn host_takes_nothing(&mut self) {
        self.host_shut |= SHUTDOWN_RECEIVE;
        self.credit.forward(self.outbox.len() as u32);
        self.outbox = VecDeque::new();
        if matches!(self.stage, Stage::Ending | Stage::Draining) {
            self.all_taken();
        }
        self.drop_idle_stream();
    }

    /// Nothing more will be read.
    pub(super) fn host_sends_nothing(&mut self) {
        self.host_shut |= SHUTDOWN_SEND;
        self.readable = false;
        self.drop_idle_stream();
    }

    pub(super) fn drop_idle_stream(&mut self) {
        if self.host_shut == SHUTDOWN_BOTH {
            self.stream = None;
        }
    }

    pub(super) fn guest_shuts(&mut self, flags: u32, now: Instant) {
        let news = flags & !self.guest_shut;
        self.guest_shut |= flags;
        if news & SHUTDOWN_RECEIVE != 0
            && let Some(stream) = &mut self.stream
        {
            stream.shut_down(Direction::ToGuest);
            // What it still sends is not read, so its end would not be seen.
            self.host_sends_nothing();
        }
        if self.guest_shut == SHUTDOWN_BOTH {
            self.stage = Stage::Ending;
            self.deadline = now.checked_add(DRAIN_TIME);
        }
        let sends_no_more = news & SHUTDOWN_SEND != 0 || self.guest_shut == SHUTDOWN_BOTH;
        if sends_no_more && self.outbox.is_empty() {
            self.all_taken();
        }
    }

    /// The guest broke the rules: it gets a reset, the program an end, and what was on its way is lost.
    pub(in super::super) fn break_off(&mut self) {
        self.stage = Stage::Ending;
        self.deadline = None;
        self.outbox = VecDeque::new();
        self.stream = None;
    }

    /// The guest has forgotten the connection; the host's program may still take what it sent.
    pub(super) fn guest_is_done(&mut self, now: Instant) {
        self.guest_shut = SHUTDOWN_BOTH;
        if self.outbox.is_empty() {
            self.vanish();
        } else {
            self.stage = Stage::Draining;
            self.deadline = now.checked_add(DRAIN_TIME);
        }
    }

    /// Ends at once, without a word to anybody.
    pub(in super::super) fn vanish(&mut self) {
        self.stage = Stage::Gone;
        self.deadline = None;
        self.stream = None;
        self.outbox = VecDeque::new();
    }

    /// The deadline has passed.
    pub(in super::super) fn expire(&mut self) {
        self.deadline = None;
        match self.stage {
            Stage::Greeting | Stage::Draining => self.vanish(),
            // The guest never had room for the request: it knows of nothing that could be reset.
            Stage::Requested if self.opening => self.vanish(),
            Stage::Requested | Stage::Open => self.break_off(),
            // The reset is what the guest has no room for: who waits is the host's program.
            Stage::Ending => {
                self.stream = None;
                self.outbox = VecDeque::new();
            }
            Stage::Gone => {}
        }
    }
}
