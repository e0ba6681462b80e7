//! Devices whose queues somebody else serves: the kernel (vhost) or another process (vhost-user).
//!
//! A [`Backend`] is told where the rings are, and gets the doorbells and the vectors' eventfds themselves: a request passes no
//! thread of ours. What stays here is a lane without queues. It starts and stops the back end with the device, rests it with
//! the machine, and watches for its end; between two lanes a [`Session`] keeps it.

pub mod kernel;
mod lane;
pub mod net;
mod ring;
mod session;
pub mod user;
pub mod vsock;

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

pub use self::ring::Ring;
pub use self::session::{Reach, Session};

/// Why a back end does not serve.
#[derive(Debug, thiserror::Error)]
pub enum VhostError {
    /// It refused a request, or broke the protocol.
    #[error("{who} does not serve the queues: {doing}: {source}")]
    Refused {
        /// Who, for example `virtiofsd`.
        who: String,
        /// What was asked.
        doing: &'static str,
        /// The refusal.
        source: vhost::Error,
    },
    /// It did not answer for so long that it was given up.
    #[error(
        "{who} is given up: for {patience:?} it did not answer to {doing}; it hangs, or serves another VM already: look at \
         its own log, start it anew, then start the VM again or have its driver reset the device"
    )]
    Silent {
        /// Who.
        who: String,
        /// What was asked.
        doing: &'static str,
        /// How long.
        patience: Duration,
    },
    /// It spoke first: nothing was agreed that it could say.
    #[error("{who} breaks the protocol and is given up: it sent something that nobody had asked for")]
    Unasked {
        /// Who.
        who: String,
    },
    /// It ended or hung up.
    #[error("{who} is gone; the driver may reset the device to try again")]
    Gone {
        /// Who.
        who: String,
    },
    /// It found a ring broken.
    #[error("{who} found a virtqueue broken")]
    Ring {
        /// Who.
        who: String,
    },
    /// It lacks something that is needed.
    #[error("{who} cannot serve this device: it lacks {what}")]
    Lacks {
        /// Who.
        who: String,
        /// What.
        what: String,
    },
    /// The kernel's device for it cannot be opened.
    #[error(
        "{path} {}: give the pod the device (privileged: true, or a hostPath volume of {path}) and load its module on the node (modprobe {module}), or {without}",
        in_the_way(cause)
    )]
    NoDevice {
        /// The device.
        path: &'static str,
        /// The module that makes it.
        module: &'static str,
        /// What does without it.
        without: &'static str,
        /// The kernel's reason.
        cause: io::Error,
    },
    /// Another VM of the node has this vsock address.
    #[error(
        "the vsock cid {cid} is taken: another VM on this node has it; give this one another, as in --vsock cid={},vhost=true",
        another(*cid)
    )]
    CidTaken {
        /// The address.
        cid: u64,
    },
    /// It cannot be had at all.
    #[error("{0}")]
    Unreachable(String),
}

impl VhostError {
    /// Names who refused, and what was being asked.
    pub(crate) fn refused(who: &str, doing: &'static str) -> impl FnOnce(vhost::Error) -> Self {
        move |source| Self::Refused { who: who.to_owned(), doing, source }
    }

    /// Why `who` cannot be had of the kernel's device at `path`, which `module` makes; `without` says what does without it.
    fn of_opening(
        error: vhost::Error,
        who: &str,
        path: &'static str,
        module: &'static str,
        without: &'static str,
    ) -> Self {
        match error {
            vhost::Error::VhostOpen(cause) => Self::NoDevice { path, module, without, cause },
            other => Self::refused(who, "its memory")(other),
        }
    }
}

/// Why a device file does not open, in words.
fn in_the_way(cause: &io::Error) -> String {
    match cause.raw_os_error() {
        // The file can be there with no driver behind it.
        Some(libc::ENOENT | libc::ENXIO | libc::ENODEV) => "is not there".to_owned(),
        Some(libc::EACCES | libc::EPERM) => "may not be opened here".to_owned(),
        _ => format!("cannot be opened ({})", crate::spec::in_words(cause)),
    }
}

/// Another address, for an example.
fn another(cid: u64) -> u64 {
    if cid < u64::from(u32::MAX).saturating_sub(1) { cid.saturating_add(1) } else { 3 }
}

/// Somebody who serves queues.
pub trait Backend: Send {
    /// Who it is, in words.
    fn name(&self) -> &str;

    /// The feature bits it can serve: its device's own, and of the rings.
    fn features(&self) -> u64;

    /// Serves these rings from now on. `broken` is written when it finds one that cannot be.
    ///
    /// # Errors
    /// When it does not.
    fn start(
        &mut self,
        features: u64,
        memory: &GuestMemoryMmap,
        rings: &[Ring],
        broken: &EventFd,
    ) -> Result<(), VhostError>;

    /// Stops at a boundary between requests, and tells for each ring the index of the next available entry.
    ///
    /// # Errors
    /// When it does not answer.
    fn stop(&mut self, rings: &[Ring]) -> Result<Vec<u16>, VhostError>;

    /// A socket that nothing comes from, unasked, before the back end is gone. A back end in the kernel does not go.
    fn hangup(&self) -> Option<RawFd> {
        None
    }
}

#[cfg(test)]
mod tests;
