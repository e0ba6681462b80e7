//! Nestling's own log, on stderr: stdout belongs to the guest's console.

use std::io::{self, Write};
use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::layer;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::agent::chain::one_line;
use crate::spec::config::LogFormat;

/// Either variable holds `LEVEL` or `TARGET=LEVEL,…`; the first one set wins.
const FILTER_VARIABLES: [&str; 2] = ["NESTLING_LOG", "RUST_LOG"];

/// Starts the log in the wanted form.
pub(super) fn start(format: LogFormat) {
    let layer = layer().with_writer(|| Stderr).with_ansi(false);
    let layer = match format {
        LogFormat::Text => layer.boxed(),
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
    };
    // An error says that a log exists already, and then that one is used.
    let _ = tracing_subscriber::registry().with(layer).with(filter()).try_init();
}

/// Stderr that never blocks us for long: a log nobody reads loses lines, and the VM goes on and can be stopped. Each write
/// is a whole event, and one line.
struct Stderr;

/// How long a line waits for a reader, in milliseconds.
const PATIENCE_MS: u16 = 100;
/// A pipe that poll calls writable takes this much without blocking (PIPE_BUF).
const CHUNK: usize = 4096;

impl Write for Stderr {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let line = line(data);
        let mut rest = line.as_slice();
        let stderr = io::stderr();
        while !rest.is_empty() {
            let mut fds = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
            if poll(&mut fds, PollTimeout::from(PATIENCE_MS)) == Ok(0) {
                break;
            }
            match stderr.lock().write(rest.get(..CHUNK).unwrap_or(rest)) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An event as one line: what it quotes may have line breaks of its own, and more that a terminal obeys.
fn line(event: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(event);
    let mut line = one_line(text.strip_suffix('\n').unwrap_or(&text)).into_owned().into_bytes();
    line.push(b'\n');
    line
}

fn filter() -> Targets {
    FILTER_VARIABLES
        .iter()
        .find_map(|name| std::env::var(name).ok())
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| Targets::new().with_default(LevelFilter::INFO))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line_whatever_it_quotes() {
        assert_eq!(line(b"WARN disk=/a\nERROR forged\x1b[2J\n"), b"WARN disk=/a\\nERROR forged\\u{1b}[2J\n");
    }
}
