//! The size of the terminal in whose foreground we run is the guest's console's.

use std::io;
use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};

use crate::backend::console::{ConsoleHub, terminal};

/// Tells the console the size of our stdout's terminal, now and when it changes. Without a terminal there is nothing to tell.
/// Must be called inside a tokio runtime.
pub(super) fn follow(console: &Arc<ConsoleHub>) -> io::Result<()> {
    let Some(size) = terminal::window_size(io::stdout()) else { return Ok(()) };
    let mut changes = signal(SignalKind::window_change())?;
    console.window().set(size);
    let console = Arc::clone(console);
    tokio::spawn(async move {
        while changes.recv().await.is_some() {
            if let Some(size) = terminal::window_size(io::stdout()) {
                console.window().set(size);
            }
        }
    });
    Ok(())
}
