//! Forwarded TCP connections.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::thread;

use nestling_protocol::{FailureKind, Request, Response};

use super::host::{Guest, PATIENCE, Session};

fn forwarded(guest: &Guest, port: u16) -> Session {
    let mut session = guest.session(Request::Forward { host: "localhost".into(), port });
    assert_eq!(session.response(), Response::Accepted);
    session
}

/// A server for one connection, in the guest's network, which here is ours.
fn serve<T: Send + 'static>(
    work: impl FnOnce(std::net::TcpStream) -> T + Send + 'static,
) -> (u16, thread::JoinHandle<T>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        work(stream)
    });
    (port, server)
}

#[test]
fn megabytes_come_back_after_the_half_that_was_closed() {
    let guest = Guest::idle();
    let (port, server) = serve(|mut stream| {
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        all.reverse();
        stream.write_all(&all).unwrap();
    });
    let mut session = forwarded(&guest, port);
    let sent: Vec<u8> = (0..5_000_000_u32).map(|number| (number % 251) as u8).collect();
    session.stream.write_all(&sent).unwrap();
    session.stream.shutdown(Shutdown::Write).unwrap();

    let mut got = Vec::new();
    session.stream.read_to_end(&mut got).unwrap();

    got.reverse();
    assert!(got == sent, "{} bytes", got.len());
    server.join().unwrap();
}

#[test]
fn the_servers_half_may_end_first() {
    let guest = Guest::idle();
    let (port, server) = serve(|mut stream| {
        stream.write_all(b"greeting").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut rest = String::new();
        stream.read_to_string(&mut rest).unwrap();
        rest
    });
    let mut session = forwarded(&guest, port);
    let mut greeting = String::new();
    session.stream.read_to_string(&mut greeting).unwrap();
    session.stream.write_all(b"answer").unwrap();
    session.stream.shutdown(Shutdown::Write).unwrap();

    assert_eq!((greeting.as_str(), server.join().unwrap().as_str()), ("greeting", "answer"));
}

#[test]
fn a_host_that_vanishes_ends_the_servers_connection() {
    let guest = Guest::idle();
    let end_of_input = |mut stream: std::net::TcpStream| stream.read_to_end(&mut Vec::new()).map_err(|_| ());
    let (port, server) = serve(end_of_input);
    drop(forwarded(&guest, port));
    server.join().unwrap().ok();

    // One that had closed its half before, and whose server goes on for ever.
    let (port, server) = serve(|mut stream| {
        stream.read_to_end(&mut Vec::new()).unwrap();
        // The agent looks every five seconds; then writing fails.
        let begun = std::time::Instant::now();
        while begun.elapsed() < PATIENCE {
            thread::sleep(std::time::Duration::from_millis(100));
            if stream.write_all(b".").is_err() {
                return true;
            }
        }
        false
    });
    let session = forwarded(&guest, port);
    session.stream.shutdown(Shutdown::Write).unwrap();
    drop(session);
    assert!(server.join().unwrap(), "the server's connection is still open");
}

#[test]
fn a_port_that_nobody_listens_on_is_named() {
    let guest = Guest::idle();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);

    let failure = guest.session(Request::Forward { host: "127.0.0.1".into(), port }).failure();
    assert!(
        failure.message.starts_with(&format!("cannot connect to 127.0.0.1 port {port} in the guest")),
        "{failure}"
    );
    let failure = guest.session(Request::Forward { host: "no.such.host.invalid".into(), port }).failure();
    assert_eq!(failure.kind, FailureKind::NotFound);
}
