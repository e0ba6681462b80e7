//! File trees on a stream: what `nestling cp` carries, in either direction.
//!
//! A tree is messages ([`Entry`]), and after each file its bytes in data frames, the last of them empty:
//!
//! ```text
//! {"type":"directory","name":"site","mode":493}
//! {"type":"file","name":"index.html","mode":420}   0x13 "<html>…"   0x13 ""
//! {"type":"symlink","name":"latest","target":"index.html"}
//! {"type":"up"}
//! {"type":"end","entries":3,"bytes":6}
//! ```
//!
//! Names are single components, and `up` leaves a directory: there is no path in a tree that could lead anywhere else.
//! The receiver goes down by descriptors and follows no link on the way, so that a link that was put, or that somebody
//! puts meanwhile, leads nowhere else either. What else a directory has (devices, pipes, sockets) is left out and named.

use serde::{Deserialize, Serialize};

use crate::{ByteString, Failure, FailureKind, ProtocolError};

mod receive;
mod send;

pub use receive::{Destination, Options, receive};
pub use send::send;

/// How deep a tree may be.
pub const MAX_DEPTH: usize = 128;

/// The longest name of a file, as Linux has it.
const MAX_NAME: usize = 255;

/// When a file's contents were changed last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Modified {
    /// Seconds since 1970.
    pub seconds: i64,
    /// And nanoseconds.
    pub nanoseconds: u32,
}

/// One step through a tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Entry {
    /// A directory; what follows is in it, until [`Entry::Up`].
    Directory {
        /// One component.
        name: ByteString,
        /// Permission bits.
        mode: u32,
        /// When it was changed.
        #[serde(default)]
        modified: Option<Modified>,
    },
    /// The directory is complete.
    Up,
    /// A file; its bytes follow.
    File {
        /// One component.
        name: ByteString,
        /// Permission bits.
        mode: u32,
        /// How long it was when it was opened: for showing progress.
        #[serde(default)]
        size: u64,
        /// When it was changed.
        #[serde(default)]
        modified: Option<Modified>,
    },
    /// A symbolic link.
    Symlink {
        /// One component.
        name: ByteString,
        /// What it holds.
        target: ByteString,
    },
    /// Something that is left out.
    Skipped {
        /// One component.
        name: ByteString,
        /// Why: `a socket`.
        reason: String,
    },
    /// All is said.
    End(Totals),
    /// The sender cannot go on.
    Failed(Failure),
}

/// What a tree came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Totals {
    /// Files, directories and links.
    pub entries: u64,
    /// Bytes in files.
    pub bytes: u64,
    /// What was left out.
    pub skipped: u64,
}

/// Why a tree was not carried over whole.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// This end's files.
    #[error("{doing} {path}: {}", describe(.source))]
    Local {
        /// What was tried: `cannot open`.
        doing: &'static str,
        /// On what.
        path: String,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// A name that is no single component.
    #[error("the name {0:?} is not one component of a path")]
    BadName(ByteString),
    /// A tree that is deeper than [`MAX_DEPTH`].
    #[error("{0}: more than {MAX_DEPTH} directories deep")]
    TooDeep(String),
    /// Entries in an order that makes no tree.
    #[error("the peer sent no tree: {0}")]
    NoTree(&'static str),
    /// The other end said that it failed.
    #[error("{0}")]
    Peer(#[source] Failure),
    /// The connection.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
}

/// The error's own words, without the number that Rust puts behind them.
fn describe(error: &std::io::Error) -> String {
    error
        .raw_os_error()
        .map_or_else(|| error.to_string(), |code| nix::errno::Errno::from_raw(code).desc().into())
}

impl FilesError {
    fn local(doing: &'static str, path: impl std::fmt::Display, source: impl Into<std::io::Error>) -> Self {
        Self::Local { doing, path: path.to_string(), source: source.into() }
    }

    /// What to tell the peer.
    pub fn failure(&self) -> Failure {
        let kind = match self {
            Self::Local { source, .. } => source.into(),
            Self::BadName(_) | Self::NoTree(_) | Self::TooDeep(_) | Self::Protocol(_) => {
                FailureKind::BadRequest
            }
            Self::Peer(failure) => failure.kind,
        };
        Failure::new(kind, self.to_string())
    }
}

#[cfg(test)]
mod tests;
