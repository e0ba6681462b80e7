//! What makes no sense, on every connection.

use std::io::Write;

use nestling_protocol::{Configuration, FailureKind, FromAgent, Kind, Opening, Request, Response, frame};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::host::{Guest, Session, session_members, until};

/// Sends bytes where a request is due; the agent's answer.
fn refused(guest: &Guest, bytes: &[u8]) -> nestling_protocol::Failure {
    let mut stream = guest.connect();
    stream.write_all(bytes).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    Session { stream }.failure()
}

#[test]
fn requests_that_make_no_sense_are_answered_with_one_clear_error() {
    let guest = Guest::idle();
    let message = |json: &str| frame::encode(Kind::Message, json.as_bytes()).unwrap();
    let cases = [
        (vec![0xff; 100], "a frame of 4294967295 bytes: at most 65536 are allowed"),
        (vec![1, 0, 0, 0, 0x42, 0], "a frame of the unknown kind 0x42"),
        (vec![9, 0, 0, 0, 1, b'{'], "the peer closed the connection in the middle of a frame"),
        (frame::encode(Kind::Stdin, b"x").unwrap(), "a stdin frame where a message was due"),
        (message("{"), "a message that cannot be understood: EOF while parsing an object at line 1 column 1"),
    ];
    for (bytes, expected) in cases {
        let failure = refused(&guest, &bytes);
        assert_eq!((failure.kind, failure.message.as_str()), (FailureKind::BadRequest, expected));
    }
    let later = Opening { version: 9, request: Request::Stats };
    let failure = refused(&guest, &frame::encode_message(&later).unwrap());
    assert_eq!(failure.message, "this agent speaks the versions 1 to 1 of the protocol, not 9");
    let failure = refused(&guest, &message(r#"{"version":1,"request":{"type":"teleport"}}"#));
    assert_eq!(failure.kind, FailureKind::Unsupported);
    assert_eq!(guest.run("echo well").stdout, "well\n");
}

#[test]
fn random_bytes_end_their_own_connection_only() {
    let guest = Guest::idle();
    let mut runner = TestRunner::new(Config { cases: 100, failure_persistence: None, ..Config::default() });
    runner
        .run(&prop::collection::vec(any::<u8>(), 1..3000), |bytes| {
            let mut stream = guest.connect();
            // It may be refused, and closed, before all is written.
            drop(stream.write_all(&bytes));
            drop(stream.shutdown(std::net::Shutdown::Write));
            drop(std::io::copy(&mut stream, &mut std::io::sink()));
            Ok(())
        })
        .unwrap();

    assert_eq!(guest.run("echo well").stdout, "well\n");
}

#[test]
fn garbage_within_a_session_ends_its_program() {
    let guest = Guest::idle();
    let (mut session, pid) = guest.script("sleep 1000 & wait");
    session.stream.write_all(&[0xee; 64]).unwrap();

    let failure = session.failure();

    assert_eq!(failure.message, "a frame of 4008636142 bytes: at most 65536 are allowed");
    until("nothing is left", || session_members(pid).is_empty());
}

#[test]
fn garbage_on_the_control_connection_has_the_agent_come_again() {
    let mut guest = Guest::idle();
    guest.control(&[0xee; 64]);
    guest.cut(Configuration::default());
    guest.order(1, nestling_protocol::Order::Ping);

    assert!(matches!(guest.event(), FromAgent::Answer { id: 1, .. }));
}

#[test]
fn sessions_beyond_the_bound_are_told_so_and_the_others_go_on() {
    let guest = Guest::idle();
    let open: Vec<_> = (0..128).map(|_| guest.connect()).collect();
    let mut one_more = Session { stream: guest.connect() };

    let failure = one_more.failure();
    assert_eq!(
        (failure.kind, failure.message.as_str()),
        (FailureKind::Busy, "128 sessions are open: close one")
    );
    drop(open);
    until("there is room again", || {
        let mut session = guest.session(Request::Stats);
        matches!(session.response(), Response::Stats(_))
    });
}
