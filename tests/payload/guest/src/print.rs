//! Text on COM1. Without a UART the bytes go nowhere, at an exit each.

use core::fmt::{self, Write};

use crate::gate;

const COM1: u16 = 0x3f8;

/// COM1 as a sink. The emulated UART is always ready.
pub struct Com1;

impl Write for Com1 {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(|byte| gate::out8(COM1, byte));
        Ok(())
    }
}

/// Prints a line with one string instruction instead of one per character.
pub fn print_string_io(line: &str) {
    gate::out_string(COM1, line.as_bytes());
    gate::out8(COM1, b'\n');
}

/// The next byte of input, if there is one.
#[must_use]
pub fn read_byte() -> Option<u8> {
    const LINE_STATUS: u16 = COM1 + 5;
    const DATA_READY: u8 = 1;
    (gate::in8(LINE_STATUS) & DATA_READY != 0).then(|| gate::in8(COM1))
}

/// Fills `bytes` with input by one string instruction.
pub fn read_string_io(bytes: &mut [u8]) {
    gate::in_string(COM1, bytes);
}

/// Prints one line.
#[macro_export]
macro_rules! println {
    ($($argument:tt)*) => {{
        use core::fmt::Write as _;
        let _ = writeln!($crate::print::Com1, $($argument)*);
    }};
}
