//! What a guest must not do, and what becomes of it.

use super::*;
use crate::devices::virtio::testing::{Buffer, HOLE};
use crate::devices::virtio::vsock::muxer::MOST_RESETS;

/// Sends `header` on an open connection; it and the program hear of a reset, and others go on.
#[track_caller]
fn breaks(header: &Header, data: &[u8]) {
    let mut test = fixture();
    let (program, other) = (test.connect(1000), test.connect(1001));
    test.offer(3);
    test.queue(header, data);
    test.serve().unwrap();
    assert_eq!(test.got_ops(), [Op::Reset], "{header:?}");
    assert!(program.is_dropped());
    assert_eq!(test.counted(), [1, 2, 0, 1]);
    test.host_does(&other, |other| other.write(b"well"));
    assert_eq!(test.got_one().data, b"well");
}

#[test]
fn rules_of_a_connection_that_are_broken_end_it() {
    let good = packet(1000, 80, Op::Data);
    breaks(&Header { len: 11, ..good }, b"ten bytes!");
    breaks(&Header { len: u32::MAX, ..good }, b"ten bytes!");
    breaks(&Header { len: 1, fwd_cnt: 1, ..good }, b"x");
    breaks(&Header { fwd_cnt: 1 << 30, op: Op::CreditUpdate, ..good }, b"");
    breaks(&Header { op: Op::Request, ..good }, b"");
    breaks(&Header { op: Op::Response, ..good }, b"");
    breaks(&Header { op: Op::Unknown(0), ..good }, b"");
    breaks(&Header { op: Op::Unknown(8), ..good }, b"");
}

#[test]
fn more_than_there_is_credit_for_is_not_kept() {
    let mut test = fixture();
    let program = test.connect(1000);
    test.offer(3);
    for _ in 0..4 {
        test.send_data(&packet(1000, 80, Op::Data), &[1; 65_000]);
    }
    assert!(!program.is_dropped());
    test.send_data(&packet(1000, 80, Op::Data), &[1; 65_000]);
    assert!(program.is_dropped());
    assert!(test.got_ops().ends_with(&[Op::Reset]));
}

#[test]
fn data_before_the_response_or_after_the_end_is_not_taken() {
    let mut test = fixture();
    test.muxer.host().serve(80);
    test.send(&packet(1000, 80, Op::Request));
    test.send_data(&packet(1000, 80, Op::Data), b"too soon");
    test.offer(2);
    assert_eq!(test.got_ops(), [Op::Reset]);

    let program = test.connect(1001);
    test.offer(2);
    test.send(&Header { flags: SHUTDOWN_SEND, ..packet(1001, 80, Op::Shutdown) });
    test.send_data(&packet(1001, 80, Op::Data), b"too late");
    assert_eq!(test.got_ops(), [Op::Reset]);
    assert!(program.is_dropped());
}

#[test]
fn what_belongs_to_no_connection_is_answered_with_a_reset_but_a_reset_is_not() {
    let mut test = fixture();
    test.offer(20);
    for op in [Op::Response, Op::Shutdown, Op::Data, Op::CreditUpdate, Op::CreditRequest, Op::Unknown(99)] {
        test.send(&packet(5, 6, op));
        assert_eq!(test.got_ops(), [Op::Reset], "{op:?}");
    }
    for _ in 0..1000 {
        test.send(&packet(5, 6, Op::Reset));
    }
    assert!(test.got().is_empty());
}

#[test]
fn another_type_or_another_address_is_answered_from_there() {
    let mut test = fixture();
    test.muxer.host().serve(80);
    test.offer(3);
    test.send(&Header { kind: 2, ..packet(1000, 80, Op::Request) });
    let got = test.got_one().header;
    assert_eq!((got.op, got.kind), (Op::Reset, 2));
    test.send(&Header { dst_cid: 77, ..packet(1000, 80, Op::Request) });
    let got = test.got_one().header;
    assert_eq!((got.op, got.src_cid, got.dst_cid), (Op::Reset, 77, CID));
    test.send(&Header { src_cid: 4, ..packet(1000, 80, Op::Request) });
    assert!(test.got().is_empty(), "in another guest's name");
    assert_eq!(test.counted()[1], 0);
}

