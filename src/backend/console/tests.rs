//! The console's host side, on pipes and a terminal.

use super::*;
use std::io::Read;
use std::sync::Arc;

#[test]
fn lines_are_plain_and_bounded() {
    let (reader, writer) = nix::unistd::pipe().unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    let console = ConsoleLog::new(writer, move |line| log.lock().unwrap().push(line.to_owned())).unwrap();
    console.write(b"one\r\n\x1b[31mtwo\x1b[0m\xff\x07\nunfin");
    assert_eq!(*seen.lock().unwrap(), ["one", "two\u{fffd}"]);
    assert_eq!(console.tail(), ["one", "two\u{fffd}", "unfin"]);
    console.write(&[b'x'; 2000]);
    for _ in 0..150 {
        console.write(b"\n");
    }
    assert_eq!(console.tail().len(), TAIL_LINES);
    let mut copied = [0; 16];
    assert_eq!(nix::unistd::read(&reader, &mut copied[..4]).unwrap(), 4);
    assert_eq!(copied[..4], *b"one\r");
}

#[test]
fn nobody_reading_stops_only_until_cancelled() {
    let (_reader, writer) = nix::unistd::pipe().unwrap();
    let console = Arc::new(ConsoleLog::new(writer, |_| {}).unwrap());
    let blocked = Arc::clone(&console);
    let thread = std::thread::spawn(move || blocked.write(&vec![b'x'; 1 << 20]));
    while console.bytes() == 0 {
        std::thread::yield_now();
    }
    console.cancel();
    thread.join().unwrap();
    assert_eq!(console.bytes(), 1 << 20);
}

#[test]
fn output_nobody_takes_is_dropped_and_counted_until_somebody_does() {
    let (reader, writer) = nix::unistd::pipe().unwrap();
    let console = ConsoleLog::new(writer, |_| {}).unwrap();
    console.write(&vec![b'x'; 1 << 20]);
    let kept = (1 << 20) - console.dropped() as usize;
    assert!(kept < 1 << 20, "a pipe does not hold a megabyte");
    let mut read = vec![0; kept];
    std::fs::File::from(reader.try_clone().unwrap()).read_exact(&mut read).unwrap();
    console.write(b"again");
    let mut again = [0; 5];
    std::fs::File::from(reader).read_exact(&mut again).unwrap();
    assert_eq!(&again, b"again");
    assert_eq!(console.bytes(), (1 << 20) + 5, "the count is of what the guest wrote");
}

#[test]
fn the_escape_key_is_taken_out_of_a_terminals_input() {
    let mut escape = Escape::Ready;
    let passed: Vec<u8> = [b'a', 1, 1, b'b', 1, b'c'].into_iter().filter(|&b| escape.pass(b)).collect();
    assert_eq!(passed, [b'a', 1, b'b', b'c']);
    let mut off = Escape::Off;
    assert!(off.pass(1) && off.pass(b'x'));
}

#[test]
fn a_terminal_nobody_reads_stops_only_until_cancelled() {
    let terminal = nix::pty::openpty(None, None).unwrap();
    let console = Arc::new(ConsoleLog::new(terminal.slave, |_| {}).unwrap());
    let blocked = Arc::clone(&console);
    let thread = std::thread::spawn(move || blocked.write(b"one line of text\n".repeat(1 << 16).as_slice()));
    while console.bytes() == 0 {
        std::thread::yield_now();
    }
    console.cancel();
    thread.join().unwrap();
}
