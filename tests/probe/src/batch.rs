//! Many requests in one system call, as a database has them under way: what a device is told once and can answer once.

use std::os::fd::AsRawFd;
use std::time::Instant;

use crate::disk::{Aligned, Area, forget_cached};
use crate::error::{Doing, Error, Result};
use crate::pattern::{Label, Random};

/// `IOCB_CMD_PREAD` and `IOCB_CMD_PWRITE` of linux/aio_abi.h.
const READ: u16 = 0;
const WRITE: u16 = 1;

/// `struct iocb` of linux/aio_abi.h on a little-endian machine.
#[repr(C)]
#[derive(Debug, Clone, Default)]
struct Iocb {
    data: u64,
    key: u32,
    rw_flags: i32,
    opcode: u16,
    priority: i16,
    fd: u32,
    buffer: u64,
    bytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    result_fd: u32,
}

/// `struct io_event` of linux/aio_abi.h.
#[repr(C)]
#[derive(Debug, Clone, Default)]
struct IoEvent {
    data: u64,
    object: u64,
    result: i64,
    result2: i64,
}

/// An AIO context (io_setup(2)).
#[derive(Debug)]
struct Context(libc::c_ulong);

impl Context {
    fn new(requests: usize) -> std::io::Result<Self> {
        let mut context: libc::c_ulong = 0;
        // SAFETY: io_setup writes one context id.
        let done = unsafe { libc::syscall(libc::SYS_io_setup, requests, &raw mut context) };
        if done == 0 { Ok(Self(context)) } else { Err(std::io::Error::last_os_error()) }
    }

    /// Submits all of them, and waits for all of them.
    fn complete(&self, requests: &[Iocb]) -> std::io::Result<Vec<IoEvent>> {
        let pointers: Vec<*const Iocb> = requests.iter().map(std::ptr::from_ref).collect();
        // SAFETY: every pointer is to a request whose buffer lives until its event is here.
        let submitted =
            unsafe { libc::syscall(libc::SYS_io_submit, self.0, pointers.len(), pointers.as_ptr()) };
        if submitted < 0 {
            return Err(std::io::Error::last_os_error());
        }
        let mut events = vec![IoEvent::default(); submitted as usize];
        let mut done = 0;
        while done < events.len() {
            let (left, into) = (events.len() - done, events[done..].as_mut_ptr());
            let no_timeout = std::ptr::null_mut::<libc::timespec>();
            // SAFETY: `into` has room for `left` events.
            let more = unsafe { libc::syscall(libc::SYS_io_getevents, self.0, left, left, into, no_timeout) };
            if more < 0 {
                return Err(std::io::Error::last_os_error());
            }
            done += more as usize;
        }
        if events.len() < requests.len() {
            return Err(std::io::Error::other(format!("only {submitted} requests were taken")));
        }
        Ok(events)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: the context is ours, and nothing is under way in it.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.0) };
    }
}

/// `disk-batch`: random requests, `depth` in one call, every second one a write of what is there already. The area was
/// filled with the same arguments before.
pub(crate) fn batch(area: &Area, operations: u64) -> Result<()> {
    let (blocks, file) = (area.blocks()?, area.open(true)?);
    forget_cached(&file, &area.path)?;
    let context = Context::new(area.depth).doing("set up asynchronous I/O")?;
    let mut buffers: Vec<Aligned> = (0..area.depth).map(|_| Aligned::new(area.block)).collect();
    let (mut random, mut scratch) = (Random::new(!area.seed), vec![0; area.block]);
    let (mut done, start) = (0, Instant::now());
    while done < operations {
        let mut numbers: Vec<u64> = (0..area.depth).map(|_| random.below(blocks)).collect();
        // A read beside a write of the same block is nobody's bug, but two answers to one question.
        numbers.sort_unstable();
        numbers.dedup();
        let mut requests = Vec::with_capacity(numbers.len());
        for ((slot, &block), buffer) in numbers.iter().enumerate().zip(&mut buffers) {
            let opcode = if slot % 2 == 0 { READ } else { WRITE };
            if opcode == WRITE {
                Label { block, seed: area.seed, generation: 0 }.write(buffer.bytes());
            }
            requests.push(Iocb {
                data: slot as u64,
                opcode,
                fd: file.as_raw_fd() as u32,
                buffer: buffer.bytes().as_mut_ptr() as u64,
                bytes: area.block as u64,
                offset: (block * area.block as u64) as i64,
                ..Iocb::default()
            });
        }
        let events = context.complete(&requests).doing(format!("work on {}", area.path.display()))?;
        if let Some(event) = events.iter().find(|event| event.result != area.block as i64) {
            return Err(Error::Mismatch(format!(
                "a request of {} bytes answered {}",
                area.block, event.result
            )));
        }
        for ((slot, &block), buffer) in numbers.iter().enumerate().zip(&mut buffers) {
            if slot % 2 == 0 {
                let label = Label { block, seed: area.seed, generation: 0 };
                label
                    .check(buffer.bytes(), &mut scratch)
                    .map_err(|what| Error::Mismatch(format!("{}: {what}", area.path.display())))?;
            }
        }
        done += numbers.len() as u64;
    }
    let seconds = start.elapsed().as_secs_f64();
    println!("batched operations={done} depth={} seconds={seconds:.3}", area.depth);
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn batches_read_what_was_filled_and_notice_what_was_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        let area = Area { path, seed: 9, bytes: 256 << 10, block: 4096, depth: 32, direct: false };
        crate::disk::fill(&area, true, true).unwrap();
        batch(&area, 500).unwrap();
        crate::disk::verify(&area, true).unwrap();
        assert!(batch(&Area { seed: 10, ..area }, 500).is_err());
    }
}
