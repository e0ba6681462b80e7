//! True sockets: who gets the path, what a greeting takes, and what happens without descriptors.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::*;

fn listener() -> (tempfile::TempDir, VsockListener) {
    let directory = tempfile::tempdir().unwrap();
    let listener = VsockListener::bind(&directory.path().join("v.sock")).unwrap();
    (directory, listener)
}

#[test]
fn the_path_is_private_and_given_back() {
    let (directory, listener) = listener();
    let path = listener.path().to_owned();
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(listener.path_of(80), directory.path().join("v.sock_80"));
    drop(listener);
    assert_eq!(directory.path().read_dir().unwrap().count(), 0, "socket and lock are gone");
}

#[test]
fn a_dead_process_s_socket_is_replaced_and_a_live_one_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("v.sock");
    let other = UnixListener::bind(&path).unwrap();
    let refusal = VsockListener::bind(&path).unwrap_err().to_string();
    assert!(refusal.contains("is in use by process"), "{refusal}");
    assert!(refusal.ends_with("choose another path with --vsock path="), "{refusal}");
    drop(other);
    let ours = VsockListener::bind(&path).unwrap();
    let refusal = VsockListener::bind(&path).unwrap_err().to_string();
    assert!(refusal.contains(&format!("in use by process {}", std::process::id())), "{refusal}");
    assert_eq!(ours.accept().unwrap_err().kind(), ErrorKind::WouldBlock, "undisturbed");
    drop(ours);
    std::fs::write(&path, "not a socket").unwrap();
    assert!(VsockListener::bind(&path).unwrap_err().to_string().contains("is not a socket"));
    assert!(path.exists());
}

#[test]
fn a_line_is_taken_to_its_end_and_no_further() {
    let (mut program, ours) = UnixStream::pair().unwrap();
    let mut ours = UnixStreamEnd::from(ours);
    let mut line = Vec::new();
    assert!(!ours.read_line(&mut line, 32).unwrap());
    program.write_all(b"CONN").unwrap();
    assert!(!ours.read_line(&mut line, 32).unwrap());
    program.write_all(b"ECT 5\nrest").unwrap();
    assert!(ours.read_line(&mut line, 32).unwrap());
    assert_eq!(line, b"CONNECT 5\n");
    let mut line = Vec::new();
    assert!(ours.read_line(&mut line, 3).unwrap(), "a line that is too long is over");
    assert_eq!(line, b"res");
    drop(program);
    assert!(ours.read_line(&mut line, 3).is_ok(), "a full line is full");
    line.clear();
    ours.read_line(&mut line, 1).unwrap();
    assert_eq!(ours.read_line(&mut Vec::new(), 9).unwrap_err().kind(), ErrorKind::UnexpectedEof);
}

/// What has happened, waited for.
fn next(host: &mut UnixHost) -> HostEvent {
    let start = Instant::now();
    loop {
        if let Some(&event) = host.take_events().first() {
            return event;
        }
        assert!(start.elapsed() < Duration::from_secs(30), "nothing happened");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn each_change_is_told_once_and_room_when_it_is_wanted() {
    let (directory, listener) = listener();
    let programs = UnixListener::bind(directory.path().join("v.sock_7")).unwrap();
    let mut host = UnixHost::new(Some(Arc::new(listener)), Inside::new().unwrap()).unwrap();
    assert_eq!(host.connect(8, 2000).unwrap_err().kind(), ErrorKind::NotFound);
    let mut ours = host.connect(7, 2000).unwrap();
    let (mut program, _) = programs.accept().unwrap();
    host.watch(&ours, 5).unwrap();
    assert_eq!(host.take_events(), []);
    program.write_all(b"x").unwrap();
    let readable = Ready { readable: true, ..Ready::default() };
    assert_eq!(next(&mut host), HostEvent::Stream { id: 5, ready: readable });
    assert_eq!(host.take_events(), [], "told once, though it was not read");

    while ours.write_bytes(&[0; 4096]).is_ok() {}
    assert_eq!(host.take_events(), []);
    host.watch_room(&ours, 5, true);
    let mut buffer = vec![0; 1 << 20];
    while ours.write_bytes(b"y").is_err() {
        let _ = program.read(&mut buffer).unwrap();
    }
    let HostEvent::Stream { id: 5, ready } = next(&mut host) else { panic!("no event of the stream") };
    assert!(ready.writable && !ready.hung_up);
    drop(program);
    let HostEvent::Stream { id: 5, ready } = next(&mut host) else { panic!("no event of the stream") };
    assert!(ready.readable && ready.hung_up);
}

#[test]
fn an_alarm_comes_and_a_later_one_does_not_delay_it() {
    let (_directory, listener) = listener();
    let mut host = UnixHost::new(Some(Arc::new(listener)), Inside::new().unwrap()).unwrap();
    let now = Instant::now();
    host.set_alarm(Some(now + Duration::from_millis(20)), now);
    host.set_alarm(Some(now + Duration::from_secs(3600)), now);
    assert_eq!(next(&mut host), HostEvent::Alarm);
    assert!(now.elapsed() >= Duration::from_millis(20));
}

#[test]
fn this_process_gets_in_without_a_socket() {
    let inside = Inside::new().unwrap();
    let mut host = UnixHost::new(None, inside.clone()).unwrap();
    let now = Instant::now();
    assert!(host.accept(now).is_none(), "nobody has connected");
    let mut ours = inside.connect(700).unwrap();
    let second = inside.connect(701).unwrap();
    assert_eq!(next(&mut host), HostEvent::Knock);
    let mut device = host.accept(now).unwrap().unwrap();
    let mut line = Vec::new();
    assert!(device.read_line(&mut line, 32).unwrap());
    assert_eq!(line, b"CONNECT 700\n");
    device.write_bytes(b"OK 1\n").unwrap();
    let mut answer = [0; 5];
    ours.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"OK 1\n");
    assert_eq!(next(&mut host), HostEvent::Knock, "the second one still waits");
    drop(host.accept(now).unwrap().unwrap());
    assert!(host.accept(now).is_none());
    assert!(host.take_events().is_empty());
    let given_up = (&second).read(&mut [0; 1]);
    assert_eq!(given_up.unwrap_err().kind(), ErrorKind::ConnectionReset, "its greeting was never read");
}

#[test]
fn the_guest_reaches_what_this_process_serves_and_nothing_else() {
    let inside = Inside::new().unwrap();
    let mut host = UnixHost::new(None, inside.clone()).unwrap();
    let (tell, told) = std::sync::mpsc::channel();
    inside.serve(5, Arc::new(move |stream| tell.send(stream).unwrap()));
    let mut device = host.connect(5, 1023).unwrap();
    device.write_bytes(b"hello").unwrap();
    let mut bytes = [0; 5];
    told.recv().unwrap().read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"hello");
    assert_eq!(host.connect(6, 1023).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    assert_eq!(host.connect(5, 1024).unwrap_err().kind(), ErrorKind::PermissionDenied, "anybody's port");
    assert!(told.try_recv().is_err());
}

#[test]
fn who_is_never_accepted_is_refused_in_the_end() {
    let inside = Inside::new().unwrap();
    let waiting: Vec<_> = std::iter::from_fn(|| inside.connect(1).ok()).take(1000).collect();
    assert_eq!(waiting.len(), 256);
}
