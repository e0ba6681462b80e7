//! What commands print. A reader that went away is no error: there is nobody left to tell.

use std::io::{self, Write};

use crate::agent::chain::one_line;

/// Prints text to stdout as it is.
pub(super) fn print(text: &str) {
    let _ = write_out(text.as_bytes());
}

/// Prints bytes to stdout at once; the error says that nobody reads any more.
pub(super) fn write_out(bytes: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes).and_then(|()| stdout.flush())
}

/// Prints text to stderr as it is.
pub(super) fn print_error(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// Says in one sentence what went wrong.
pub(super) fn complain(sentence: &str) {
    print_error(&format!("nestling: {}\n", one_line(sentence)));
}
