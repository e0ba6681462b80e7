//! vsock beside a plain Unix socket: a program of the host at one end, the guest's driver at the other.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{JoinHandle, spawn};

use nestling::backend::vsock::{HOST_CID, Inside, VsockListener};
use nestling::devices::virtio::testing::{readable, writable};
use nestling::devices::virtio::vsock::Vsock;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, VolatileSlice};

use super::guest::{DATA, Guest, RING, ram};
use super::{Signals, Spent, Watch, Way};
use crate::Result;

/// Bytes of a round.
const BYTES: u64 = 256 << 20;
/// Bytes of one call of the host's program, and the most Linux puts into one packet.
const CHUNK: usize = 64 << 10;
/// `struct virtio_vsock_hdr` (virtio 1.2 §5.10.6).
const HEADER_BYTES: usize = 44;
/// Linux offers buffers of this size for the packets it receives.
const RX_BYTES: u32 = 4096;
/// Linux' own default of a socket's buffer.
const BUFFER: u32 = 256 << 10;
const GUEST_CID: u32 = 3;
const GUEST_PORT: u32 = 52;

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;

/// Where the driver's packets are, each with room for the largest.
const TX: u64 = DATA + RING as u64 * RX_BYTES as u64;
const TX_BYTES: u64 = (HEADER_BYTES + CHUNK) as u64;
/// Bytes of the driver's buffers for data of each direction.
const RECEIVED: usize = RING as usize * RX_BYTES as usize;
const SENT: usize = RING as usize * CHUNK;

const REQUEST: u16 = 1;
const RESPONSE: u16 = 2;
const DATA_PACKET: u16 = 5;
const CREDIT_UPDATE: u16 = 6;

/// One direction.
struct Stream {
    to_guest: bool,
    memory: &'static GuestMemoryMmap,
}

pub(super) fn ways() -> Result<Vec<Box<dyn Way>>> {
    let memory = ram()?;
    Ok(vec![Box::new(Stream { to_guest: true, memory }), Box::new(Stream { to_guest: false, memory })])
}

impl Way for Stream {
    fn name(&self) -> String {
        let direction = if self.to_guest { "host to guest" } else { "guest to host" };
        format!("vsock, {direction}, beside a Unix socket")
    }

    fn amount(&self) -> (&'static str, f64) {
        ("MB/s", BYTES as f64 / 1e6)
    }

    fn operations(&self) -> f64 {
        let packet = if self.to_guest { RX_BYTES as usize - HEADER_BYTES } else { CHUNK };
        BYTES as f64 / packet as f64
    }

    fn plain(&mut self) -> Result<Spent> {
        let (near, far) = UnixStream::pair()?;
        // As much memory as the driver has, so that caches help neither more than the other.
        let (from, to) = if self.to_guest { (CHUNK, RECEIVED) } else { (SENT, CHUNK) };
        let (from, to) = (vec![7; from], vec![7; to]);
        let watch = Watch::start()?;
        let (writer, reader) = (write_all(near, from), read_all(far, to));
        join(writer)?;
        join(reader)?;
        watch.stop()
    }

    fn device(&mut self) -> Result<(Spent, Signals)> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("vsock");
        let device = Arc::new(Vsock::new(GUEST_CID, 8, Some(VsockListener::bind(&path)?), Inside::new()?));
        let mut driver = VsockDriver::new(Guest::start(device, 1, self.memory)?, self.memory, path)?;
        let program = driver.connect()?;
        let chunk = vec![7; CHUNK];
        let before = driver.guest.signals();
        let watch = Watch::start()?;
        let thread = if self.to_guest { write_all(program, chunk) } else { read_all(program, chunk) };
        if self.to_guest {
            driver.receive_all()?;
        } else {
            driver.send_all()?;
        }
        join(thread)?;
        let spent = watch.stop()?;
        let after = driver.guest.signals();
        driver.guest.stop();
        let signals = Signals {
            doorbells: after.doorbells - before.doorbells,
            interrupts: after.interrupts - before.interrupts,
        };
        Ok((spent, signals))
    }
}

/// Writes the round's bytes out of `memory`, chunk by chunk.
fn write_all(mut to: UnixStream, memory: Vec<u8>) -> JoinHandle<std::io::Result<()>> {
    spawn(move || {
        let chunks = memory.chunks_exact(CHUNK).cycle();
        chunks.take(BYTES as usize / CHUNK).try_for_each(|chunk| to.write_all(chunk))
    })
}

/// Reads them into `memory`, no more than a chunk at once.
fn read_all(mut from: UnixStream, mut memory: Vec<u8>) -> JoinHandle<std::io::Result<()>> {
    spawn(move || {
        let (mut at, mut left) = (0, BYTES as usize);
        while left > 0 {
            match from.read(&mut memory[at..at + CHUNK])? {
                0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                count => left = left.saturating_sub(count),
            }
            at = (at + CHUNK) % memory.len();
        }
        Ok(())
    })
}

fn join(thread: JoinHandle<std::io::Result<()>>) -> Result<()> {
    Ok(thread.join().map_err(|_| "a program of the host panicked")??)
}

