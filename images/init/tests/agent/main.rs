//! The agent as a process of its own, over Unix sockets in place of vsock; the programs, terminals and files are real.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

mod exec;
mod files;
mod forward;
mod host;
mod hostile;
mod life;
mod ready;
mod terminal;
