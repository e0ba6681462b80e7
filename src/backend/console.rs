//! The guest's console on the host: its output goes to our stdout, into a history that any number of clients follow, and
//! line by line to whoever watches; its input comes from our stdin and from clients.

pub mod history;
mod input;
mod keyboard;
mod lines;
mod screen;
pub mod terminal;
mod window;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use self::history::History;
pub use self::input::{ConsoleInput, InputQueue};
use self::lines::Lines;
pub use self::lines::printable;
use self::screen::Screen;
pub use self::window::{Window, WindowSize};

type OnLine = Box<dyn Fn(&str) + Send + Sync>;

/// Where everything meets that has to do with the guest's console. It may be there before the machine is, and after it.
pub struct ConsoleHub {
    screen: Screen,
    history: Arc<History>,
    lines: Mutex<Lines>,
    on_line: OnceLock<OnLine>,
    input: InputQueue,
    window: Window,
}

impl ConsoleHub {
    /// Copies everything to `output` and keeps the last `history_bytes` of it.
    ///
    /// # Errors
    /// When the kernel has no descriptor left.
    pub fn new(output: OwnedFd, history_bytes: usize) -> io::Result<Self> {
        Ok(Self {
            screen: Screen::new(output)?,
            history: Arc::new(History::new(history_bytes)),
            lines: Mutex::new(Lines::default()),
            on_line: OnceLock::new(),
            input: InputQueue::new()?,
            window: Window::new()?,
        })
    }

    /// From now on `on_line` is called with each whole line, printable characters only. The first to ask is heard.
    pub fn watch_lines(&self, on_line: impl Fn(&str) + Send + Sync + 'static) {
        let _ = self.on_line.set(Box::new(on_line));
    }

    /// Takes what the guest wrote. While nobody reads our stdout it waits a second, once, and then drops (and counts) what
    /// comes for stdout until somebody reads again. Clients that follow the history are never waited for.
    pub fn write(&self, data: &[u8]) {
        self.history.push(data);
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner).push(data);
        self.screen.write(data);
        // After the bytes, so that what is logged of a line comes after the line.
        if let Some(on_line) = self.on_line.get() {
            lines.iter().for_each(|line| on_line(line));
        }
    }

    /// Bytes the guest wrote so far.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.history.total()
    }

    /// Bytes of them that our stdout did not take.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.screen.dropped()
    }

    /// The last lines, oldest first; an unfinished one counts.
    #[must_use]
    pub fn tail(&self) -> Vec<String> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).tail()
    }

    /// What the guest wrote, to be replayed and followed.
    #[must_use]
    pub fn history(&self) -> &Arc<History> {
        &self.history
    }

    /// What clients type.
    #[must_use]
    pub fn input(&self) -> &InputQueue {
        &self.input
    }

    /// The size of the terminal that shows the console.
    #[must_use]
    pub fn window(&self) -> &Window {
        &self.window
    }

    /// Nothing waits for our stdout any more: the machine is being stopped.
    pub fn cancel(&self) {
        self.screen.cancel();
    }

    /// The machine is gone: who follows the history comes to its end, and nothing that is typed is waited for.
    pub fn close(&self) {
        self.history.close();
        self.input.close();
    }
}

impl std::fmt::Debug for ConsoleHub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConsoleHub").field("bytes", &self.bytes()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
