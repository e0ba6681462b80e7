//! The host's end of vsock on Unix sockets: one that listens at a path, through which programs reach the guest's ports, and
//! those at `<path>_<port>`, through which the guest reaches programs. [`Inside`] is the same for this process, without a socket.
//!
//! Nothing here waits: a stream that has nothing to read or no room says [`io::ErrorKind::WouldBlock`], and [`UnixHost`]
//! tells when that has changed.

mod inside;
mod listener;
mod unix;

use std::io;

use vm_memory::VolatileSlice;

pub use self::inside::{Inside, Serve};
pub use self::listener::{VsockListener, raise_descriptor_limit};
pub use self::unix::{HostEvent, UnixHost, UnixStreamEnd};

/// The host's address (virtio 1.2 §5.10.4).
pub const HOST_CID: u64 = 2;

/// One direction of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the host to the guest.
    ToGuest,
    /// From the guest to the host.
    ToHost,
}

/// What changed at a stream's other end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ready {
    /// There is something to read, perhaps the end.
    pub readable: bool,
    /// There is room again.
    pub writable: bool,
    /// Nobody reads at the other end any more.
    pub hung_up: bool,
}

/// The host's end of one connection.
pub trait Stream {
    /// Reads straight into guest memory; 0 is the end.
    ///
    /// # Errors
    /// The kernel's own; [`io::ErrorKind::WouldBlock`] when there is nothing now.
    fn read(&mut self, room: &[VolatileSlice<'_>]) -> io::Result<usize>;

    /// Writes straight from guest memory, as much as there is room for.
    ///
    /// # Errors
    /// The kernel's own; [`io::ErrorKind::WouldBlock`] when there is no room now.
    fn write(&mut self, data: &[VolatileSlice<'_>]) -> io::Result<usize>;

    /// Writes bytes of our own, as much as there is room for.
    ///
    /// # Errors
    /// As [`Stream::write`].
    fn write_bytes(&mut self, data: &[u8]) -> io::Result<usize>;

    /// Reads on until `line` ends with a line feed, and nothing beyond it; `false` when that is not yet there. A line
    /// longer than `most` bytes ends with byte number `most`.
    ///
    /// # Errors
    /// The kernel's own, and an end before the line's.
    fn read_line(&mut self, line: &mut Vec<u8>, most: usize) -> io::Result<bool>;

    /// Ends one direction.
    fn shut_down(&mut self, direction: Direction);
}

/// Where streams come from, and who tells what happens to them.
pub trait Host {
    /// The host's end of a connection.
    type Stream: Stream;

    /// Connects to the program that serves `port`, for one of the guest's that comes from port `from`.
    ///
    /// # Errors
    /// When nobody does, or the kernel has no descriptor.
    fn connect(&mut self, port: u32, from: u32) -> io::Result<Self::Stream>;

    /// From now on tells, under the number `id`, each time this stream has become readable, or hung up.
    ///
    /// # Errors
    /// The kernel's own.
    fn watch(&mut self, stream: &Self::Stream, id: u64) -> io::Result<()>;

    /// Whether it also tells when there is room.
    fn watch_room(&mut self, stream: &Self::Stream, id: u64, wanted: bool);
}

#[cfg(test)]
mod tests;
