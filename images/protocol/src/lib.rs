//! What Nestling and the agent inside its guest say to each other.
//!
//! The transport is vsock, one connection for each thing that goes on: so each has its own flow control, and none waits
//! for another. This crate knows byte streams only ([`std::io::Read`] and [`std::io::Write`], or [`frame::Decoder`] for
//! those who poll); both ends are built from it.
//!
//! ```text
//!        host (CID 2)                                    guest
//!   ┌───────────────────┐      control, one        ┌─────────────────┐
//!   │ listens on        │◀─────────────────────────│ the agent:      │
//!   │ CONTROL_PORT      │  Hello ▸  ◂ Welcome      │ connects, and   │
//!   │                   │  events ▸  ◂ orders      │ again when cut  │
//!   │                   │                          │                 │
//!   │ connects for each │      sessions, many      │ listens on      │
//!   │ exec, put, get,   │─────────────────────────▶│ AGENT_PORT      │
//!   │ forward, …        │  ◂ answer, data  Request ▸                 │
//!   └───────────────────┘                          └─────────────────┘
//! ```
//!
//! # Frames
//!
//! ```text
//!   0        4      5
//!   ┌────────┬──────┬──────────────────────┐
//!   │ length │ kind │ payload              │   length: u32, little-endian, of the payload; at most 65,536
//!   └────────┴──────┴──────────────────────┘   kind: one byte
//! ```
//!
//! | kind | payload | from whom |
//! |---|---|---|
//! | `0x01` message | one JSON object in UTF-8 | both |
//! | `0x10` stdin | bytes; none: the end of the input | host |
//! | `0x11` stdout, `0x12` stderr | bytes; none: the end of that output | agent |
//! | `0x13` data | bytes of a file; none: the end of that file | whoever sends the file |
//! | `0x80`–`0xff` | what a later version may add and an older one may ignore: skipped | |
//! | others | refused: [`ProtocolError::UnknownKind`] | |
//!
//! For example, an exec session (`▸` from the host, `◂` from the agent):
//!
//! ```text
//! ▸ 0x01 {"version":1,"request":{"type":"exec","argv":["cat"],"stdin":true}}
//! ◂ 0x01 {"type":"started","pid":212}
//! ▸ 0x10 "hello\n"      ▸ 0x10 ""
//! ◂ 0x11 "hello\n"      ◂ 0x11 ""      ◂ 0x12 ""
//! ◂ 0x01 {"type":"exited","outcome":{"status":0}}        and the agent closes the connection
//! ```
//!
//! # Versions
//!
//! [`Hello`] carries the oldest and the newest version that the agent speaks, the host picks one ([`Versions::common`])
//! and names it in [`Welcome`] and in every [`Opening`]. Within a version the protocol grows compatibly: unknown fields
//! are ignored, an unknown event is no event, an unknown order or request is answered with
//! [`FailureKind::Unsupported`], an unknown capability is none. Everything else that cannot be understood ends the
//! connection with one [`ProtocolError`].
//!
//! # Trust
//!
//! The guest is hostile to the host: nothing that is decoded here takes more memory than a frame (a few times its
//! 64 KiB once parsed), nothing panics, and [`files::receive`] writes below its destination only, whatever the names and
//! links in a tree. The host is not hostile to the guest, whose memory it owns, but programs in the guest may be: both
//! ports are below 1024, so that in the guest only a process with CAP_NET_BIND_SERVICE can pose as the agent. The host
//! should refuse a control connection whose source port is not below 1024; the agent refuses peers other than CID 2.

pub mod bytes;
pub mod control;
pub mod files;
pub mod frame;
pub mod session;
pub mod stats;

pub use bytes::{ByteString, Hex};
pub use control::{
    Answer, Capability, Configuration, End, FromAgent, FromHost, Hello, Order, Ready, Rule, Step, StopHook,
    Versions, Welcome, WorkloadState,
};
pub use frame::{Decoder, Frame, Kind, MAX_PAYLOAD, ProtocolError};
pub use session::{
    Exec, Failure, FailureKind, Input, Opening, Outcome, Program, Request, Response, TerminalSize,
};
pub use stats::Stats;

/// The newest version of the protocol that this crate speaks.
pub const VERSION: u16 = 1;
/// The oldest version of the protocol that this crate speaks.
pub const OLDEST_VERSION: u16 = 1;
/// The host's vsock port for the control connection.
pub const CONTROL_PORT: u32 = 700;
/// The agent's vsock port for sessions.
pub const AGENT_PORT: u32 = 700;
