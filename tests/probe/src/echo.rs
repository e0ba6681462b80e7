//! The server of an echo: thousands of connections, each of which gets back what it sends, and an end for an end.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::error::{Doing, Result};
use crate::sockets::{Address, Listener, Socket};

/// What a connection may have outstanding before nothing more is read from it.
const MOST_BUFFERED: usize = 64 << 10;
const LISTENER: u64 = u64::MAX;

/// One connection: what has been read and not yet written back.
struct Mirror {
    socket: Socket,
    pending: Vec<u8>,
    ended: bool,
    /// What the epoll knows.
    watched: EpollFlags,
}

impl Mirror {
    /// Reads and writes what is ready; `false` when this connection is through. One that was reset is through too.
    fn turn(&mut self, buffer: &mut [u8], bytes: &mut u64) -> bool {
        if !self.ended && self.pending.len() < MOST_BUFFERED {
            match self.socket.read(buffer) {
                Ok(0) => self.ended = true,
                Ok(count) => {
                    self.pending.extend_from_slice(&buffer[..count]);
                    *bytes += count as u64;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return false,
            }
        }
        while !self.pending.is_empty() {
            match self.socket.write(&self.pending) {
                Ok(count) => drop(self.pending.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
                Err(_) => return false,
            }
        }
        if !self.ended {
            // A thousand idle connections must not hold a thousand buffers.
            self.pending = Vec::new();
            return true;
        }
        // The other end may have closed altogether: then there is nobody left to tell.
        drop(self.socket.finish_sending());
        false
    }

    fn wants(&self) -> EpollFlags {
        let mut flags = EpollFlags::empty();
        if !self.ended && self.pending.len() < MOST_BUFFERED {
            flags |= EpollFlags::EPOLLIN;
        }
        if !self.pending.is_empty() {
            flags |= EpollFlags::EPOLLOUT;
        }
        flags
    }
}

/// `vsock-echo` and its kin. After `count` connections have come and gone it says how many it served; 0 is never.
pub(crate) fn echo(at: &Address, count: u64) -> Result<()> {
    serve(&Listener::bind(at)?, count)
}

fn serve(listener: &Listener, count: u64) -> Result<()> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).doing("make an epoll")?;
    epoll.add(listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER)).doing("watch the listener")?;
    let mut mirrors: HashMap<u64, Mirror> = HashMap::new();
    let (mut next, mut ended, mut bytes, mut peak) = (0, 0, 0, 0);
    let mut buffer = vec![0; MOST_BUFFERED];
    let mut events = vec![EpollEvent::empty(); 256];
    while count == 0 || ended < count {
        let ready = match epoll.wait(&mut events, EpollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            other => other.doing("wait for connections")?,
        };
        for event in &events[..ready] {
            if event.data() == LISTENER {
                let socket = listener.accept()?;
                socket.set_nonblocking()?;
                let watched = EpollFlags::EPOLLIN;
                epoll.add(&socket, EpollEvent::new(watched, next)).doing("watch a connection")?;
                mirrors.insert(next, Mirror { socket, pending: Vec::new(), ended: false, watched });
                next += 1;
                peak = peak.max(mirrors.len());
                continue;
            }
            let Some(mirror) = mirrors.get_mut(&event.data()) else { continue };
            if mirror.turn(&mut buffer, &mut bytes) {
                let wants = mirror.wants();
                if wants != mirror.watched {
                    let mut changed = EpollEvent::new(wants, event.data());
                    epoll.modify(&mirror.socket, &mut changed).doing("watch a connection")?;
                    mirror.watched = wants;
                }
            } else {
                mirrors.remove(&event.data());
                ended += 1;
            }
        }
    }
    println!("echoed connections={ended} peak={peak} bytes={bytes}");
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use crate::exchange::{self, Options};
    use crate::sockets::{Address, Listener};
    use crate::streams::Flow;

    #[test]
    fn many_connections_get_back_what_they_sent() {
        let directory = tempfile::tempdir().unwrap();
        let address = Address::Unix(directory.path().join("socket"));
        let listener = Listener::bind(&address).unwrap();
        let server = std::thread::spawn(move || super::serve(&listener, 70));
        // More than fits the buffers on the way, so both directions have to move at once.
        let flow = Flow { bytes: 2_000_003, seed: 1 };
        exchange::exchange(&address, flow, Options { connections: 10, half_close: true }).unwrap();
        let flow = Flow { bytes: 3000, seed: 2 };
        exchange::exchange(&address, flow, Options { connections: 60, half_close: false }).unwrap();
        server.join().unwrap().unwrap();
    }
}
