//! The console's host side, on pipes and a terminal.

use std::io::Read;
use std::sync::Arc;

use super::input::QUEUE_BYTES;
use super::keyboard::Escape;
use super::lines::TAIL_LINES;
use super::*;

#[test]
fn lines_are_plain_and_bounded() {
    let (reader, writer) = nix::unistd::pipe().unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    let console = ConsoleHub::new(writer, 64).unwrap();
    console.watch_lines(move |line| log.lock().unwrap().push(line.to_owned()));
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
    let console = Arc::new(ConsoleHub::new(writer, 1024).unwrap());
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
    let console = ConsoleHub::new(writer, 1024).unwrap();
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
}

#[test]
fn a_terminal_nobody_reads_stops_only_until_cancelled() {
    let terminal = nix::pty::openpty(None, None).unwrap();
    let console = Arc::new(ConsoleHub::new(terminal.slave, 1024).unwrap());
    let blocked = Arc::clone(&console);
    let thread = std::thread::spawn(move || blocked.write(b"one line of text\n".repeat(1 << 16).as_slice()));
    while console.bytes() == 0 {
        std::thread::yield_now();
    }
    console.cancel();
    thread.join().unwrap();
}

fn put(console: &ConsoleHub, data: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(console.input().put(data));
}

#[test]
fn what_clients_type_waits_in_a_bounded_queue_until_the_guest_takes_it() {
    let (_reader, writer) = nix::unistd::pipe().unwrap();
    let console = Arc::new(ConsoleHub::new(writer, 1024).unwrap());
    let typed: Vec<u8> = (0..3 * QUEUE_BYTES).map(|at| (at % 251) as u8).collect();
    let (hub, data) = (Arc::clone(&console), typed.clone());
    let client = std::thread::spawn(move || put(&hub, &data));
    let mut taken = Vec::new();
    while taken.len() < typed.len() {
        let mut fds =
            [nix::poll::PollFd::new(std::os::fd::AsFd::as_fd(console.input()), nix::poll::PollFlags::POLLIN)];
        assert_eq!(nix::poll::poll(&mut fds, 10_000_u16).unwrap(), 1, "there is more to come");
        let piece = console.input().read(usize::MAX);
        assert!(piece.len() <= QUEUE_BYTES, "{}", piece.len());
        taken.extend(piece);
    }
    client.join().unwrap();
    assert_eq!(taken, typed);
    assert_eq!(console.input().read(10), b"");
    let mut fds =
        [nix::poll::PollFd::new(std::os::fd::AsFd::as_fd(console.input()), nix::poll::PollFlags::POLLIN)];
    assert_eq!(nix::poll::poll(&mut fds, 0_u16).unwrap(), 0, "nothing is left");
}

#[test]
fn nobody_waits_for_a_console_that_is_gone() {
    let (_reader, writer) = nix::unistd::pipe().unwrap();
    let console = Arc::new(ConsoleHub::new(writer, 1024).unwrap());
    let hub = Arc::clone(&console);
    let client = std::thread::spawn(move || put(&hub, &vec![b'x'; 2 * QUEUE_BYTES]));
    console.close();
    client.join().unwrap();
}

#[test]
fn the_last_size_told_is_the_consoles() {
    let (_reader, writer) = nix::unistd::pipe().unwrap();
    let console = ConsoleHub::new(writer, 1024).unwrap();
    assert_eq!(console.window().size(), None);
    for size in [WindowSize { cols: 80, rows: 24 }, WindowSize { cols: u16::MAX, rows: 1 }] {
        console.window().set(size);
        assert_eq!(console.window().size(), Some(size));
    }
}

#[test]
fn a_terminal_is_put_back_even_when_nothing_is_dropped() {
    let pty =
        nix::pty::openpty(&nix::pty::Winsize { ws_row: 33, ws_col: 111, ws_xpixel: 0, ws_ypixel: 0 }, None)
            .unwrap();
    let local = nix::sys::termios::LocalFlags::ICANON;
    let is_cooked = || nix::sys::termios::tcgetattr(&pty.slave).unwrap().local_flags.contains(local);
    assert_eq!(terminal::window_size(&pty.slave), Some(WindowSize { cols: 111, rows: 33 }));
    let raw = terminal::RawTerminal::enter(&pty.slave).unwrap();
    assert!(!is_cooked());
    terminal::restore();
    assert!(is_cooked());
    drop(raw);
    assert!(is_cooked());
}

#[test]
fn keys_reach_the_guest_when_it_reads_and_a_full_keyboard_loses_them() {
    let pty = nix::pty::openpty(None, None).unwrap();
    let mut input = ConsoleInput::new(pty.slave.try_clone().unwrap()).unwrap();
    let typed = |keys: &[u8]| assert_eq!(nix::unistd::write(&pty.master, keys).unwrap(), keys.len());
    typed(b"ls\r");
    let mut read = Vec::new();
    while read.len() < 3 {
        read.extend(input.read(64).unwrap());
    }
    assert_eq!(read, b"ls\r");
    for _ in 0..2048 {
        typed(&[b'k'; 64]);
    }
    // A guest that reads nothing keeps nobody from typing; then it finds what a pipe holds.
    let mut kept = 0;
    while kept < 4096 {
        kept += input.read(4096).unwrap().len();
    }
    drop(input);
    assert!(terminal::window_size(&pty.slave).is_none(), "a terminal without a size");
}
