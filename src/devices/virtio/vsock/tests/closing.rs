//! Ends: of one direction, of both, in good order, too slowly, and all at once.

use super::*;
use crate::devices::virtio::vsock::connection::{CLOSE_TIME, DRAIN_TIME};

fn shutdown(guest_port: u32, flags: u32) -> Header {
    Header { flags, ..packet(guest_port, 80, Op::Shutdown) }
}

#[test]
fn a_guest_that_sends_no_more_goes_on_reading() {
    let mut test = fixture();
    let program = test.connect(1000);
    test.offer(2);
    test.send_data(&packet(1000, 80, Op::Data), b"last");
    test.send(&shutdown(1000, SHUTDOWN_SEND));
    assert!(!program.sees_the_end());
    assert_eq!(program.read(100), b"last");
    assert!(program.sees_the_end() && !program.is_dropped());
    test.host_does(&program, |program| program.write(b"answer"));
    assert_eq!(test.got_one().data, b"answer");
}

#[test]
fn the_end_comes_behind_what_is_kept() {
    let mut test = fixture();
    let program = test.connect(1000);
    test.offer(2);
    test.send_data(&packet(1000, 80, Op::Data), &[7; 20_000]);
    test.send(&shutdown(1000, SHUTDOWN_SEND));
    let mut taken = 0;
    while !program.sees_the_end() {
        taken += test.host_does(&program, |program| program.read(5000)).len();
    }
    assert_eq!(taken, 20_000);
}

#[test]
fn a_guest_that_reads_no_more_is_sent_no_more() {
    let mut test = fixture();
    let program = test.connect(1000);
    test.offer(2);
    test.send(&shutdown(1000, SHUTDOWN_RECEIVE));
    assert!(program.cannot_write());
    let end = test.got_one().header;
    assert_eq!((end.op, end.flags), (Op::Shutdown, SHUTDOWN_SEND));
    test.host_does(&program, |program| program.write(b"nobody wants this"));
    assert!(test.got().is_empty());
    test.send_data(&packet(1000, 80, Op::Data), b"but this");
    assert_eq!(program.read(100), b"but this");
}

#[test]
fn a_program_that_sends_no_more_goes_on_reading() {
    let mut test = fixture();
    let program = test.connect(1000);
    test.offer(3);
    program.write(b"last");
    test.host_does(&program, Program::finish_sending);
    let got = test.got();
    assert_eq!((got[0].header.op, &got[0].data[..]), (Op::Data, &b"last"[..]));
    assert_eq!((got[1].header.op, got[1].header.flags), (Op::Shutdown, SHUTDOWN_SEND));
    test.send_data(&packet(1000, 80, Op::Data), b"answer");
    assert_eq!(program.read(100), b"answer");
    assert_eq!(test.counted()[0], 1);
}

#[test]
fn a_program_that_is_gone_ends_the_connection_in_good_order() {
    let mut test = fixture();
    let program = test.connect(1000);
    test.offer(3);
    program.write(b"farewell");
    test.host_does(&program, Program::close);
    let got = test.got();
    assert_eq!(got[0].data, b"farewell");
    assert_eq!((got[1].header.op, got[1].header.flags), (Op::Shutdown, SHUTDOWN_BOTH));
    assert!(program.is_dropped());
    test.send_data(&packet(1000, 80, Op::Data), b"too late, but not wrong");
    assert!(test.got().is_empty());
    test.send(&packet(1000, 80, Op::Reset));
    assert_eq!(test.counted(), [0, 1, 0, 0]);
    assert!(test.got().is_empty(), "no reset answers a reset");
}

#[test]
fn a_guest_that_does_not_confirm_the_end_is_reset() {
    let mut test = fixture();
    let program = test.connect(1000);
    test.offer(3);
    test.host_does(&program, Program::close);
    assert_eq!(test.got_ops(), [Op::Shutdown]);
    test.wait(CLOSE_TIME - Duration::from_millis(1));
    assert!(test.got().is_empty());
    test.wait(Duration::from_millis(1));
    assert_eq!(test.got_ops(), [Op::Reset]);
    assert_eq!(test.counted(), [0, 1, 0, 0]);
}

