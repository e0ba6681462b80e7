//! Bytes in both directions, no more of them than there is room for, and everybody in turn.

use super::pair::SOCKET_BYTES;
use super::*;

/// Bytes that differ from place to place.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|index| (index % 251) as u8).collect()
}

#[test]
fn a_long_read_fills_many_buffers_at_once() {
    let mut test = fixture();
    let program = test.connect(1000);
    test.offer(32);
    let sent = pattern(100_000);
    test.host_does(&program, |program| program.write(&sent));
    let got = test.got();
    assert!(got.iter().all(|got| got.header.op == Op::Data), "{got:?}");
    let data: Vec<u8> = got.iter().flat_map(|got| got.data.clone()).collect();
    assert_eq!(data, sent);
    assert_eq!(got.len(), sent.len().div_ceil(RX_BYTES as usize - HEADER_BYTES) + 1, "a turn ends at 64 KiB");
}

#[test]
fn buffers_of_which_nothing_was_needed_stay_in_the_ring() {
    let mut test = fixture();
    let program = test.connect(1000);
    test.offer(10);
    test.host_does(&program, |program| program.write(b"one"));
    test.host_does(&program, |program| program.write(b"two"));
    let got: Vec<_> = test.got().into_iter().map(|got| got.data).collect();
    assert_eq!(got, [b"one".to_vec(), b"two".to_vec()]);
}

#[test]
fn header_and_data_may_be_cut_anywhere() {
    let mut test = fixture();
    let program = test.connect(1000);
    let header = Header { len: 6, ..packet(1000, 80, Op::Data) }.encode();
    let bytes = [&header[..], b"abcdef"].concat();
    for cuts in [[10, 44], [43, 45], [44, 44], [0, 47], [20, 20]] {
        test.memory.write_slice(&bytes, GuestAddress(TX)).unwrap();
        let [first, second] = cuts;
        let piece = |from: u64, to: u64| readable(TX + from, (to - from) as u32);
        test.tx.offer(&[piece(0, first), piece(first, second), piece(second, 50)]);
        test.serve().unwrap();
        assert_eq!(program.read(100), b"abcdef", "{cuts:?}");

        // The same for what the guest gets.
        let piece = |from: u64, to: u64| writable(RX + from, (to - from) as u32);
        test.rx.offer(&[piece(0, first), piece(first, second), piece(second, 1000)]);
        test.host_does(&program, |program| program.write(b"ghi"));
        let mut answer = [0; 47];
        test.memory.read_slice(&mut answer, GuestAddress(RX)).unwrap();
        assert_eq!(&answer[44..], b"ghi", "{cuts:?}");
        let header = Header::decode(answer[..44].try_into().unwrap());
        assert_eq!((header.len, header.op), (3, Op::Data));
    }
}

#[test]
fn the_guest_is_sent_what_it_has_room_for_and_asked_once_for_more() {
    let mut test = fixture();
    let program = test.connect(1000);
    test.offer(20);
    let tiny = Header { buf_alloc: 100, ..packet(1000, 80, Op::CreditUpdate) };
    test.send(&tiny);
    let sent = pattern(250);
    test.host_does(&program, |program| program.write(&sent));
    let got = test.got();
    assert_eq!(got.iter().map(|got| got.header.op).collect::<Vec<_>>(), [Op::Data, Op::CreditRequest]);
    assert_eq!(got[0].data, sent[..100]);
    test.host_events();
    assert!(test.got().is_empty(), "asked once");
    assert_eq!(program.unread_by_guest(), 150, "what the guest has no room for is not read");

    test.send(&Header { fwd_cnt: 60, ..tiny });
    let got = test.got();
    assert_eq!((got[0].header.op, &got[0].data[..]), (Op::Data, &sent[100..160]));
    assert_eq!(got[1].header.op, Op::CreditRequest, "and once more when that is full again");
    test.send(&Header { buf_alloc: 1000, fwd_cnt: 160, ..tiny });
    assert_eq!(test.got_one().data, sent[160..]);
}

#[test]
fn a_guest_without_buffers_gets_everything_when_it_has_some() {
    let mut test = fixture();
    let program = test.connect(1000);
    let sent = pattern(20_000);
    test.host_does(&program, |program| program.write(&sent));
    assert_eq!(program.unread_by_guest(), sent.len());
    let mut data = Vec::new();
    while data.len() < sent.len() {
        test.offer(1);
        data.extend(test.got_one().data);
    }
    assert_eq!(data, sent);
}

