//! How connections begin, and how they are refused.

use super::*;
use crate::devices::virtio::vsock::connection::{GREETING_TIME, REQUEST_TIME};

#[test]
fn the_guest_connects_to_a_program_of_the_host() {
    let mut test = fixture();
    let program = test.connect(1000);
    assert_eq!(test.counted(), [1, 1, 0, 0]);
    test.send_data(&packet(1000, 80, Op::Data), b"hello");
    assert_eq!(program.read(100), b"hello");
    test.offer(1);
    test.host_does(&program, |program| program.write(b"welcome"));
    let got = test.got_one();
    assert_eq!((got.header.op, &got.data[..]), (Op::Data, &b"welcome"[..]));
    let Header { src_cid, dst_cid, src_port, dst_port, kind, fwd_cnt, .. } = got.header;
    assert_eq!((src_cid, dst_cid, src_port, dst_port, kind), (HOST_CID, CID, 80, 1000, TYPE_STREAM));
    assert_eq!(fwd_cnt, 5, "what the program took");
}

#[test]
fn a_response_promises_a_buffer() {
    let mut test = fixture();
    test.muxer.host().serve(80);
    test.offer(1);
    test.send(&packet(1000, 80, Op::Request));
    assert_eq!(test.got_one().header.buf_alloc, 256 << 10);
}

#[test]
fn a_port_nobody_serves_is_refused_by_a_reset() {
    let mut test = fixture();
    test.offer(1);
    test.send(&packet(1000, 81, Op::Request));
    let Header { op, src_cid, dst_cid, src_port, dst_port, .. } = test.got_one().header;
    assert_eq!((op, src_cid, dst_cid, src_port, dst_port), (Op::Reset, HOST_CID, CID, 81, 1000));
    assert_eq!(test.counted(), [0, 0, 1, 0]);
}

#[test]
fn without_a_descriptor_one_connection_is_refused_and_nothing_else_breaks() {
    let mut test = fixture();
    let program = test.connect(1000);
    test.offer(3);
    test.muxer.host().out_of_descriptors = true;
    test.send(&packet(1001, 80, Op::Request));
    assert_eq!(test.got_one().header.op, Op::Reset);
    test.host_does(&program, |program| program.write(b"still here"));
    assert_eq!(test.got_one().data, b"still here");
    test.muxer.host().out_of_descriptors = false;
    test.send(&packet(1001, 80, Op::Request));
    assert_eq!(test.got_one().header.op, Op::Response);
}

/// A program of the host that has said `greeting`.
fn knock(test: &mut Fixture, greeting: &[u8]) -> Program {
    let (program, end) = PairHost::pair();
    program.write(greeting);
    test.muxer.knock(end, test.now);
    test.serve().unwrap();
    program
}

#[test]
fn a_program_of_the_host_connects_to_the_guest() {
    let mut test = fixture();
    test.offer(2);
    let program = knock(&mut test, b"CONNECT 52\nat once");
    let request = test.got_one().header;
    assert_eq!((request.op, request.dst_port), (Op::Request, 52));
    assert!(program.read(100).is_empty(), "not yet");
    test.send(&packet(52, request.src_port, Op::Response));
    assert_eq!(program.read(100), format!("OK {}\n", request.src_port).as_bytes());
    assert_eq!(test.got_one().data, b"at once", "what came behind the greeting belongs to the stream");
    assert_eq!(test.counted(), [1, 1, 0, 0]);
}

#[test]
fn two_connections_to_one_port_have_two_numbers() {
    let mut test = fixture();
    test.offer(2);
    let _programs = [knock(&mut test, b"CONNECT 52\n"), knock(&mut test, b"CONNECT 52\n")];
    let got = test.got();
    assert_ne!(got[0].header.src_port, got[1].header.src_port);
}

