//! Forwarding a TCP connection: bytes both ways, and each half's end by itself.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::time::Duration;

use nestling_protocol::{Failure, FailureKind, Response};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::session::say;
use super::transport::Stream;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes that are under way in one direction.
const BUFFER: usize = 64 << 10;

/// How often to look whether a host that has closed its half has gone altogether.
const LOOK: u16 = 5_000;

/// Connects, and carries bytes until both halves are closed or either end fails.
pub(super) fn run(stream: &Stream, host: &str, port: u16) -> Result<(), Failure> {
    let tcp = connect(host, port)?;
    say(stream, &Response::Accepted);
    let nonblocking = tcp.set_nonblocking(true).and_then(|()| stream.set_nonblocking(true));
    nonblocking.map_err(|error| Failure::new(FailureKind::Failed, error.to_string()))?;
    // An end that fails ends both, which is all there is to tell.
    drop(relay(stream, &tcp));
    stream.shut();
    Ok(())
}

/// A name's addresses: those of a literal, of `localhost`, or of the guest's /etc/hosts.
pub(super) fn addresses(host: &str) -> Vec<IpAddr> {
    if let Ok(address) = host.parse() {
        return vec![address];
    }
    let hosts = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
    let mut found = of_hosts(&hosts, host);
    if found.is_empty() && host == "localhost" {
        found = vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    }
    found
}

fn of_hosts(hosts: &str, host: &str) -> Vec<IpAddr> {
    let lines = hosts.lines().map(|line| line.split('#').next().unwrap_or_default());
    let entries = lines.filter_map(|line| {
        let mut words = line.split_whitespace();
        let address = words.next()?.parse().ok()?;
        words.any(|name| name.eq_ignore_ascii_case(host)).then_some(address)
    });
    entries.take(16).collect()
}

fn connect(host: &str, port: u16) -> Result<TcpStream, Failure> {
    let unknown = format!("{host} is no address, and no name in the guest's /etc/hosts");
    let mut failure = Failure::new(FailureKind::NotFound, unknown);
    for address in addresses(host) {
        match TcpStream::connect_timeout(&SocketAddr::new(address, port), CONNECT_TIMEOUT) {
            Ok(stream) => return Ok(stream),
            Err(error) => {
                let message = format!("cannot connect to {address} port {port} in the guest: {error}");
                failure = Failure::new((&error).into(), message);
            }
        }
    }
    Err(failure)
}

/// One direction.
#[derive(Debug, Default)]
struct Flow {
    bytes: Vec<u8>,
    sent: usize,
    /// The source has ended.
    ended: bool,
    /// The sink was told so.
    done: bool,
}

impl Flow {
    fn is_empty(&self) -> bool {
        self.sent >= self.bytes.len()
    }

    fn wants_input(&self) -> bool {
        self.is_empty() && !self.ended
    }

    /// Moves what can be moved without waiting.
    fn pump<R: Read, W: Write>(&mut self, from: &mut R, to: &mut W, end: impl FnOnce()) -> io::Result<()> {
        if self.wants_input() {
            self.bytes.resize(BUFFER, 0);
            self.sent = 0;
            let read = now(from.read(&mut self.bytes))?;
            self.bytes.truncate(read.unwrap_or_default());
            self.ended = read == Some(0);
        }
        while let Some(rest) = self.bytes.get(self.sent..).filter(|rest| !rest.is_empty()) {
            match now(to.write(rest))? {
                Some(written) => self.sent += written,
                None => return Ok(()),
            }
        }
        if self.ended && !self.done {
            self.done = true;
            end();
        }
        Ok(())
    }
}

/// What came of a call at once; `None` when it would have waited.
fn now(result: io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(None),
        result => result.map(Some),
    }
}

fn relay(stream: &Stream, tcp: &TcpStream) -> io::Result<()> {
    let (mut inwards, mut outwards) = (Flow::default(), Flow::default());
    loop {
        inwards.pump(&mut &*stream, &mut &*tcp, || drop(tcp.shutdown(Shutdown::Write)))?;
        outwards.pump(&mut &*tcp, &mut &*stream, || stream.shut_write())?;
        if inwards.done && outwards.done {
            return Ok(());
        }
        let wanted = |from: &Flow, to: &Flow| {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::POLLIN, from.wants_input());
            flags.set(PollFlags::POLLOUT, !to.is_empty());
            flags
        };
        let ends = [
            PollFd::new(stream.as_fd(), wanted(&inwards, &outwards)),
            PollFd::new(tcp.as_fd(), wanted(&outwards, &inwards)),
        ];
        // An end that nothing is wanted of is left out: that it has hung up would be said again and again.
        let mut watched: Vec<PollFd> = ends.into_iter().filter(|end| !end.events().is_empty()).collect();
        let timeout = if inwards.done { PollTimeout::from(LOOK) } else { PollTimeout::NONE };
        match poll(&mut watched, timeout) {
            Ok(0) if stream.is_closed_by_peer() => return Ok(()),
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_hosts_file() {
        let hosts =
            "127.0.0.1 localhost here # there\n\n::1 LocalHost\nbroken localhost\n10.0.0.7\tdb db.local\n";

        assert_eq!(
            of_hosts(hosts, "localhost"),
            [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()]
        );
        assert_eq!(of_hosts(hosts, "db.local"), [IpAddr::from([10, 0, 0, 7])]);
        assert!(of_hosts(hosts, "there").is_empty());
        assert_eq!(addresses("10.1.2.3"), [IpAddr::from([10, 1, 2, 3])]);
        assert!(addresses("no.such.host.invalid").is_empty());
    }
}