/// The guest's driver, with one connection.
struct VsockDriver {
    guest: Guest,
    /// Buffers for packets from the device, and packets to it.
    received: VolatileSlice<'static>,
    sent: VolatileSlice<'static>,
    path: PathBuf,
    host_port: u32,
    /// The host's buffer and what its program has taken, as it last said.
    credit: (u32, u32),
    /// Bytes our own program has taken.
    forwarded: u32,
}

impl VsockDriver {
    fn new(mut guest: Guest, memory: &'static GuestMemoryMmap, path: PathBuf) -> Result<Self> {
        for head in 0..RING {
            let buffer = DATA + u64::from(head) * u64::from(RX_BYTES);
            guest.rings[RECEIVE].describe(head, &[writable(buffer, RX_BYTES)])?;
            guest.rings[RECEIVE].offer(head)?;
        }
        guest.rings[RECEIVE].publish()?;
        let part = |at, bytes: u64| memory.get_slice(GuestAddress(at), (u64::from(RING) * bytes) as usize);
        let (received, sent) = (part(DATA, RX_BYTES.into())?, part(TX, TX_BYTES)?);
        Ok(Self { guest, received, sent, path, host_port: 0, credit: (0, 0), forwarded: 0 })
    }

    /// A program of the host connects to ours.
    fn connect(&mut self) -> Result<UnixStream> {
        let mut program = UnixStream::connect(&self.path)?;
        program.write_all(format!("CONNECT {GUEST_PORT}\n").as_bytes())?;
        self.guest.rings[RECEIVE].wait(1)?;
        let (op, _) = self.next_packet()?.ok_or("no packet")?;
        if op != REQUEST {
            return Err(format!("the device began with packet type {op}").into());
        }
        self.send(RESPONSE, 0)?;
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            let mut byte = [0];
            program.read_exact(&mut byte)?;
            line.extend(byte);
        }
        Ok(program)
    }

    /// Type and bytes of the next packet; its buffer is offered again, which the device hears later.
    fn next_packet(&mut self) -> Result<Option<(u16, u32)>> {
        let Some((head, len)) = self.guest.rings[RECEIVE].take()? else { return Ok(None) };
        let header = self.received.offset(usize::from(head) * RX_BYTES as usize)?;
        let word = |at| header.load::<u32>(at, Ordering::Relaxed);
        self.host_port = word(16)?;
        self.credit = (word(36)?, word(40)?);
        let op = header.load(30, Ordering::Relaxed)?;
        self.guest.rings[RECEIVE].offer(head)?;
        Ok(Some((op, len - HEADER_BYTES as u32)))
    }

    /// Sends a packet with `len` bytes of whatever is there.
    fn send(&mut self, op: u16, len: u32) -> Result<()> {
        let ring = &mut self.guest.rings[TRANSMIT];
        while ring.take()?.is_some() {}
        if ring.pending() == RING {
            ring.wait(RING / 4)?;
            while ring.take()?.is_some() {}
        }
        let head = ring.next_head();
        let at = TX + u64::from(head) * TX_BYTES;
        let mut header = [0; HEADER_BYTES];
        header[..8].copy_from_slice(&u64::from(GUEST_CID).to_le_bytes());
        header[8..16].copy_from_slice(&HOST_CID.to_le_bytes());
        let mut place = |at: usize, word: u32| header[at..at + 4].copy_from_slice(&word.to_le_bytes());
        place(16, GUEST_PORT);
        place(20, self.host_port);
        place(24, len);
        place(28, 1 | u32::from(op) << 16);
        place(36, BUFFER);
        place(40, self.forwarded);
        self.sent.write_slice(&header, usize::from(head) * TX_BYTES as usize)?;
        ring.describe(head, &[readable(at, HEADER_BYTES as u32 + len)])?;
        ring.offer(head)?;
        ring.publish()
    }

    /// Takes the whole round's bytes, which stay in guest memory.
    fn receive_all(&mut self) -> Result<()> {
        let (mut taken, mut told) = (0, 0);
        while taken < BYTES {
            while let Some((op, len)) = self.next_packet()? {
                if op == DATA_PACKET {
                    taken += u64::from(len);
                }
            }
            self.guest.rings[RECEIVE].publish()?;
            self.forwarded = taken as u32;
            if taken - told >= u64::from(BUFFER) / 2 {
                told = taken;
                self.send(CREDIT_UPDATE, 0)?;
            }
            if taken < BYTES {
                self.guest.rings[RECEIVE].wait(1)?;
            }
        }
        Ok(())
    }

    /// Sends the whole round's bytes, as far as the host has room for them.
    fn send_all(&mut self) -> Result<()> {
        let mut sent = 0_u64;
        while sent < BYTES {
            let in_flight = (sent as u32).wrapping_sub(self.credit.1);
            if in_flight + CHUNK as u32 <= self.credit.0 {
                self.send(DATA_PACKET, CHUNK as u32)?;
                sent += CHUNK as u64;
                continue;
            }
            self.guest.rings[RECEIVE].wait(1)?;
            while self.next_packet()?.is_some() {}
            self.guest.rings[RECEIVE].publish()?;
        }
        Ok(())
    }
}
