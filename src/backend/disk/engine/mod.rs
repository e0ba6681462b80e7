//! Many requests of one device queue in flight at once: io_uring where the kernel allows it, else a few threads.
//!
//! An engine belongs to one queue's worker: requests with tags go in, an eventfd becomes readable when some are done, and
//! their tags come out in any order. A flush covers the writes whose completions have been *taken* before it was submitted,
//! which is what virtio-blk asks for (virtio 1.2 §5.2.6.1); it does not wait for others in flight.

mod threads;
mod uring;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use self::threads::Threads;
use self::uring::Uring;
use super::{Buffers, Disk, DiskError};

/// Which engine is wanted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Io {
    /// io_uring if it can be had.
    #[default]
    Auto,
    /// io_uring, or an error.
    Uring,
    /// Threads.
    Threads,
}

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Fill the buffers.
    Read,
    /// Write the buffers; if `durable`, it is done only when they are on the medium.
    Write {
        /// As if a flush followed.
        durable: bool,
    },
    /// See [`Disk::flush`].
    Flush,
    /// See [`Disk::discard`].
    Discard,
    /// See [`Disk::write_zeroes`].
    WriteZeroes {
        /// The space may be given back.
        unmap: bool,
    },
}

/// One request.
#[derive(Debug)]
pub struct Request {
    /// Comes back with the completion.
    pub tag: u64,
    /// What to do.
    pub operation: Operation,
    /// Where on the disk, in bytes.
    pub offset: u64,
    /// How much, for an operation without data; in bytes.
    pub bytes: u64,
    /// The data. See [`Buffers::outlive`] for how long its memory stays mapped.
    pub buffers: Buffers<'static>,
}

/// Does requests of one disk.
#[derive(Debug)]
pub struct Engine {
    kind: Kind,
    event: Arc<EventFd>,
    depth: usize,
    in_flight: usize,
    /// Why it is not io_uring, if it was wanted.
    instead: Option<String>,
}

#[derive(Debug)]
enum Kind {
    Uring(Box<Uring>),
    Threads(Threads),
}

/// A request that is done: its tag, and the bytes transferred.
type Completion = (u64, io::Result<u64>);

impl Engine {
    /// An engine for at most `depth` requests at once.
    ///
    /// # Errors
    /// [`DiskError::NoUring`] if io_uring is demanded and cannot be had; [`DiskError::Engine`].
    pub fn new(disk: &Arc<dyn Disk>, io: Io, depth: u16) -> Result<Self, DiskError> {
        let failed = |source| DiskError::Engine { disk: disk.name(), cause: source };
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let event = EventFd::from_value_and_flags(0, flags).map_err(|errno| failed(errno.into()))?;
        let event = Arc::new(event);
        let threads = || Threads::new(Arc::clone(disk), Arc::clone(&event));
        let uring = match io {
            Io::Threads => Err(None),
            _ if !disk.is_plain_file() => Err(Some("its format is no plain file".to_owned())),
            Io::Auto | Io::Uring => Uring::new(Arc::clone(disk), &event, threads(), depth).map_err(Some),
        };
        let (kind, instead) = match uring {
            Ok(uring) => (Kind::Uring(Box::new(uring)), None),
            Err(Some(reason)) if io == Io::Uring => {
                return Err(DiskError::NoUring { disk: disk.name(), reason });
            }
            Err(reason) => (Kind::Threads(threads()), reason),
        };
        Ok(Self { kind, event, depth: depth.max(1).into(), in_flight: 0, instead })
    }

    /// `io_uring` or `threads`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self.kind {
            Kind::Uring(_) => "io_uring",
            Kind::Threads(_) => "threads",
        }
    }

    /// Why it is not io_uring, although nobody asked for threads.
    #[must_use]
    pub fn instead_of_uring(&self) -> Option<&str> {
        self.instead.as_deref()
    }

    /// Readable when there may be completions.
    #[must_use]
    pub fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    /// Requests that were submitted and whose completions were not taken yet.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// How many requests can be submitted before completions are taken.
    #[must_use]
    pub fn room(&self) -> usize {
        self.depth.saturating_sub(self.in_flight)
    }

    /// Takes a request. It may wait for [`kick`](Self::kick) before it begins.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when there is no [`room`](Self::room); the request is dropped.
    pub fn submit(&mut self, request: Request) -> io::Result<()> {
        if self.room() == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        match &mut self.kind {
            Kind::Uring(uring) => uring.submit(request)?,
            Kind::Threads(threads) => threads.submit(request)?,
        }
        self.in_flight += 1;
        Ok(())
    }

    /// Begins what was submitted: one system call for all of it.
    ///
    /// # Errors
    /// The kernel's own; the requests stay submitted.
    pub fn kick(&mut self) -> io::Result<()> {
        match &mut self.kind {
            Kind::Uring(uring) => uring.kick(),
            Kind::Threads(_) => Ok(()),
        }
    }

    /// Takes the completions that are there, and tells `each` the tag and the bytes transferred. Returns their number.
    ///
    /// # Errors
    /// The kernel's own, when the rest of a request that was done in part cannot be begun.
    pub fn completions(&mut self, each: &mut dyn FnMut(u64, io::Result<u64>)) -> io::Result<usize> {
        // Before looking: what comes later rings again. An error says that it has not been rung.
        let _ = self.event.read();
        let mut done = Vec::new();
        let taken = match &mut self.kind {
            Kind::Uring(uring) => uring.completions(&mut done),
            Kind::Threads(threads) => {
                threads.completions(&mut done);
                Ok(())
            }
        };
        let count = done.len();
        self.in_flight = self.in_flight.saturating_sub(count);
        for (tag, result) in done {
            each(tag, result);
        }
        taken.map(|()| count)
    }

    /// Waits until nothing is in flight.
    ///
    /// # Errors
    /// The kernel's own.
    pub fn drain(&mut self, each: &mut dyn FnMut(u64, io::Result<u64>)) -> io::Result<()> {
        self.kick()?;
        while self.in_flight > 0 {
            let mut fds = [PollFd::new(self.event.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            self.completions(each)?;
        }
        Ok(())
    }
}

/// The kernel or a thread may still be using the memory of requests in flight: they are waited for.
impl Drop for Engine {
    fn drop(&mut self) {
        if self.drain(&mut |_, _| {}).is_err() && self.in_flight > 0 {
            // Memory that the kernel writes to must not be unmapped under it; there is no way to go on from here.
            tracing::error!("requests in flight cannot be waited for");
            std::process::abort();
        }
    }
}

/// Does a request here and now.
fn carry_out(disk: &dyn Disk, request: &Request) -> io::Result<u64> {
    let Request { operation, offset, bytes, buffers, .. } = request;
    match *operation {
        Operation::Read => disk.read_at(buffers, *offset)?,
        Operation::Write { durable } => {
            disk.write_at(buffers, *offset)?;
            if durable {
                disk.flush()?;
            }
        }
        Operation::Flush => disk.flush()?,
        Operation::Discard => disk.discard(*offset, *bytes)?,
        Operation::WriteZeroes { unmap } => disk.write_zeroes(*offset, *bytes, unmap)?,
    }
    Ok(buffers.len())
}

#[cfg(test)]
mod tests;
