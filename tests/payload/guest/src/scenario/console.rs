//! The virtio console. What is said here goes through the device itself: there is no UART in this machine.

use core::fmt::Write;

use super::DEVICE_VECTOR;
use crate::virtio::console::{Console, RECEIVE_BYTES};
use crate::virtio::queue::WRITE;
use crate::{cmdline, gate, io};

/// Input put together to lines.
struct Line {
    bytes: [u8; 256],
    len: usize,
}

impl Line {
    fn new() -> Self {
        Self { bytes: [0; 256], len: 0 }
    }

    /// Takes a byte; answers when it completes a line, and tells whether that line said `end`.
    fn push(&mut self, byte: u8, console: &mut Console) -> bool {
        self.bytes[self.len] = byte;
        self.len = (self.len + 1) % self.bytes.len();
        if byte != b'\n' {
            return false;
        }
        let text = core::str::from_utf8(&self.bytes[..self.len]).unwrap_or("?");
        let _ = write!(console, "got {text}");
        self.len = 0;
        text == "end\n"
    }

    /// Answers lines until one says `end`. Three bytes are read at a time, so that input has to wait for room.
    fn answer_all(&mut self, console: &mut Console) {
        while let Ok(len) = console.read(3) {
            for at in 0..u64::from(len) {
                let byte = io::peek(console.input + at);
                if self.push(byte, console) {
                    return;
                }
            }
        }
    }
}

/// Answers each line of input until one says `end`.
pub(super) fn echo() {
    let Some(mut console) = Console::open(Some(DEVICE_VECTOR)) else { return };
    let _ = console.write_bytes(b"ready\n");
    Line::new().answer_all(&mut console);
}

/// The same, but after the first bytes the driver starts anew.
pub(super) fn echo_across_reset() {
    let Some(mut console) = Console::open(Some(DEVICE_VECTOR)) else { return };
    let mut line = Line::new();
    if let Ok(len) = console.read(3) {
        (0..u64::from(len)).for_each(|at| _ = line.push(io::peek(console.input + at), &mut console));
    }
    let mut console = Console::start(console.device);
    line.answer_all(&mut console);
}

/// Writes `lines` lines of 64 bytes.
pub(super) fn flood() {
    let Some(mut console) = Console::open(Some(DEVICE_VECTOR)) else { return };
    let mut line = [b'x'; 64];
    line[63] = b'\n';
    for _ in 0..cmdline::number("lines", 1) {
        let _ = console.write_bytes(&line);
    }
}

/// Never gives the device a buffer for its input.
pub(super) fn deaf() {
    let Some(mut console) = Console::open(None) else { return };
    console.receive.ring();
    let _ = console.write_bytes(b"deaf\n");
    gate::halt_forever();
}

/// Buffers of the wrong kind; the outcome of each, and an echo at the end.
pub(super) fn abuse() {
    let Some(mut console) = Console::open(None) else { return };
    let (input, device) = (console.input, console.device);
    for (name, receive, part) in [
        ("output-in-the-hole", false, (0xd000_0000, 64, 0)),
        ("output-of-32-mib", false, (0x200_0000, 32 << 20, 0)),
        ("output-of-nothing", false, (input, 0, 0)),
        ("output-the-device-writes", false, (input, 64, WRITE)),
        ("input-in-the-hole", true, (0xd000_0000, 64, WRITE)),
        ("input-the-device-reads", true, (input, RECEIVE_BYTES, 0)),
        ("input-of-nothing", true, (input, 0, WRITE)),
    ] {
        let queue = if receive { &mut console.receive } else { &mut console.transmit };
        queue.chain(0, &[part]);
        queue.offer(0);
        queue.ring();
        let outcome = if device.wait(queue).is_ok() { "used" } else { "needs-reset" };
        console = Console::start(device);
        let _ = writeln!(console, "case {name} {outcome}");
    }
    Line::new().answer_all(&mut console);
}
