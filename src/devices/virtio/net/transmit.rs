//! The transmit queue (virtio 1.2 §5.1.6.2): frames are written straight from the guest's buffers, after a copy of their
//! header that has been checked.

use std::io;
use std::os::fd::OwnedFd;

use vm_memory::GuestMemoryMmap;

use super::Shared;
use super::header::{MAX_FRAME, check};
use super::scatter::{MAX_PIECES, Scatter};
use crate::backend::tap::HEADER_BYTES;
use crate::devices::rate_limit::{Admission, RateLimit};
use crate::devices::virtio::Fault;
use crate::devices::virtio::queue::{Chain, DeviceQueue, Fate};

/// Transmits for one lane.
#[derive(Debug)]
pub(super) struct Transmitter {
    scatter: Scatter,
    features: u64,
}

/// Why the rest of the ring waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waits {
    /// It does not.
    No,
    /// For the rate limit's timer.
    Limit,
    /// The host takes no more now, and cannot say when it does.
    Host,
}

impl Transmitter {
    pub(super) fn new(memory: GuestMemoryMmap, features: u64) -> Self {
        Self { scatter: Scatter::new(memory), features }
    }

    /// Moves frames from the guest to the host until there are no more.
    pub(super) fn transmit(
        &mut self,
        queue: &mut DeviceQueue,
        host: &OwnedFd,
        shared: &Shared,
        limit: &mut Option<RateLimit>,
    ) -> Result<Waits, Fault> {
        let mut waits = Waits::No;
        queue.serve(|_, chain| {
            self.gather(chain)?;
            if limit.as_mut().is_some_and(|limit| limit.ready() == Admission::Wait) {
                shared.counters.tx_waits.add(1);
                waits = Waits::Limit;
                return Ok(Fate::Later);
            }
            let sent = self.send(host, shared);
            if !sent {
                waits = Waits::Host;
                return Ok(Fate::Later);
            }
            if let Some(limit) = limit {
                limit.spend(self.frame_bytes() as u64);
            }
            Ok(Fate::Used(0))
        })?;
        Ok(waits)
    }

    fn frame_bytes(&self) -> usize {
        self.scatter.bytes().saturating_sub(HEADER_BYTES)
    }

    fn gather(&mut self, chain: Chain<'_>) -> Result<(), Fault> {
        self.scatter.clear();
        let mut unfinished = false;
        for descriptor in chain {
            if descriptor.is_write_only() {
                return Err(Fault::Chain("a frame to send is in a writable buffer"));
            }
            self.scatter.push(&descriptor)?;
            if self.scatter.pieces() > MAX_PIECES {
                return Err(Fault::Chain("a frame is in too many pieces"));
            }
            unfinished = descriptor.has_next();
        }
        if unfinished || self.scatter.bytes() < HEADER_BYTES {
            return Err(Fault::Chain("a frame has no header, or no end"));
        }
        Ok(())
    }

    /// Sends the gathered frame, or drops and counts it; `false` when the host has no room for it now.
    fn send(&mut self, host: &OwnedFd, shared: &Shared) -> bool {
        let counters = &shared.counters;
        let mut header = [0; HEADER_BYTES];
        self.scatter.read_at(0, &mut header);
        let bytes = self.frame_bytes();
        let Some(header) = check(header, bytes, self.features).filter(|_| bytes <= MAX_FRAME) else {
            counters.tx_malformed.add(1);
            return true;
        };
        if !shared.link_is_up() {
            counters.tx_dropped.add(1);
            return true;
        }
        loop {
            let Err(error) = self.scatter.write_frame(host, &header) else {
                counters.tx_packets.add(1);
                counters.tx_bytes.add(bytes as u64);
                return true;
            };
            match (error.kind(), error.raw_os_error()) {
                (io::ErrorKind::Interrupted, _) => {}
                (io::ErrorKind::WouldBlock, _) => return false,
                // What the kernel finds wrong with a frame that passed our own check.
                (io::ErrorKind::InvalidInput, _) => {
                    counters.tx_malformed.add(1);
                    return true;
                }
                (_, code) => {
                    counters.tx_dropped.add(1);
                    if code == Some(libc::EBADFD) {
                        let _ = shared.lost_host(&error);
                    }
                    return true;
                }
            }
        }
    }
}
