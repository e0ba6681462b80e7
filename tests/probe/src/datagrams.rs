//! UDP: an echo, and who asks it.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use crate::error::{Doing, Error, Result};
use crate::pattern;

const LARGEST: usize = 65_507;

/// `udp-echo`: sends `count` datagrams back to whoever sent them; 0 is for ever.
pub(crate) fn echo(at: SocketAddr, count: u64) -> Result<()> {
    let socket = UdpSocket::bind(at).doing(format!("listen on udp:{at}"))?;
    println!("listening=udp:{at}");
    let mut buffer = vec![0; LARGEST];
    let (mut datagrams, mut bytes) = (0, 0);
    while count == 0 || datagrams < count {
        let (len, from) = socket.recv_from(&mut buffer).doing("receive a datagram")?;
        socket.send_to(&buffer[..len], from).doing(format!("answer {from}"))?;
        datagrams += 1;
        bytes += len as u64;
    }
    println!("echoed datagrams={datagrams} bytes={bytes}");
    Ok(())
}

/// `udp-ping`: sends datagrams one after the other and compares each answer. A lost one is counted, a wrong one is an
/// error, and so is it when all are lost.
pub(crate) fn ping(to: SocketAddr, count: u64, size: usize, seed: u64, patience: Duration) -> Result<()> {
    if size > LARGEST {
        return Err(Error::Arguments(format!("--size {size} is more than a datagram's {LARGEST} bytes")));
    }
    let any: SocketAddr = if to.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0_u16; 8], 0).into() };
    let socket = UdpSocket::bind(any).doing("make a UDP socket")?;
    socket.connect(to).doing(format!("connect to udp:{to}"))?;
    socket.set_read_timeout(Some(patience)).doing("set a socket's patience")?;
    let (mut sent, mut answer) = (vec![0; size], vec![0; LARGEST]);
    let (mut received, mut lost) = (0, 0);
    for number in 0..count {
        pattern::fill(seed.wrapping_add(number), 0, &mut sent);
        socket.send(&sent).doing(format!("send a datagram to {to}"))?;
        match socket.recv(&mut answer) {
            Ok(len) if answer[..len] == sent[..] => received += 1,
            Ok(len) => {
                let text = format!("datagram {number} of {size} bytes came back as {len} other ones");
                return Err(Error::Mismatch(text));
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => lost += 1,
            Err(error) => return Err(error).doing(format!("receive from {to}")),
        }
    }
    println!("pinged sent={count} received={received} lost={lost}");
    if received == 0 && count > 0 {
        return Err(Error::Mismatch("no datagram came back".into()));
    }
    Ok(())
}
