//! The disk device beside reads of the same bytes from a raw file: one call each, or io_uring with as many under way as the
//! driver has. The files are in the page cache, so that nothing is measured but the way.

use std::fs::File;
use std::io::Write;
use std::ops::ControlFlow;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use io_uring::{IoUring, opcode, types};
use nestling::backend::disk::{Access, Disk, Format, Image, SECTOR, convert};
use nestling::devices::virtio::block::{Block, BlockOptions};
use nestling::devices::virtio::testing::{readable, writable};
use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::guest::{DATA, Guest, ram};
use super::{Signals, Spent, Watch, Way};
use crate::Result;

/// Bytes of the disk. Every block of 4 KiB begins with its own offset.
const DISK_BYTES: u64 = 64 << 20;
/// Requests under way.
const DEPTH: u16 = 32;
/// VIRTIO_BLK_F_FLUSH, which every driver takes.
const FLUSH: u64 = 1 << 9;
/// Descriptors of a request: header, data, status.
const CHAIN: u16 = 3;
/// Bytes of a request's header (virtio 1.2 §5.2.6), of which the sector is the last half.
const HEADER_BYTES: u64 = 16;

/// Where the driver's requests are: headers, status bytes, data.
const HEADERS: u64 = DATA;
const STATUSES: u64 = HEADERS + 0x1000;
const BUFFERS: u64 = STATUSES + 0x1000;

/// What the device is beside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Beside {
    /// One system call for each read.
    Pread,
    /// One system call for all reads that there are.
    IoUring,
}

/// Reads of one kind from one image.
struct Reads {
    what: &'static str,
    bytes: u64,
    offsets: Rc<[u64]>,
    beside: Beside,
    file: Rc<File>,
    format: Format,
    disk: Arc<dyn Disk>,
    memory: &'static GuestMemoryMmap,
    /// Keeps the files.
    _directory: Rc<TempDir>,
}

pub(super) fn ways() -> Result<Vec<Box<dyn Way>>> {
    let memory = ram()?;
    let directory = Rc::new(tempfile::tempdir()?);
    let raw = directory.path().join("disk.raw");
    write_image(&raw)?;
    let file = Rc::new(File::open(&raw)?);
    let image = |path: PathBuf, format| Image {
        path,
        format: Some(format),
        access: Access::READ,
        follow_backing: false,
    };
    let raw = image(raw, Format::Raw);
    let qcow2 = image(directory.path().join("disk.qcow2"), Format::Qcow2);
    convert(&raw, &qcow2.path, Format::Qcow2, false, &mut |_, _| ControlFlow::Continue(()))?;
    let (raw, qcow2) = (raw.open()?, qcow2.open()?);

    let small: Rc<[u64]> = random_offsets(4 << 10, 60_000).into();
    let large: Rc<[u64]> = (0..4096).map(|number| number * (128 << 10) % DISK_BYTES).collect();
    let loads =
        [("random reads of 4 KiB", 4 << 10, small), ("sequential reads of 128 KiB", 128 << 10, large)];
    let disks = [
        (Format::Raw, &raw, Beside::Pread),
        (Format::Raw, &raw, Beside::IoUring),
        (Format::Qcow2, &qcow2, Beside::Pread),
    ];
    let mut ways: Vec<Box<dyn Way>> = Vec::new();
    for (what, bytes, offsets) in loads {
        for (format, disk, beside) in disks {
            ways.push(Box::new(Reads {
                what,
                bytes,
                offsets: Rc::clone(&offsets),
                beside,
                file: Rc::clone(&file),
                format,
                disk: Arc::clone(disk),
                memory,
                _directory: Rc::clone(&directory),
            }));
        }
    }
    Ok(ways)
}

impl Way for Reads {
    fn name(&self) -> String {
        let beside = match self.beside {
            Beside::Pread => "pread",
            Beside::IoUring => "io_uring",
        };
        format!("disk, {}, {}, beside {beside}", self.format.name(), self.what)
    }

    fn amount(&self) -> (&'static str, f64) {
        ("reads/s", self.offsets.len() as f64)
    }

    fn operations(&self) -> f64 {
        self.offsets.len() as f64
    }

    fn plain(&mut self) -> Result<Spent> {
        match self.beside {
            Beside::Pread => self.by_pread(),
            Beside::IoUring => self.by_uring(),
        }
    }

    fn device(&mut self) -> Result<(Spent, Signals)> {
        let device = Arc::new(Block::new(Arc::clone(&self.disk), BlockOptions::default())?);
        let mut guest = Guest::start(device, FLUSH, self.memory)?;
        let spent = self.by_driver(&mut guest)?;
        let signals = guest.signals();
        guest.stop();
        Ok((spent, signals))
    }
}

