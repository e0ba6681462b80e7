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
use crate::spec::config::{Given, LogFormat};
use crate::spec::error::{Problem, SpecError};

/// Holds `LEVEL` or `TARGET=LEVEL,…`, and is ours.
const FILTER: &str = "NESTLING_LOG";
/// The same for every program in Rust; what is not for us in it is no mistake.
const COMMON_FILTER: &str = "RUST_LOG";
const CHOICES: &str = "error, warn, info, debug, trace or off, or for example info,nestling::vmm=debug";

/// Starts the log in the wanted form, with the filter of the environment.
///
/// # Errors
/// When that filter is none; the log is started all the same.
pub(super) fn start(format: LogFormat) -> Result<(), SpecError> {
    let text = |name| std::env::var(name).ok().filter(|text: &String| !text.trim().is_empty());
    let (filter, refused) = match text(FILTER) {
        Some(text) => match read(&text) {
            Some(filter) => (filter, None),
            None => {
                (usual(), Some(Given::by_flag(FILTER, ()).refuse(Problem::Choice { text, choices: CHOICES })))
            }
        },
        None => (text(COMMON_FILTER).and_then(|text| read(&text)).unwrap_or_else(usual), None),
    };
    let layer = layer().with_writer(|| Stderr).with_ansi(false);
    let layer = match format {
        LogFormat::Text => layer.boxed(),
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
    };
    // An error says that a log exists already, and then that one is used.
    let _ = tracing_subscriber::registry().with(layer).with(filter).try_init();
    refused.map_or(Ok(()), Err)
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

fn usual() -> Targets {
    Targets::new().with_default(LevelFilter::INFO)
}

/// A word alone is a level, or a part of Nestling: any other would be a target that silences everything else.
fn read(text: &str) -> Option<Targets> {
    let is_known = |word: &str| {
        word.find('=').is_some_and(|at| at > 0)
            || word.parse::<LevelFilter>().is_ok()
            || word.starts_with("nestling")
    };
    text.split(',').map(str::trim).all(is_known).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line_whatever_it_quotes() {
        assert_eq!(line(b"WARN disk=/a\nERROR forged\x1b[2J\n"), b"WARN disk=/a\\nERROR forged\\u{1b}[2J\n");
    }

    #[test]
    fn a_filter_is_a_level_or_levels_of_parts() {
        for text in ["debug", "OFF", "warn,nestling=debug", "nestling::vmm=trace,error", "nestling"] {
            assert!(read(text).is_some(), "{text}");
        }
        for text in ["verbose", "debgu", "nestling=loud", "info debug", "="] {
            assert!(read(text).is_none(), "{text}: {:?}", read(text));
        }
    }
}
