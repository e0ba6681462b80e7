//! The console between a driver's rings and two pipes.

use std::io::Read as _;
use std::os::fd::OwnedFd;

use nix::unistd::{pipe, write};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::*;
use crate::backend::console::WindowSize;
use crate::devices::virtio::testing::{DATA, Driver, HOLE, guest_ram, open_msix, readable, writable};

struct Fixture {
    memory: GuestMemoryMmap,
    receive: Driver,
    transmit: Driver,
    queues: Queues,
    console: Console,
    handler: ConsoleHandler,
    /// How often the driver was told of another size.
    resized: Arc<AtomicU64>,
    /// What the host types.
    keyboard: Option<OwnedFd>,
    screen: std::fs::File,
}

fn fixture() -> Fixture {
    let (memory, (_, msix)) = (guest_ram(), open_msix(2));
    let (screen, output) = pipe().unwrap();
    let (input, keyboard) = pipe().unwrap();
    let hub = Arc::new(ConsoleHub::new(output, 1024).unwrap());
    let console = Console::new(hub, ConsoleInput::new(input));
    let resized = Arc::new(AtomicU64::new(0));
    let told = Arc::clone(&resized);
    let handler = console.handler(move || {
        told.fetch_add(1, Ordering::Relaxed);
    });
    let (receive, transmit) = (Driver::new(&memory, 0, 64), Driver::new(&memory, 1, 64));
    let queues = Queues(vec![Some(receive.device(true, &msix)), Some(transmit.device(true, &msix))]);
    Fixture {
        memory,
        receive,
        transmit,
        queues,
        console,
        handler,
        resized,
        keyboard: Some(keyboard),
        screen: screen.into(),
    }
}

impl Fixture {
    fn type_in(&self, text: &[u8]) {
        write(self.keyboard.as_ref().unwrap(), text).unwrap();
    }

    fn on_host(&mut self) -> Listen {
        self.handler.on_host(&mut self.queues, STDIN).unwrap()
    }

    fn bytes(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }
}

#[test]
fn output_goes_to_the_screen_from_scattered_buffers() {
    let mut test = fixture();
    test.memory.write_slice(b"hello, world\n", GuestAddress(DATA)).unwrap();
    test.transmit.offer(&[readable(DATA, 7), readable(DATA + 7, 0), readable(DATA + 7, 6)]);
    test.transmit.offer(&[readable(DATA, 5)]);
    test.handler.on_queue(&mut test.queues, TRANSMIT).unwrap();
    let mut shown = [0; 18];
    test.screen.read_exact(&mut shown).unwrap();
    assert_eq!(&shown, b"hello, world\nhello");
    assert_eq!(test.transmit.used(), [(0, 0), (3, 0)], "nothing is written to a transmit buffer");
    assert_eq!(test.console.counters()()["bytes_out"], 18);
}

#[test]
fn input_fills_the_buffers_there_are() {
    let mut test = fixture();
    for index in 0..3 {
        test.receive.offer(&[writable(DATA + index * 16, 4)]);
    }
    test.type_in(b"0123456789");
    assert_eq!(test.on_host(), Listen::Yes);
    assert_eq!(test.receive.used(), [(0, 4), (1, 4), (2, 2)]);
    assert_eq!(test.bytes(DATA, 4), b"0123");
    assert_eq!(test.bytes(DATA + 32, 2), b"89");
}

#[test]
fn input_without_buffers_waits_for_them_and_asks_for_the_doorbell() {
    let mut test = fixture();
    test.receive.offer(&[writable(DATA, 4)]);
    test.type_in(b"0123456789");
    assert_eq!(test.on_host(), Listen::Later);
    assert_eq!(test.receive.avail_event(), 1, "the next buffer rings");
    assert!(test.handler.host_sources()[STDIN].pending, "for a worker that starts after a reset");
    test.receive.offer(&[writable(DATA + 16, 64)]);
    assert_eq!(test.on_host(), Listen::Yes);
    assert_eq!(test.receive.used(), [(0, 4), (1, 6)]);
    assert_eq!(test.bytes(DATA + 16, 6), b"456789");
    assert_eq!(test.console.counters()()["bytes_in"], 10);
}

#[test]
fn the_end_of_input_comes_after_the_last_of_it() {
    let mut test = fixture();
    test.type_in(b"bye");
    test.keyboard = None;
    assert_eq!(test.on_host(), Listen::Later);
    assert_eq!(test.on_host(), Listen::Later);
    test.receive.offer(&[writable(DATA, 64)]);
    assert_eq!(test.on_host(), Listen::No);
    assert_eq!(test.bytes(DATA, 3), b"bye");
    assert_eq!(test.handler.host_sources().len(), 2, "a worker that starts now does not wait for it");
    assert_eq!(test.on_host(), Listen::No);
}

