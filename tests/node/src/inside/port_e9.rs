//! The way out: what is written to I/O port 0xE9, Bochs prints.

use std::arch::asm;
use std::io;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use crate::wire::{self, Kind};

const PORT: u16 = 0xe9;

/// The right to write to the port.
#[derive(Debug)]
pub(super) struct PortE9(());

impl PortE9 {
    pub(super) fn open() -> io::Result<Self> {
        permit(true).map(|()| Self(()))
    }

    /// Sends bytes, in as many records as they need; none need one.
    pub(super) fn send(&mut self, kind: Kind, payload: &[u8]) {
        if payload.is_empty() {
            self.write(&wire::encode(kind, payload));
        }
        for piece in payload.chunks(wire::MAX_PAYLOAD) {
            self.write(&wire::encode(kind, piece));
        }
    }

    /// Says how far we are, and when that was.
    pub(super) fn stage(&mut self, text: &str) {
        let uptime = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from);
        let nanoseconds = u64::try_from(uptime.as_nanos()).unwrap_or(u64::MAX);
        let mut payload = nanoseconds.to_le_bytes().to_vec();
        payload.extend_from_slice(text.as_bytes());
        self.send(Kind::Stage, &payload);
    }

    fn write(&mut self, bytes: &[u8]) {
        // SAFETY: `rep outsb` reads `rcx` bytes at `rsi`, which is the slice; a `PortE9` exists only with the right to
        // write to this port; the direction flag is clear at the start of any asm block.
        unsafe {
            asm!(
                "rep outsb",
                in("dx") PORT,
                inout("rsi") bytes.as_ptr() => _,
                inout("rcx") bytes.len() => _,
                options(nostack, readonly, preserves_flags)
            );
        }
    }
}

/// Takes the right away from the calling process, which is about to become another program.
pub(super) fn forbid() -> io::Result<()> {
    permit(false)
}

fn permit(on: bool) -> io::Result<()> {
    // SAFETY: takes numbers only; what the right allows is written down above.
    match unsafe { libc::ioperm(PORT.into(), 1, on.into()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