#[test]
fn a_greeting_may_come_in_pieces_but_not_too_slowly() {
    let mut test = fixture();
    test.offer(1);
    let program = knock(&mut test, b"CONN");
    test.host_does(&program, |program| program.write(b"ECT 5"));
    assert!(test.got().is_empty());
    test.host_does(&program, |program| program.write(b"2\n"));
    assert_eq!(test.got_one().header.dst_port, 52);

    let slow = knock(&mut test, b"CONNECT 5");
    test.wait(GREETING_TIME);
    assert!(slow.is_dropped());
    assert_eq!(test.counted(), [0, 0, 1, 0]);
}

#[test]
fn who_does_not_greet_is_turned_away() {
    let mut test = fixture();
    for greeting in [&b"GET / HTTP/1.1\r\n"[..], b"\n", &[b'x'; 100]] {
        assert!(knock(&mut test, greeting).is_dropped());
    }
    let gone = knock(&mut test, b"CONN");
    test.host_does(&gone, Program::close);
    assert!(gone.is_dropped());
    assert_eq!(test.counted(), [0, 0, 4, 0]);
}

#[test]
fn a_guest_that_refuses_or_does_not_answer_ends_the_connection() {
    let mut test = fixture();
    test.offer(3);
    let refused = knock(&mut test, b"CONNECT 52\n");
    let port = test.got_one().header.src_port;
    test.send(&packet(52, port, Op::Reset));
    assert!(refused.is_dropped() && refused.read(100).is_empty());

    let ignored = knock(&mut test, b"CONNECT 52\n");
    assert_eq!(test.got_one().header.op, Op::Request);
    test.wait(REQUEST_TIME);
    assert!(ignored.is_dropped());
    assert_eq!(test.got_one().header.op, Op::Reset);
    assert_eq!(test.counted(), [0, 0, 2, 0]);
}

#[test]
fn a_request_the_guest_had_no_room_for_leaves_nothing_behind() {
    let mut test = fixture();
    let programs: Vec<_> = (0..3).map(|_| knock(&mut test, b"CONNECT 52\n")).collect();
    test.wait(REQUEST_TIME);
    assert!(programs.iter().all(Program::is_dropped));
    let size = test.muxer.size();
    assert_eq!((size.entries, size.ports, size.in_line, size.alarms, size.allowed), (0, 0, 0, 0, 0));
    test.offer(1);
    assert!(test.got().is_empty(), "nor is the guest told of what it never heard of");
    assert_eq!(test.counted(), [0, 0, 3, 0]);
}

#[test]
fn more_connections_than_the_limit_are_refused_and_room_is_used_again() {
    let mut test = with_limit(2);
    let _first = test.connect(1000);
    let second = knock(&mut test, b"CONNECT 5");
    assert!(!second.is_dropped(), "a greeting counts");
    assert!(knock(&mut test, b"CONNECT 52\n").is_dropped());
    test.offer(2);
    test.send(&packet(1001, 80, Op::Request));
    assert_eq!(test.got_one().header.op, Op::Reset);
    assert_eq!(test.counted(), [1, 1, 2, 0]);
    test.host_does(&second, Program::close);
    test.send(&packet(1001, 80, Op::Request));
    assert_eq!(test.got_one().header.op, Op::Response);
}

#[test]
fn many_connections_are_promised_less_each() {
    let mut test = with_limit(4096);
    let mut promised = Vec::new();
    test.muxer.host().serve(80);
    for port in 0..1000 {
        test.offer(1);
        test.send(&packet(port, 80, Op::Request));
        promised.push(u64::from(test.got_one().header.buf_alloc));
    }
    assert_eq!((promised[0], promised[999]), (256 << 10, 16 << 10));
    let together: u64 = promised.iter().sum();
    assert!(together <= (64 << 20) + 1000 * (16 << 10), "{together}");
}

#[test]
fn a_pause_of_the_machine_takes_no_time() {
    let mut test = fixture();
    test.offer(1);
    let program = knock(&mut test, b"CONNECT 52\n");
    test.muxer.rest(test.now);
    test.now += REQUEST_TIME * 10;
    test.muxer.wake(test.now);
    test.wait(Duration::ZERO);
    assert!(!program.is_dropped());
    test.wait(REQUEST_TIME);
    assert!(program.is_dropped());
}
