//! A port's socket, with clients that come and go.

use nix::poll::{PollFd, PollFlags, poll};

use super::*;

const OPEN: Interest = Interest { input: true, accept: true };
const BUSY: Interest = Interest { input: false, accept: false };

fn port(dir: &tempfile::TempDir) -> PortSocket {
    PortSocket::listen(&dir.path().join("port")).unwrap()
}

fn is_woken(port: &PortSocket) -> bool {
    poll(&mut [PollFd::new(port.as_fd(), PollFlags::POLLIN)], 0_u16).unwrap() == 1
}

fn connect(port: &mut PortSocket) -> UnixStream {
    let client = UnixStream::connect(&port.path).unwrap();
    port.set_interest(Interest { input: false, accept: true });
    assert!(is_woken(port));
    port.advance();
    assert!(port.is_connected());
    client
}

#[test]
fn bytes_go_both_ways_and_a_client_that_closes_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let mut port = port(&dir);
    assert!(!port.write(b"to nobody"));
    let mut client = connect(&mut port);
    client.write_all(b"hello").unwrap();
    port.set_interest(BUSY);
    assert!(!is_woken(&port), "the guest has no room");
    port.set_interest(OPEN);
    assert!(is_woken(&port));
    assert_eq!(port.read(3), Input::Bytes(b"hel".to_vec()));
    assert_eq!(port.read(64), Input::Bytes(b"lo".to_vec()));
    assert_eq!(port.read(64), Input::Nothing);
    assert!(port.write(b"answer"));
    let mut answer = [0; 6];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"answer");
    drop(client);
    assert!(is_woken(&port));
    assert_eq!(port.read(64), Input::Ended);
    assert!(!port.is_connected());
}

#[test]
fn a_client_that_does_not_read_is_waited_for_within_a_bound() {
    let dir = tempfile::tempdir().unwrap();
    let mut port = port(&dir);
    let mut client = connect(&mut port);
    let mut written = 0;
    while port.has_room() {
        assert!(port.write(&[b'x'; 1000]));
        written += 1000;
        assert!(written < 16 << 20, "there is a bound");
    }
    port.set_interest(BUSY);
    assert!(!is_woken(&port));
    client.set_nonblocking(true).unwrap();
    let (mut buffer, mut read) = (vec![0; 1 << 16], 0);
    while read < written {
        match client.read(&mut buffer) {
            Ok(len) => read += len,
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                assert!(is_woken(&port), "there is room again");
                port.advance();
            }
        }
    }
    assert!(port.has_room());
    drop(client);
    assert!(port.write(b"x") || !port.has_room() || port.client.as_ref().unwrap().deaf);
    assert!(port.has_room(), "what a client that left would have got is not waited for");
}

#[test]
fn what_a_client_left_is_kept_until_the_guest_takes_it_and_does_not_wake_without_end() {
    let dir = tempfile::tempdir().unwrap();
    let mut port = port(&dir);
    let mut client = connect(&mut port);
    client.write_all(b"note").unwrap();
    port.set_interest(BUSY);
    drop(client);
    port.advance();
    port.set_interest(BUSY);
    assert!(!is_woken(&port));
    assert!(port.is_connected());
    port.set_interest(OPEN);
    assert!(is_woken(&port));
    assert_eq!(port.read(64), Input::Bytes(b"note".to_vec()));
    assert_eq!(port.read(64), Input::Ended);
}

#[test]
fn one_that_only_looks_in_does_not_keep_the_place() {
    let dir = tempfile::tempdir().unwrap();
    let mut port = port(&dir);
    let client = connect(&mut port);
    port.set_interest(BUSY);
    drop(client);
    assert!(is_woken(&port), "it is noticed though nothing is wanted of it");
    port.advance();
    assert!(!port.is_connected());
}

#[test]
fn the_next_client_waits_for_its_turn() {
    let dir = tempfile::tempdir().unwrap();
    let mut port = port(&dir);
    let first = connect(&mut port);
    let mut second = UnixStream::connect(&port.path).unwrap();
    port.set_interest(Interest { input: true, accept: false });
    assert!(!is_woken(&port));
    drop(first);
    assert_eq!(port.read(1), Input::Ended);
    port.set_interest(OPEN);
    port.advance();
    assert!(port.is_connected());
    assert!(port.write(b"you"));
    let mut got = [0; 3];
    second.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"you");
}

#[test]
fn the_path_is_ours_alone_and_goes_with_us() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("port");
    drop(UnixListener::bind(&path).unwrap());
    let first = PortSocket::listen(&path).expect("a dead socket is replaced");
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    assert!(matches!(PortSocket::listen(&path), Err(PortError::InUse { .. })));
    drop(first);
    assert!(!path.exists());
    fs::write(&path, b"data").unwrap();
    let error = PortSocket::listen(&path).unwrap_err().to_string();
    assert!(error.contains("is not a socket") && error.contains(path.to_str().unwrap()), "{error}");
    assert!(
        PortSocket::listen(&dir.path().join("no/such/place"))
            .unwrap_err()
            .to_string()
            .contains("No such file")
    );
}
