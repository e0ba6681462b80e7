//! Sessions: one request on a connection of its own.
//!
//! | request | answer | then | at last |
//! |---|---|---|---|
//! | exec | `started` | stdin and [`Input`] to the agent; stdout, stderr to the host | `exited` |
//! | put | `accepted` | a [tree](crate::files) to the agent | `done` |
//! | get | `accepted` | a [tree](crate::files) to the host | its `end` |
//! | forward | `accepted` | bytes without frames, both ways, either half closed by itself | |
//! | stats | `stats` | | |
//! | ready | `readiness` | | |
//!
//! In place of each answer, and until the last one, `failed` may come. Then the agent closes the connection.
//!
//! A host that closes its half of an exec's connection has gone, and the program's whole session goes too: the input's end
//! is an empty stdin frame, not the connection's. Only a forward has halves.

use serde::{Deserialize, Serialize};

use crate::{ByteString, Stats};

/// The host's first message on a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opening {
    /// The version that [`crate::Welcome`] named.
    pub version: u16,
    /// What is wanted.
    pub request: Request,
}

impl From<Request> for Opening {
    fn from(request: Request) -> Self {
        Self { version: crate::VERSION, request }
    }
}

/// What a session is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Request {
    /// Run a program.
    Exec(Exec),
    /// Make a file, link or directory tree in the guest.
    Put {
        /// Where: a directory that exists takes the tree under its own name, anything else becomes the tree.
        path: ByteString,
        /// Whose it is to be, as in [`Program::user`]; else the agent's.
        #[serde(default)]
        owner: Option<String>,
    },
    /// Send a file or directory tree to the host.
    Get {
        /// What. A link is followed here, and nowhere within the tree.
        path: ByteString,
    },
    /// Connect to a TCP port as the guest sees it.
    Forward {
        /// An address, or a name in the guest's `/etc/hosts`.
        host: String,
        /// The port.
        port: u16,
    },
    /// Figures about the guest.
    Stats,
    /// Try the ready rule now.
    Ready,
    /// One that this version does not know: answered with `unsupported`.
    #[serde(other)]
    Unknown,
}

/// A program and what it is started with.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// The program, by path or for PATH to find, and its arguments. Not empty.
    pub argv: Vec<ByteString>,
    /// Variables, over those of [`crate::Configuration`] and the user's HOME, USER and a usual PATH.
    #[serde(default)]
    pub env: Vec<(ByteString, ByteString)>,
    /// Its directory; else `/`.
    #[serde(default)]
    pub cwd: Option<ByteString>,
    /// `NAME`, `UID`, `NAME:GROUP`, `UID:GID`, from the guest's own /etc/passwd and /etc/group; else the agent's own.
    #[serde(default)]
    pub user: Option<String>,
}

impl Program {
    /// A program with nothing but its arguments.
    pub fn new<S: AsRef<str>>(argv: impl IntoIterator<Item = S>) -> Self {
        Self {
            argv: argv.into_iter().map(|word| ByteString::from(word.as_ref())).collect(),
            ..Self::default()
        }
    }
}

/// A program whose streams are the session's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    /// The program.
    #[serde(flatten)]
    pub program: Program,
    /// With a terminal of this size, whose output is all stdout; else pipes.
    #[serde(default)]
    pub terminal: Option<TerminalSize>,
    /// Whether stdin frames will come; else the input is empty from the start. A terminal has input in any case.
    #[serde(default)]
    pub stdin: bool,
}

/// A terminal's size in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Lines.
    pub rows: u16,
    /// Characters a line.
    pub columns: u16,
}

/// What the host may say while a program runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Input {
    /// The terminal has another size.
    Resize(TerminalSize),
    /// A signal for the program (not its children).
    Signal {
        /// Its number.
        signal: i32,
    },
    /// One that this version does not know: ignored.
    #[serde(other)]
    Unknown,
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// By itself, with this status.
    Status(i32),
    /// By this signal.
    Signal(i32),
}

impl Outcome {
    /// The exit code that a shell gives: the status, or 128 and the signal's number.
    pub fn exit_code(self) -> i32 {
        match self {
            Self::Status(status) => status,
            Self::Signal(signal) => 128_i32.saturating_add(signal),
        }
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Self::Status(status) => write!(f, "exited with status {status}"),
            Self::Signal(signal) => write!(f, "killed by signal {signal}"),
        }
    }
}

/// What the agent says on a session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Response {
    /// Put, get, forward: go on.
    Accepted,
    /// Exec: the program runs.
    Started {
        /// Its process.
        pid: i32,
    },
    /// Exec: the program has ended, and all its output was sent.
    Exited {
        /// How.
        outcome: Outcome,
    },
    /// Put: all is in place.
    Done(crate::files::Totals),
    /// The figures.
    Stats(Box<Stats>),
    /// Whether the ready rule holds.
    Readiness {
        /// Whether it does.
        ready: bool,
        /// What was found: one sentence.
        message: String,
    },
    /// No, or no longer.
    Failed(Failure),
    /// One that this version does not know.
    #[serde(other)]
    Unknown,
}

/// Why something was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What kind of reason.
    pub kind: FailureKind,
    /// The reason: one sentence.
    pub message: String,
}

impl Failure {
    /// Puts the two together.
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// The exit code that a shell gives when a program cannot be started: 127 where there is none, else 126.
    pub fn exit_code(&self) -> i32 {
        if self.kind == FailureKind::NotFound { 127 } else { 126 }
    }
}

/// Kinds of reasons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// The request makes no sense.
    BadRequest,
    /// This agent cannot do that.
    Unsupported,
    /// There is no such program, file, user, host.
    NotFound,
    /// It is there, but not to be used so: no permission, not executable, not a directory.
    Denied,
    /// Too much goes on already.
    Busy,
    /// The guest's system refused.
    Failed,
    /// One that this version does not know.
    #[serde(other)]
    Unknown,
}

impl From<&std::io::Error> for FailureKind {
    fn from(error: &std::io::Error) -> Self {
        use std::io::ErrorKind;
        match error.kind() {
            ErrorKind::NotFound => Self::NotFound,
            ErrorKind::PermissionDenied
            | ErrorKind::NotADirectory
            | ErrorKind::IsADirectory
            | ErrorKind::ReadOnlyFilesystem => Self::Denied,
            _ => Self::Failed,
        }
    }
}