#[test]
fn what_the_program_does_not_take_is_kept_and_no_more_than_promised() {
    let mut test = fixture();
    let program = test.connect(1000);
    test.offer(30);
    let sent = pattern(60_000);
    // The socket's buffer is full, and then ours.
    for _ in 0..4 {
        test.send_data(&packet(1000, 80, Op::Data), &sent);
    }
    assert!(test.got().is_empty(), "no credit for what is not taken");
    let mut taken = Vec::new();
    while taken.len() < 4 * sent.len() {
        taken.extend(test.host_does(&program, |program| program.read(SOCKET_BYTES)));
    }
    assert!(taken.chunks(sent.len()).all(|chunk| chunk == sent));
    let updates = test.got();
    assert!(updates.iter().all(|got| got.header.op == Op::CreditUpdate));
    assert_eq!(updates.len(), 3, "one for each quarter of the buffer");
    assert!(updates[2].header.fwd_cnt >= 196_608);
}

#[test]
fn a_question_for_credit_is_answered() {
    let mut test = fixture();
    let _program = test.connect(1000);
    test.offer(1);
    test.send_data(&packet(1000, 80, Op::Data), b"12345");
    test.send(&packet(1000, 80, Op::CreditRequest));
    let Header { op, fwd_cnt, buf_alloc, .. } = test.got_one().header;
    assert_eq!((op, fwd_cnt, buf_alloc), (Op::CreditUpdate, 5, 256 << 10));
}

#[test]
fn nobody_starves_beside_one_who_sends_without_end() {
    let mut test = fixture();
    let busy = test.connect(1000);
    let modest: Vec<Program> = (1001..1011).map(|port| test.connect(port)).collect();
    test.host_does(&busy, |program| program.write(&pattern(200_000)));
    modest.iter().for_each(|program| program.write(b"me too"));
    test.host_events();
    // Buffers come one by one: each is somebody's turn, and nobody has a second one before all have had one.
    let mut ports = Vec::new();
    for _ in 0..11 {
        test.offer(1);
        ports.push(test.got_one().header.dst_port);
    }
    ports.sort_unstable();
    assert_eq!(ports, (1000..=1010).collect::<Vec<_>>());
}

#[test]
fn two_who_send_without_end_get_equal_shares() {
    let mut test = fixture();
    let programs = [test.connect(1000), test.connect(1001)];
    programs.iter().for_each(|program| program.write(&pattern(200_000)));
    test.host_events();
    let mut bytes = [0, 0];
    for _ in 0..20 {
        test.offer(4);
        for got in test.got() {
            bytes[got.header.dst_port as usize - 1000] += got.data.len();
        }
    }
    assert_eq!(bytes[0], bytes[1]);
}

#[test]
fn the_end_comes_behind_the_last_bytes() {
    let mut test = fixture();
    let program = test.connect(1000);
    test.offer(32);
    let sent = pattern(10_000);
    test.host_does(&program, |program| {
        program.write(&sent);
        program.finish_sending();
    });
    let got = test.got();
    let ops: Vec<_> = got.iter().map(|got| got.header.op).collect();
    assert_eq!(ops, [Op::Data, Op::Data, Op::Data, Op::Shutdown]);
    let data: Vec<u8> = got.iter().flat_map(|got| got.data.clone()).collect();
    assert_eq!(data, sent);
}

#[test]
fn credit_that_ends_in_the_middle_of_a_buffer_ends_the_batch_there() {
    let mut test = fixture();
    let program = test.connect(1000);
    test.offer(32);
    test.send(&Header { buf_alloc: 5000, ..packet(1000, 80, Op::CreditUpdate) });
    let sent = pattern(9000);
    test.host_does(&program, |program| program.write(&sent));
    let got = test.got();
    let lengths: Vec<_> = got.iter().map(|got| (got.header.op, got.data.len())).collect();
    let first = RX_BYTES as usize - HEADER_BYTES;
    assert_eq!(lengths, [(Op::Data, first), (Op::Data, 5000 - first), (Op::CreditRequest, 0)]);
    // The buffers that were taken for the batch and not needed are there for the rest.
    test.send(&Header { buf_alloc: 5000, fwd_cnt: 5000, ..packet(1000, 80, Op::CreditUpdate) });
    let rest: Vec<u8> = test.got().iter().flat_map(|got| got.data.clone()).collect();
    assert_eq!(rest, sent[5000..]);
}

#[test]
fn a_ring_smaller_than_a_batch_is_filled_again_and_again() {
    let mut test = fixture();
    let program = test.connect(1000);
    let sent = pattern(60_000);
    test.host_does(&program, |program| program.write(&sent));
    let mut data = Vec::new();
    for _ in 0..sent.len().div_ceil(3 * (RX_BYTES as usize - HEADER_BYTES)) {
        test.offer(3);
        test.serve().unwrap();
        let got = test.got();
        assert!(got.len() <= 3);
        data.extend(got.into_iter().flat_map(|got| got.data));
    }
    assert_eq!(data, sent);
}