impl Reads {
    fn by_pread(&self) -> Result<Spent> {
        let mut buffer = vec![0; self.bytes as usize];
        let watch = Watch::start()?;
        for &offset in &*self.offsets {
            self.file.read_exact_at(&mut buffer, offset)?;
            check(buffer[..8] == offset.to_le_bytes())?;
        }
        watch.stop()
    }

    fn by_uring(&self) -> Result<Spent> {
        let mut ring = IoUring::new(DEPTH.into())?;
        let mut buffers = vec![vec![0_u8; self.bytes as usize]; DEPTH.into()];
        let mut expected = [0_u64; DEPTH as usize];
        let mut free: Vec<usize> = (0..DEPTH.into()).collect();
        let (mut offsets, mut done) = (self.offsets.iter(), 0);
        let watch = Watch::start()?;
        while done < self.offsets.len() {
            while let Some(slot) = free.pop() {
                let Some(&offset) = offsets.next() else { break };
                expected[slot] = offset;
                let (file, memory) = (types::Fd(self.file.as_raw_fd()), buffers[slot].as_mut_ptr());
                let read = opcode::Read::new(file, memory, self.bytes as u32).offset(offset).build();
                // SAFETY: the buffer outlives its request, which is waited for.
                unsafe { ring.submission().push(&read.user_data(slot as u64)) }?;
            }
            ring.submit_and_wait(1)?;
            for completion in ring.completion() {
                let slot = completion.user_data() as usize;
                check(completion.result() as u64 == self.bytes)?;
                check(buffers[slot][..8] == expected[slot].to_le_bytes())?;
                free.push(slot);
                done += 1;
            }
        }
        watch.stop()
    }

    /// Each slot's chain stays as it is; a request changes its sector.
    fn by_driver(&self, guest: &mut Guest) -> Result<Spent> {
        let ring = &mut guest.rings[0];
        let part =
            |at, bytes: u64| self.memory.get_slice(GuestAddress(at), (u64::from(DEPTH) * bytes) as usize);
        let headers = part(HEADERS, HEADER_BYTES)?;
        let (statuses, buffers) = (part(STATUSES, 1)?, part(BUFFERS, self.bytes)?);
        for slot in 0..DEPTH {
            let place = u64::from(slot);
            headers.write_obj([0_u64; 2], (HEADER_BYTES * place) as usize)?;
            let chain = [
                readable(HEADERS + HEADER_BYTES * place, HEADER_BYTES as u32),
                writable(BUFFERS + self.bytes * place, self.bytes as u32),
                writable(STATUSES + place, 1),
            ];
            ring.describe(CHAIN * slot, &chain)?;
        }
        let mut expected = [0_u64; DEPTH as usize];
        let mut free: Vec<u16> = (0..DEPTH).collect();
        let (mut offsets, mut done) = (self.offsets.iter(), 0);
        let watch = Watch::start()?;
        while done < self.offsets.len() {
            while let Some(slot) = free.pop() {
                let Some(&offset) = offsets.next() else { break };
                let place = usize::from(slot);
                expected[place] = offset;
                headers.store(offset / SECTOR, HEADER_BYTES as usize * place + 8, Ordering::Relaxed)?;
                statuses.store(0xff_u8, place, Ordering::Relaxed)?;
                ring.offer(CHAIN * slot)?;
            }
            ring.publish()?;
            ring.wait(1)?;
            while let Some((head, _)) = ring.take()? {
                let slot = head / CHAIN;
                let place = usize::from(slot);
                check(statuses.load::<u8>(place, Ordering::Relaxed)? == 0)?;
                let begins: u64 = buffers.load(self.bytes as usize * place, Ordering::Relaxed)?;
                check(begins == expected[place])?;
                free.push(slot);
                done += 1;
            }
        }
        watch.stop()
    }
}

fn check(right: bool) -> Result<()> {
    if right { Ok(()) } else { Err("a read failed, or has other bytes than the disk".into()) }
}

fn write_image(path: &std::path::Path) -> Result<()> {
    let mut image = File::create(path)?;
    for number in 0..DISK_BYTES / 4096 {
        let mut block = [0xa5; 4096];
        block[..8].copy_from_slice(&(number * 4096).to_le_bytes());
        image.write_all(&block)?;
    }
    Ok(())
}

/// Offsets of blocks in an order that is always the same (xorshift).
fn random_offsets(bytes: u64, count: usize) -> Vec<u64> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % (DISK_BYTES / bytes) * bytes
    };
    (0..count).map(|_| next()).collect()
}
