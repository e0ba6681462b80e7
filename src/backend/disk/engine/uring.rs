//! Requests done by the kernel: io_uring(7). What it cannot do as it is (a discard, memory that does not suit direct I/O, a
//! range over two partitions) goes to the threads.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use io_uring::{IoUring, Probe, opcode, squeue, types};
use nix::sys::eventfd::EventFd;

use super::super::error::words;
use super::super::{Buffers, Place, Way};
use super::threads::Threads;
use super::{Completion, Disk, Operation, Request};

/// A ring, the requests in it, and the threads beside it.
pub(super) struct Uring {
    ring: IoUring,
    disk: Arc<dyn Disk>,
    /// Requests in the ring; `user_data` is the index.
    slots: Vec<Option<Slot>>,
    free: Vec<usize>,
    /// Entries that the kernel has not been told of.
    unsubmitted: bool,
    threads: Threads,
}

impl std::fmt::Debug for Uring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Uring")
            .field("disk", &self.disk)
            .field("free", &self.free.len())
            .finish_non_exhaustive()
    }
}

/// A request in the ring.
struct Slot {
    tag: u64,
    operation: Operation,
    /// What is left of it, and where.
    offset: u64,
    buffers: Buffers<'static>,
    done: u64,
}

/// The opcodes that are needed.
const NEEDED: [(u8, &str); 5] = [
    (opcode::Read::CODE, "IORING_OP_READ"),
    (opcode::Write::CODE, "IORING_OP_WRITE"),
    (opcode::Readv::CODE, "IORING_OP_READV"),
    (opcode::Writev::CODE, "IORING_OP_WRITEV"),
    (opcode::Fsync::CODE, "IORING_OP_FSYNC"),
];

impl Uring {
    /// A ring for `depth` requests. The error says in words why there is none.
    pub(super) fn new(
        disk: Arc<dyn Disk>,
        event: &EventFd,
        threads: Threads,
        depth: u16,
    ) -> Result<Self, String> {
        let mut ring = IoUring::new(u32::from(depth.max(1))).map_err(|error| no_ring(&error))?;
        let mut probe = Probe::new();
        let said = |what: &str, error: &io::Error| format!("{what}: {}", words(error));
        ring.submitter().register_probe(&mut probe).map_err(|error| said("its probe fails", &error))?;
        if let Some((_, name)) = NEEDED.iter().find(|(code, _)| !probe.is_supported(*code)) {
            return Err(format!("this kernel's io_uring has no {name}"));
        }
        // A seccomp profile may allow the ring and forbid its use.
        let nothing = opcode::Nop::new().build();
        // SAFETY: the entry refers to no memory.
        unsafe { ring.submission().push(&nothing) }.map_err(|_| "its queue has no room".to_owned())?;
        ring.submit_and_wait(1).map_err(|error| said("it cannot be entered", &error))?;
        if ring.completion().next().is_none() {
            return Err("it does not complete requests".to_owned());
        }
        ring.submitter()
            .register_eventfd(event.as_raw_fd())
            .map_err(|error| said("it cannot signal completions", &error))?;
        let slots = std::iter::repeat_with(|| None).take(depth.max(1).into()).collect::<Vec<_>>();
        let free = (0..slots.len()).collect();
        Ok(Self { ring, disk, slots, free, unsubmitted: false, threads })
    }

    /// Puts a request into the ring, or gives it to the threads.
    pub(super) fn submit(&mut self, request: Request) -> io::Result<()> {
        let suits = match request.operation {
            Operation::Read => self.disk.place(Way::Read, &request.buffers, request.offset).is_some(),
            Operation::Write { .. } => {
                self.disk.place(Way::Write, &request.buffers, request.offset).is_some()
            }
            Operation::Flush => self.disk.flush_file().is_some(),
            Operation::Discard | Operation::WriteZeroes { .. } => false,
        };
        let Some(index) = suits.then(|| self.free.pop()).flatten() else {
            return self.threads.submit(request);
        };
        let Request { tag, operation, offset, buffers, .. } = request;
        let put = self.put(index, Slot { tag, operation, offset, buffers, done: 0 });
        if put.is_err() {
            self.free.push(index);
        }
        put
    }

