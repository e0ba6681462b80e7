//! The host side of a device: disk files, console sinks and sources, Unix sockets. No virtqueue, no KVM.

pub mod console;
pub mod disk;
pub mod virtiofsd;
pub mod vsock;
