//! Nestling's own log, on stderr: stdout belongs to the guest's console.

use std::io;

use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::layer;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::spec::config::LogFormat;

/// Either variable holds `LEVEL` or `TARGET=LEVEL,…`; the first one set wins.
const FILTER_VARIABLES: [&str; 2] = ["NESTLING_LOG", "RUST_LOG"];

/// Starts the log in the wanted form.
pub(super) fn start(format: LogFormat) {
    let layer = layer().with_writer(io::stderr).with_ansi(false);
    let layer = match format {
        LogFormat::Text => layer.boxed(),
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
    };
    // An error says that a log exists already, and then that one is used.
    let _ = tracing_subscriber::registry().with(layer).with(filter()).try_init();
}

fn filter() -> Targets {
    FILTER_VARIABLES
        .iter()
        .find_map(|name| std::env::var(name).ok())
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| Targets::new().with_default(LevelFilter::INFO))
}