    /// Makes the entry for what is left of a request.
    fn put(&mut self, index: usize, slot: Slot) -> io::Result<()> {
        let entry = entry(&*self.disk, &slot)?.user_data(index as u64);
        let place = self.slots.get_mut(index).ok_or(io::ErrorKind::InvalidInput)?;
        *place = Some(slot);
        // SAFETY: the vectors the entry points to stay in the slot, and the memory they point to stays mapped (`outlive`),
        // until the completion has been taken; `Engine` waits for all of them before it goes.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        // There are no more slots than entries, and a slot has at most one entry.
        pushed.map_err(|_| io::ErrorKind::WouldBlock)?;
        self.unsubmitted = true;
        Ok(())
    }

    /// Tells the kernel of new entries.
    pub(super) fn kick(&mut self) -> io::Result<()> {
        while self.unsubmitted {
            match self.ring.submit() {
                Ok(_) => self.unsubmitted = !self.ring.submission().is_empty(),
                Err(error) => match error.raw_os_error() {
                    // The kernel is short of memory, or wants its completions taken first.
                    Some(libc::EINTR | libc::EAGAIN | libc::EBUSY) => std::thread::yield_now(),
                    _ => return Err(error),
                },
            }
        }
        Ok(())
    }

    /// Takes completions from the ring and from the threads.
    pub(super) fn completions(&mut self, into: &mut Vec<Completion>) -> io::Result<()> {
        self.threads.completions(into);
        let ended: Vec<(usize, i32)> =
            self.ring.completion().map(|ended| (ended.user_data() as usize, ended.result())).collect();
        for (index, result) in ended {
            let Some(mut slot) = self.slots.get_mut(index).and_then(Option::take) else { continue };
            match slot.go_on(result) {
                Some(result) => {
                    self.free.push(index);
                    into.push((slot.tag, result));
                }
                None => {
                    let tag = slot.tag;
                    if let Err(error) = self.put(index, slot) {
                        self.free.push(index);
                        into.push((tag, Err(error)));
                    }
                }
            }
        }
        self.kick()
    }
}

impl Slot {
    /// Takes the kernel's result; `None` when there is something left to do.
    fn go_on(&mut self, result: i32) -> Option<io::Result<u64>> {
        let Ok(count) = u64::try_from(result) else {
            return match -result {
                libc::EINTR | libc::EAGAIN => None,
                code => Some(Err(io::Error::from_raw_os_error(code))),
            };
        };
        self.done = self.done.saturating_add(count);
        if self.operation == Operation::Flush || count >= self.buffers.len() {
            return Some(Ok(self.done));
        }
        if count == 0 {
            return Some(Err(io::ErrorKind::UnexpectedEof.into()));
        }
        self.buffers.advance(count);
        self.offset = self.offset.saturating_add(count);
        None
    }
}

fn entry(disk: &dyn Disk, slot: &Slot) -> io::Result<squeue::Entry> {
    if slot.operation == Operation::Flush {
        let file = disk.flush_file().ok_or(io::ErrorKind::Unsupported)?;
        let file = types::Fd(file.as_raw_fd());
        return Ok(opcode::Fsync::new(file).flags(types::FsyncFlags::DATASYNC).build());
    }
    let writes = matches!(slot.operation, Operation::Write { .. });
    let way = if writes { Way::Write } else { Way::Read };
    let place = disk.place(way, &slot.buffers, slot.offset);
    let Place { file, offset } = place.ok_or(io::ErrorKind::InvalidInput)?;
    let file = types::Fd(file.as_raw_fd());
    let vectors = slot.buffers.vectors();
    let count = vectors.len() as u32;
    let flags = match slot.operation {
        Operation::Write { durable: true } => libc::RWF_DSYNC,
        _ => 0,
    };
    // Most requests are one piece, which spares the kernel a list of them.
    if let [only] = vectors
        && let Ok(bytes) = u32::try_from(only.iov_len)
    {
        let memory = only.iov_base.cast::<u8>();
        return Ok(if writes {
            opcode::Write::new(file, memory, bytes).offset(offset).rw_flags(flags).build()
        } else {
            opcode::Read::new(file, memory, bytes).offset(offset).build()
        });
    }
    Ok(if writes {
        opcode::Writev::new(file, vectors.as_ptr(), count).offset(offset).rw_flags(flags).build()
    } else {
        opcode::Readv::new(file, vectors.as_ptr(), count).offset(offset).build()
    })
}

/// Why io_uring_setup(2) was refused.
fn no_ring(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENOSYS) => "this kernel has no io_uring".to_owned(),
        Some(libc::EPERM) => {
            "io_uring is forbidden here, by a seccomp profile or by sysctl kernel.io_uring_disabled"
                .to_owned()
        }
        _ => format!("no ring can be made: {}", words(error)),
    }
}
