//! Why a tap cannot be used, each with its mend.

use std::io;
use std::os::fd::RawFd;

/// Why a tap cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// There is no `/dev/net/tun`.
    #[error(
        "/dev/net/tun is not there, so there is no tap: give the pod the device (privileged: true, or a hostPath volume of /dev/net/tun), and load the module tun on the node"
    )]
    NoDevice,
    /// `/dev/net/tun` is there and cannot be opened.
    #[error(
        "/dev/net/tun cannot be opened: {}; the container's device rules must allow it, as privileged: true does",
        crate::spec::in_words(.0)
    )]
    Open(#[source] io::Error),
    /// The tap would have to be made, or is somebody else's.
    #[error(
        "the tap {name} may not be made or used: this needs the capability NET_ADMIN (securityContext.capabilities.add), or a tap that was made for this user"
    )]
    NotPermitted {
        /// The tap.
        name: String,
    },
    /// Another process has it.
    #[error("the tap {name} is in use by another process: stop that one, or give another name")]
    Busy {
        /// The tap.
        name: String,
    },
    /// No interface can have this name.
    #[error("`{name}` cannot be an interface's name: 1 to 15 bytes, no slash, colon, percent sign or blank")]
    Name {
        /// What was given.
        name: String,
    },
    /// It was made with one queue.
    #[error(
        "the tap {name} has one queue, and {queues} are asked for: make it with `ip tuntap add {name} mode tap multi_queue`, or ask for queues=1"
    )]
    OneQueue {
        /// The tap.
        name: String,
        /// What was asked for.
        queues: u16,
    },
    /// Its queues are taken.
    #[error("the tap {name} has no room for {queues} more queues: ask for fewer")]
    TooManyQueues {
        /// The tap.
        name: String,
        /// What was asked for.
        queues: u16,
    },
    /// The name is another kind of interface's.
    #[error("the interface {name} is not a tap: give another name")]
    NotATap {
        /// The interface.
        name: String,
    },
    /// An inherited descriptor that is not there or is not what is needed.
    #[error("the descriptor {fd} is not a usable tap: {reason}")]
    Descriptor {
        /// Its number.
        fd: RawFd,
        /// What it is.
        reason: &'static str,
    },
    /// The kernel refused a setting.
    #[error("the tap {name} cannot be set up: {what}: {source}")]
    Setting {
        /// The tap.
        name: String,
        /// What was being done.
        what: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
}
