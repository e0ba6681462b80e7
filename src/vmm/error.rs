//! Why a machine could not be built or started.

use std::io;

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};

use crate::backend::disk::DiskError;
use crate::backend::port::PortError;
use crate::backend::tap::TapError;
use crate::boot::BootError;
use crate::boot::cmdline::CmdlineError;
use crate::devices::bus::OverlapError;
use crate::devices::virtio::vhost::VhostError;
use crate::status::socket::SocketError;

/// Why a machine could not be built or started. The text is one sentence with the path or value and the mend.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// `/dev/kvm` cannot be opened or used.
    #[error("{doing}: {source}; `nestling preflight` says which layer is missing")]
    Kvm {
        /// What was being done.
        doing: &'static str,
        /// The kernel's reason.
        source: kvm_ioctls::Error,
    },
    /// The host has no room for guest RAM.
    #[error("the host cannot reserve {mib} MiB for guest RAM: {source}; lower --memory{}", address_space())]
    Memory {
        /// The size asked for.
        mib: u64,
        /// The kernel's reason.
        source: io::Error,
    },
    /// More vCPUs than this KVM runs.
    #[error("this KVM runs at most {limit} vCPUs per VM, not {asked}; lower --cpus")]
    TooManyVcpus {
        /// `cpus` of the plan.
        asked: u8,
        /// KVM_CAP_MAX_VCPUS.
        limit: usize,
    },
    /// More devices than the PCI bus has room for.
    #[error("{asked} disks, network interfaces and shares do not fit on the PCI bus; at most {limit} do")]
    TooManyDevices {
        /// Disks, network interfaces and shares of the plan.
        asked: usize,
        /// What fits.
        limit: usize,
    },
    /// A disk cannot be used.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A port's socket cannot be used.
    #[error(transparent)]
    Port(#[from] PortError),
    /// A share cannot be served.
    #[error("the share `{tag}` cannot be served: {source}")]
    Share {
        /// Its tag.
        tag: String,
        /// Why.
        source: VhostError,
    },
    /// The kernel does not serve a device's queues.
    #[error(transparent)]
    Vhost(#[from] VhostError),
    /// The vsock socket cannot be had.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// A tap cannot be used.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// Kernel or initrd cannot be loaded.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The command line does not fit.
    #[error(transparent)]
    Cmdline(#[from] CmdlineError),
    /// Two devices were placed on each other.
    #[error(transparent)]
    Placement(#[from] OverlapError),
    /// A descriptor, thread or register page could not be had.
    #[error("{doing}: {source}{}", mend(source))]
    Resource {
        /// What was being done.
        doing: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
}

impl MachineError {
    /// Whether the user can mend it by changing what they asked for (exit code "bad input"), rather than the node.
    #[must_use]
    pub fn is_bad_input(&self) -> bool {
        !matches!(self, Self::Kvm { .. } | Self::Placement(_) | Self::Resource { .. })
    }
}

/// Names what was being done when KVM refused.
pub(super) fn kvm(doing: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> MachineError {
    move |source| MachineError::Kvm { doing, source }
}

/// Names what was being done when the kernel had no more of something.
pub(super) fn resource(doing: &'static str) -> impl FnOnce(io::Error) -> MachineError {
    move |source| MachineError::Resource { doing, source }
}

/// What to do when a limit of this process is reached.
fn mend(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::EMFILE) => "; raise the limit of open files (`ulimit -n`)",
        Some(libc::EAGAIN) => "; raise the limit of threads (`ulimit -u`, or the pod's pids limit)",
        _ => "",
    }
}

/// A limit that nobody thinks of where memory is plenty.
fn address_space() -> &'static str {
    match getrlimit(Resource::RLIMIT_AS) {
        Ok((soft, _)) if soft != RLIM_INFINITY => ", or raise the limit of address space (`ulimit -v`)",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_that_is_reached_is_named() {
        let error =
            |errno| resource("the balloon cannot be set up")(io::Error::from_raw_os_error(errno)).to_string();
        assert!(error(libc::EMFILE).ends_with("(os error 24); raise the limit of open files (`ulimit -n`)"));
        assert!(error(libc::EAGAIN).contains("`ulimit -u`"));
        assert!(error(libc::ENOMEM).ends_with("(os error 12)"));
    }
}
