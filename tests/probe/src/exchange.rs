//! The client of an echo: sends the seeded bytes on many connections at once, and compares what comes back.
//!
//! Both directions of all connections are served as they get ready, so that no buffer in between can stop them.

use std::io::{ErrorKind, Read, Write};
use std::time::Instant;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::error::{Doing, Error, Result};
use crate::pattern;
use crate::sockets::{Address, Socket};
use crate::streams::Flow;

const CHUNK: usize = 64 << 10;

/// How the connections are used.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Options {
    /// How many connections, all open at the same time
    #[arg(long, default_value_t = 1)]
    pub(crate) connections: usize,
    /// Shut down the sending direction after the last byte, and expect the rest and then an end
    #[arg(long)]
    pub(crate) half_close: bool,
}

/// One connection and how far it is.
struct Talk {
    socket: Socket,
    seed: u64,
    sent: u64,
    received: u64,
    ended: bool,
}

impl Talk {
    fn done(&self, bytes: u64, options: Options) -> bool {
        self.received == bytes && (self.ended || !options.half_close)
    }
}

/// `vsock-connect` and its kin: opens all connections, then sends `bytes` on each and takes them back.
pub(crate) fn exchange(to: &Address, flow: Flow, options: Options) -> Result<()> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).doing("make an epoll")?;
    let mut talks = Vec::new();
    for (index, seed) in (flow.seed..).take(options.connections).enumerate() {
        let socket = Socket::connect(to)?;
        socket.set_nonblocking()?;
        let event = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT, index as u64);
        epoll.add(&socket, event).doing("watch a connection")?;
        talks.push(Some(Talk { socket, seed, sent: 0, received: 0, ended: false }));
    }
    println!("connected={}", talks.len());
    let start = Instant::now();
    let (mut open, mut buffer, mut scratch) = (talks.len(), vec![0; CHUNK], Vec::new());
    let mut events = vec![EpollEvent::empty(); 256];
    while open > 0 {
        let ready = match epoll.wait(&mut events, EpollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => continue,
            other => other.doing("wait for connections")?,
        };
        for event in &events[..ready] {
            let index = event.data() as usize;
            let Some(slot) = talks.get_mut(index) else { continue };
            let Some(talk) = slot else { continue };
            if event.events().contains(EpollFlags::EPOLLOUT) {
                send_some(talk, index, flow.bytes, options, &mut buffer, &epoll)?;
            }
            let incoming = EpollFlags::EPOLLIN | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR;
            if event.events().intersects(incoming) {
                receive_some(talk, index, flow.bytes, &mut buffer, &mut scratch)?;
            }
            if talk.done(flow.bytes, options) {
                epoll.delete(&talk.socket).doing("leave a connection")?;
                *slot = None;
                open -= 1;
            }
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    let bytes = flow.bytes * talks.len() as u64;
    let rate = if seconds > 0.0 { bytes as f64 / 1e6 / seconds } else { 0.0 };
    println!(
        "exchanged connections={} bytes={bytes} seconds={seconds:.3} megabytes_per_second={rate:.1}",
        talks.len()
    );
    Ok(())
}

fn send_some(
    talk: &mut Talk,
    index: usize,
    bytes: u64,
    options: Options,
    buffer: &mut [u8],
    epoll: &Epoll,
) -> Result<()> {
    let len = usize::try_from(bytes - talk.sent).unwrap_or(CHUNK).min(CHUNK);
    let chunk = &mut buffer[..len];
    pattern::fill(talk.seed, talk.sent, chunk);
    match if chunk.is_empty() { Ok(0) } else { talk.socket.write(chunk) } {
        Ok(count) => talk.sent += count as u64,
        Err(error) if would_wait(&error) => return Ok(()),
        Err(error) => {
            return Err(error).doing(format!("send on connection {index} after {} bytes", talk.sent));
        }
    }
    if talk.sent == bytes {
        if options.half_close {
            talk.socket.finish_sending()?;
        }
        let mut event = EpollEvent::new(EpollFlags::EPOLLIN, index as u64);
        epoll.modify(&talk.socket, &mut event).doing("watch a connection")?;
    }
    Ok(())
}

fn receive_some(
    talk: &mut Talk,
    index: usize,
    bytes: u64,
    buffer: &mut [u8],
    scratch: &mut Vec<u8>,
) -> Result<()> {
    let count = match talk.socket.read(buffer) {
        Ok(count) => count,
        Err(error) if would_wait(&error) => return Ok(()),
        Err(error) => {
            return Err(error).doing(format!("receive on connection {index} after {} bytes", talk.received));
        }
    };
    if count == 0 {
        talk.ended = true;
        return if talk.received == bytes {
            Ok(())
        } else {
            Err(Error::Mismatch(format!(
                "connection {index} ended after {} of {bytes} bytes ({} sent)",
                talk.received, talk.sent
            )))
        };
    }
    if let Some(at) = pattern::difference(talk.seed, talk.received, &buffer[..count], scratch) {
        return Err(Error::Mismatch(format!("byte {at} of connection {index} is not the one that was sent")));
    }
    talk.received += count as u64;
    if talk.received > bytes {
        return Err(Error::Mismatch(format!("connection {index} got more back than it sent")));
    }
    Ok(())
}

fn would_wait(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