#[test]
fn a_guest_that_closes_hears_so_at_once_and_nothing_it_sent_is_lost() {
    let mut test = fixture();
    let program = test.connect(1000);
    test.send_data(&packet(1000, 80, Op::Data), &[7; 20_000]);
    test.offer(2);
    test.send(&shutdown(1000, SHUTDOWN_BOTH));
    assert_eq!(test.got_ops(), [Op::Reset]);
    // It may use the port again, while the program still reads what it sent before.
    test.send(&packet(1000, 80, Op::Request));
    assert_eq!(test.got_ops(), [Op::Response]);
    let mut taken = 0;
    while !program.sees_the_end() {
        taken += test.host_does(&program, |program| program.read(3000)).len();
    }
    assert_eq!(taken, 20_000);
    assert!(program.is_dropped());
    assert_eq!(test.counted()[0], 1);
}

#[test]
fn what_a_program_never_takes_is_given_up() {
    let mut test = fixture();
    let program = test.connect(1000);
    test.offer(1);
    test.send_data(&packet(1000, 80, Op::Data), &[7; 20_000]);
    test.send(&packet(1000, 80, Op::Reset));
    test.wait(DRAIN_TIME / 2);
    // Something taken is a reason to wait.
    test.host_does(&program, |program| program.read(10));
    test.wait(DRAIN_TIME - Duration::from_millis(1));
    assert!(!program.is_dropped());
    test.wait(Duration::from_millis(1));
    assert!(program.is_dropped());
    assert_eq!(test.counted()[0], 0);
}

#[test]
fn a_guest_that_closes_without_receive_buffers_does_not_keep_the_program_waiting() {
    let mut test = fixture();
    let program = test.connect(1000);
    test.send(&shutdown(1000, SHUTDOWN_BOTH));
    assert!(program.is_dropped());
    test.offer(1);
    assert_eq!(test.got_ops(), [Op::Reset]);
}

#[test]
fn a_reset_of_the_guest_ends_both() {
    let mut test = fixture();
    let program = test.connect(1000);
    test.send(&packet(1000, 80, Op::Reset));
    assert!(program.is_dropped());
    assert_eq!(test.counted(), [0, 1, 0, 0]);
    // What comes now belongs to nobody.
    test.offer(1);
    test.send_data(&packet(1000, 80, Op::Data), b"late");
    assert_eq!(test.got_ops(), [Op::Reset]);
}

#[test]
fn a_program_that_leaves_what_it_was_sent_does_not_stop_the_guest() {
    let mut test = fixture();
    let program = test.connect(1000);
    test.offer(2);
    test.send_data(&packet(1000, 80, Op::Data), &[7; 20_000]);
    test.host_does(&program, Program::close);
    assert_eq!(test.got()[0].header.fwd_cnt, 20_000, "thrown away is as good as taken");
}

#[test]
fn everything_ends_with_the_device() {
    let mut test = fixture();
    let programs = [test.connect(1000), test.connect(1001)];
    let counts = Arc::clone(&test.counts);
    drop(test);
    assert!(programs.iter().all(Program::is_dropped));
    assert_eq!(counts.open.load(Ordering::Relaxed), 0);
}

#[test]
fn a_restored_driver_hears_once_that_its_connections_are_gone() {
    let (memory, (_, msix)) = (guest_ram(), open_msix(3));
    let mut events = Driver::new(&memory, 2, 16);
    let mut queues = Queues(vec![None, None, Some(events.device(true, &msix))]);
    let due = AtomicBool::new(true);
    announce_reset(&due, &mut queues).unwrap();
    assert!(due.load(Ordering::Relaxed), "no buffer yet");
    memory.write_obj(u32::MAX, GuestAddress(DATA)).unwrap();
    for _ in 0..2 {
        events.offer(&[writable(DATA, 4)]);
        announce_reset(&due, &mut queues).unwrap();
    }
    assert_eq!(events.used(), [(0, 4)]);
    assert_eq!(memory.read_obj::<u32>(GuestAddress(DATA)).unwrap(), TRANSPORT_RESET);

    let due = AtomicBool::new(true);
    events.offer(&[writable(DATA, 3)]);
    announce_reset(&due, &mut queues).unwrap();
    assert!(matches!(announce_reset(&due, &mut queues), Err(Fault::Chain(_)) | Ok(())));
}
