//! One stream in one direction: the seeded bytes are sent, or received and compared.

use std::io::{ErrorKind, Read, Write};
use std::time::Instant;

use crate::error::{Doing, Error, Result};
use crate::pattern::{self, Digest};
use crate::sockets::{Address, Listener, Socket};

/// What flows.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Flow {
    /// How many bytes
    #[arg(long)]
    pub(crate) bytes: u64,
    /// What they are made of
    #[arg(long)]
    pub(crate) seed: u64,
}

const CHUNK: usize = 64 << 10;

/// Says what went through, and how fast.
fn report(verb: &str, bytes: u64, digest: Digest, start: Instant) {
    let seconds = start.elapsed().as_secs_f64();
    let rate = if seconds > 0.0 { bytes as f64 / 1e6 / seconds } else { 0.0 };
    println!(
        "{verb} bytes={bytes} digest={:016x} seconds={seconds:.3} megabytes_per_second={rate:.1}",
        digest.value()
    );
}

/// `tcp-send`: sends it all, then waits until the other end has seen the end.
pub(crate) fn send(to: &Address, flow: Flow) -> Result<()> {
    let mut socket = Socket::connect(to)?;
    let start = Instant::now();
    let mut buffer = vec![0; CHUNK];
    let (mut sent, mut digest) = (0, Digest::new());
    while sent < flow.bytes {
        let chunk = &mut buffer[..usize::try_from(flow.bytes - sent).unwrap_or(CHUNK).min(CHUNK)];
        pattern::fill(flow.seed, sent, chunk);
        socket.write_all(chunk).doing(format!("send to {to} after {sent} bytes"))?;
        digest.add(chunk);
        sent += chunk.len() as u64;
    }
    socket.finish_sending()?;
    // The other end closes when it has everything: an end is what is awaited, and no bytes.
    let extra = socket.read(&mut buffer).doing(format!("await the end from {to}"))?;
    if extra != 0 {
        return Err(Error::Mismatch(format!("{to} sent {extra} bytes where only an end was due")));
    }
    report("sent", sent, digest, start);
    Ok(())
}

/// `tcp-recv`: takes one connection, and all it sends must be just what was announced.
pub(crate) fn receive(at: &Address, flow: Flow) -> Result<()> {
    let mut socket = Listener::bind(at)?.accept()?;
    let start = Instant::now();
    let (received, digest) = take(&mut socket, flow)?;
    report("received", received, digest, start);
    Ok(())
}

fn take(from: &mut impl Read, flow: Flow) -> Result<(u64, Digest)> {
    let (mut buffer, mut scratch) = (vec![0; CHUNK], Vec::new());
    let (mut received, mut digest) = (0, Digest::new());
    loop {
        let count = match from.read(&mut buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            other => other.doing(format!("receive after {received} bytes"))?,
        };
        if count == 0 {
            break;
        }
        let bytes = &buffer[..count];
        if let Some(at) = pattern::difference(flow.seed, received, bytes, &mut scratch) {
            return Err(Error::Mismatch(format!("byte {at} of the stream is not the one that was sent")));
        }
        digest.add(bytes);
        received += count as u64;
    }
    if received == flow.bytes {
        Ok((received, digest))
    } else {
        Err(Error::Mismatch(format!("the stream ended after {received} bytes, not {}", flow.bytes)))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_stream_is_taken() {
        let flow = Flow { bytes: 100_001, seed: 4 };
        let mut bytes = vec![0; 100_001];
        pattern::fill(4, 0, &mut bytes);
        assert_eq!(take(&mut &bytes[..], flow).unwrap().0, 100_001);
        let text = |bytes: &[u8]| take(&mut &bytes[..], flow).unwrap_err().to_string();
        assert!(text(&bytes[..100_000]).contains("ended after 100000 bytes"));
        bytes[70_000] ^= 1;
        assert!(text(&bytes).contains("byte 70000 "));
    }
}