#[test]
fn a_console_that_is_asked_without_input_does_not_wait_for_it() {
    let mut test = fixture();
    assert_eq!(test.on_host(), Listen::Yes);
    test.queues.0[RECEIVE] = None;
    assert_eq!(test.on_host(), Listen::Yes);
    test.type_in(b"x");
    assert_eq!(test.on_host(), Listen::Later, "a driver without a receive queue");
    assert_eq!(test.on_host(), Listen::Later);
}

#[test]
fn what_is_no_console_buffer_is_a_fault() {
    // Queue, chain.
    for (index, chain) in [
        (TRANSMIT, vec![readable(HOLE - 4, 8)]),
        (TRANSMIT, vec![readable(HOLE, 1)]),
        (TRANSMIT, vec![readable(u64::MAX, 2)]),
        (TRANSMIT, vec![readable(DATA, MAX_OUTPUT_BYTES as u32), readable(0, 1)]),
        (RECEIVE, vec![readable(DATA, 64)]),
        (RECEIVE, vec![writable(DATA, 0)]),
        (RECEIVE, vec![writable(HOLE - 4, 8)]),
    ] {
        let mut test = fixture();
        test.type_in(b"x");
        let result = if index == TRANSMIT {
            test.transmit.offer(&chain);
            test.handler.on_queue(&mut test.queues, TRANSMIT)
        } else {
            test.receive.offer(&chain);
            test.handler.on_host(&mut test.queues, STDIN).map(drop)
        };
        assert!(result.is_err(), "{chain:x?}");
        assert_eq!(test.console.counters()()["bytes_out"], 0);
        assert_eq!([test.transmit.used(), test.receive.used()], [[], []]);
    }
}

#[test]
fn input_of_clients_and_of_stdin_is_merged() {
    let mut test = fixture();
    let typed = |test: &Fixture, text: &[u8]| {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(test.console.hub.input().put(text));
    };
    typed(&test, b"client ");
    test.type_in(b"stdin");
    assert_eq!(test.handler.on_host(&mut test.queues, CLIENTS).unwrap(), Listen::Later, "no buffers yet");
    assert_eq!(test.on_host(), Listen::Later, "what was taken first is first");
    test.receive.offer(&[writable(DATA, 64)]);
    assert_eq!(test.handler.on_host(&mut test.queues, CLIENTS).unwrap(), Listen::Yes);
    test.receive.offer(&[writable(DATA + 64, 64)]);
    assert_eq!(test.on_host(), Listen::Yes);
    assert_eq!(test.receive.used(), [(0, 7), (1, 5)]);
    assert_eq!([test.bytes(DATA, 7), test.bytes(DATA + 64, 5)].concat(), b"client stdin");
    assert_eq!(test.handler.on_host(&mut test.queues, CLIENTS).unwrap(), Listen::Yes, "nothing more");
    assert_eq!(test.console.counters()()["bytes_in"], 12);
}

#[test]
fn the_driver_hears_of_each_size_and_reads_it() {
    let mut test = fixture();
    assert_eq!(test.console.config(), [0; 12]);
    assert!(!test.handler.host_sources()[WINDOW].pending);
    test.console.hub.window().set(WindowSize { cols: 132, rows: 50 });
    assert_eq!(test.handler.on_host(&mut test.queues, WINDOW).unwrap(), Listen::Yes);
    assert_eq!(test.resized.load(Ordering::Relaxed), 1);
    assert_eq!(test.console.config(), [132, 0, 50, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert!(test.handler.host_sources()[WINDOW].pending, "a driver that starts later is told too");
}

#[test]
fn emergency_writes_are_console_output_whatever_was_negotiated() {
    let mut test = fixture();
    test.console.write_config(EMERG_WR, b"h");
    test.console.write_config(EMERG_WR, b"i\0\0\0");
    for (offset, data) in
        [(0, b"no".as_slice()), (9, b"n"), (EMERG_WR, b""), (EMERG_WR, b"12345678"), (usize::MAX, b"n")]
    {
        test.console.write_config(offset, data);
    }
    let mut shown = [0; 2];
    test.screen.read_exact(&mut shown).unwrap();
    assert_eq!(&shown, b"hi");
    assert_eq!(test.console.counters()()["bytes_out"], 2);
    assert_eq!(test.console.config(), [0; 12], "it is not kept");
}