#[test]
fn resets_that_the_guest_has_no_room_for_stop_it_and_are_not_lost() {
    let mut test = fixture();
    let mut sent = 0;
    // As fast as the ring goes round: without room for answers nothing more is taken.
    for _ in 0..20 {
        for _ in 0..8 {
            test.queue(&packet(sent, 81, Op::Request), b"");
            sent += 1;
        }
        test.serve().unwrap();
    }
    for _ in 0..20 {
        for _ in 0..8 {
            if usize::from(test.tx.available()) - test.tx.used().len() < RING.into() {
                test.queue(&packet(sent, 81, Op::Request), b"");
                sent += 1;
            }
        }
        test.serve().unwrap();
    }
    assert_eq!(test.tx.used().len(), MOST_RESETS);
    assert!(!test.muxer.has_room());
    assert_eq!(sent as usize, MOST_RESETS + usize::from(RING));
    let mut resets = 0;
    while resets < sent as usize {
        test.offer(16);
        let got = test.got_ops();
        assert!(!got.is_empty() && got.iter().all(|&op| op == Op::Reset));
        resets += got.len();
    }
    assert_eq!(test.tx.used().len(), sent as usize);
}

#[test]
fn a_flood_of_connections_is_bounded_by_the_limit() {
    let mut test = with_limit(10);
    test.muxer.host().serve(80);
    for port in 0..2000 {
        test.send(&packet(port, 80, Op::Request));
        if port % 16 == 0 {
            test.offer(16);
            test.got();
        }
    }
    assert_eq!(test.muxer.host().programs.len(), 10);
    assert_eq!(test.counted()[0], 10);
}

/// A chain on one of the queues stops the device.
#[track_caller]
fn faults(queue: usize, chain: &[Buffer]) {
    let mut test = fixture();
    let program = test.connect(1000);
    if queue == RECEIVE {
        test.rx.offer(chain);
        program.write(b"data");
        for (id, ready) in test.muxer.host().events() {
            test.muxer.on_host(id, ready, test.now);
        }
    } else {
        let header = Header { len: 4, ..packet(1000, 80, Op::Data) };
        test.memory.write_slice(&header.encode(), GuestAddress(TX)).unwrap();
        test.tx.offer(chain);
    }
    assert!(matches!(test.serve(), Err(Fault::Chain(_))), "queue {queue}: {chain:?}");
}

#[test]
fn chains_that_are_no_packets_stop_the_device() {
    faults(TRANSMIT, &[readable(TX, 43)]);
    faults(TRANSMIT, &[readable(TX, 0)]);
    faults(TRANSMIT, &[writable(TX, 100)]);
    faults(TRANSMIT, &[readable(TX, 44), writable(TX + 44, 4)]);
    faults(TRANSMIT, &[readable(TX, 44), readable(HOLE - 2, 4)]);
    faults(TRANSMIT, &[readable(TX, 44), readable(u64::MAX - 1, 4)]);
    faults(RECEIVE, &[writable(RX, 43)]);
    faults(RECEIVE, &[writable(RX, 44)]);
    faults(RECEIVE, &[readable(RX, 100)]);
    faults(RECEIVE, &[writable(RX, 44), readable(RX + 44, 100)]);
    faults(RECEIVE, &[writable(RX, 44), writable(HOLE, 100)]);
}

#[test]
fn chains_without_an_end_stop_the_device() {
    let mut test = fixture();
    // A descriptor that is its own next, and one whose next is outside the table.
    test.tx.store(0, TX, 100, 1, 0);
    test.tx.offer_head(0);
    assert!(matches!(test.serve(), Err(Fault::Chain(_))));
    let mut test = fixture();
    test.tx.store(0, TX, 100, 1, RING);
    test.tx.offer_head(0);
    assert!(matches!(test.serve(), Err(Fault::Chain(_))));
}

#[test]
fn an_indirect_table_longer_than_the_ring_stops_the_device() {
    let mut test = fixture();
    let long: Vec<Buffer> = (0..1000).map(|_| readable(TX, 44)).collect();
    test.tx.offer_indirect(DATA, &long);
    assert!(matches!(test.serve(), Err(Fault::Chain(_))));
}

#[test]
fn one_packet_may_be_in_as_many_pieces_as_the_ring_has() {
    let mut test = fixture();
    let program = test.connect(1000);
    let header = Header { len: 200, ..packet(1000, 80, Op::Data) };
    test.memory.write_slice(&header.encode(), GuestAddress(TX)).unwrap();
    let pieces: Vec<Buffer> = (0..244).map(|at| readable(TX + at, 1)).collect();
    test.tx.offer_indirect(DATA, &pieces);
    test.serve().unwrap();
    assert_eq!(program.read(1000).len(), 200);
}
