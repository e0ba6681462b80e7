//! The host side of a device: disk files, taps, console sinks and sources, Unix sockets. No virtqueue, no KVM.

pub mod console;
pub mod disk;
#[cfg(test)]
pub(crate) mod netns;
pub mod port;
pub mod random;
pub mod tap;
pub mod virtiofsd;
pub mod vsock;
