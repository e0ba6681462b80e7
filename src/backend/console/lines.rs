//! The console as lines of plain text: the last of them for the status, each for whoever watches.

use std::collections::VecDeque;

/// Lines kept for the status.
pub(super) const TAIL_LINES: usize = 100;
/// Longer lines are cut.
const MAX_LINE_BYTES: usize = 512;

#[derive(Debug, Default)]
pub(super) struct Lines {
    last: VecDeque<String>,
    current: Vec<u8>,
}

impl Lines {
    /// Adds console bytes and returns the lines they complete.
    pub(super) fn push(&mut self, data: &[u8]) -> Vec<String> {
        let mut completed = Vec::new();
        for &byte in data {
            if byte != b'\n' {
                if self.current.len() < MAX_LINE_BYTES {
                    self.current.push(byte);
                }
                continue;
            }
            let line = printable(&self.current);
            self.current.clear();
            if self.last.len() == TAIL_LINES {
                self.last.pop_front();
            }
            self.last.push_back(line.clone());
            completed.push(line);
        }
        completed
    }

    /// The last lines, oldest first; an unfinished one counts.
    pub(super) fn tail(&self) -> Vec<String> {
        let unfinished = (!self.current.is_empty()).then(|| printable(&self.current));
        self.last.iter().cloned().chain(unfinished).collect()
    }
}

/// The text of a console line: no control characters, no escape sequences a terminal would act on.
#[must_use]
pub fn printable(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    let mut plain = String::with_capacity(text.len());
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        match c {
            '\u{1b}' => skip_escape(&mut rest),
            '\t' => plain.push(' '),
            c if c.is_control() => {}
            c => plain.push(c),
        }
    }
    plain.truncate(plain.trim_end().len());
    plain
}

/// Skips the rest of an ANSI control sequence after ESC.
fn skip_escape(rest: &mut std::str::Chars<'_>) {
    if rest.clone().next() == Some('[') {
        rest.next();
        rest.find(|c| ('@'..='~').contains(c));
    }
}
