//! Reads, writes, zero-outs, discards and flushes in a random mix, every read compared with what was last written.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::FileTypeExt;

use crate::disk::{Aligned, Area, joined};
use crate::error::{Doing, Error, Result};
use crate::pattern::{Label, Random};

/// `_IO(0x12, 119)` and `_IO(0x12, 127)` of linux/fs.h: a pair of start and length, in bytes.
const BLKDISCARD: libc::Ioctl = 0x1277;
const BLKZEROOUT: libc::Ioctl = 0x127f;

/// What a block holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Content {
    /// Whatever it was before, or whatever a discard left.
    Unknown,
    Zeroes,
    Generation(u64),
}

/// What was done.
#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    reads: u64,
    verified: u64,
    writes: u64,
    zeroed: u64,
    discards: u64,
    refused: u64,
    flushes: u64,
}

impl Counts {
    fn add(&mut self, other: Self) {
        self.reads += other.reads;
        self.verified += other.verified;
        self.writes += other.writes;
        self.zeroed += other.zeroed;
        self.discards += other.discards;
        self.refused += other.refused;
        self.flushes += other.flushes;
    }

    fn print(&self, errors: usize) {
        let Self { reads, verified, writes, zeroed, discards, refused, flushes } = self;
        println!(
            "churned reads={reads} verified={verified} writes={writes} zeroed={zeroed} discards={discards} \
             refused={refused} flushes={flushes} errors={errors}"
        );
    }
}

/// `disk-churn`: each of `depth` threads has blocks of its own, and does its share of `operations`.
pub(crate) fn churn(area: &Area, operations: u64, discard: bool) -> Result<()> {
    let blocks = area.blocks()?;
    let depth = area.depth as u64;
    if blocks < depth {
        return Err(Error::Arguments(format!("{blocks} blocks are too few for --depth {depth}")));
    }
    let file = area.open(true)?;
    let about = file.metadata().doing("look at the disk")?;
    let device = about.file_type().is_block_device();
    if !device && about.len() < area.bytes {
        file.set_len(area.bytes).doing(format!("make {} larger", area.path.display()))?;
    }
    let results: Vec<Result<Counts>> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..depth)
            .map(|index| {
                let worker = Worker { area, file: &file, device, discard, index, depth };
                let share = operations / depth + u64::from(index < operations % depth);
                let run = move || worker.run(blocks, share);
                std::thread::Builder::new().stack_size(128 << 10).spawn_scoped(scope, run)
            })
            .collect();
        workers
            .into_iter()
            .map(|worker| worker.doing("start a thread").and_then(|worker| joined(worker.join())))
            .collect()
    });
    let mut total = Counts::default();
    let mut errors = Vec::new();
    for result in results {
        match result {
            Ok(counts) => total.add(counts),
            Err(error) => errors.push(error),
        }
    }
    total.print(errors.len());
    errors.into_iter().next().map_or(Ok(()), Err)
}

struct Worker<'a> {
    area: &'a Area,
    file: &'a File,
    device: bool,
    discard: bool,
    index: u64,
    depth: u64,
}

impl Worker<'_> {
    /// Its blocks are `index`, `index + depth` and so on.
    fn run(&self, blocks: u64, operations: u64) -> Result<Counts> {
        let own = (blocks - self.index).div_ceil(self.depth);
        let mut contents = vec![Content::Unknown; usize::try_from(own).unwrap_or(0)];
        let mut random = Random::new(self.area.seed.wrapping_add(self.index));
        let (mut bytes, mut scratch) = (Aligned::new(self.area.block), Aligned::new(self.area.block));
        let mut counts = Counts::default();
        for generation in 0..operations {
            let slot = random.below(own);
            let block = slot * self.depth + self.index;
            let Some(content) = contents.get_mut(slot as usize) else { continue };
            match random.below(100) {
                0..45 => {
                    self.read(block, *content, bytes.bytes(), scratch.bytes())?;
                    counts.reads += 1;
                    counts.verified += u64::from(*content != Content::Unknown);
                }
                45..85 => {
                    self.label(block, generation).write(bytes.bytes());
                    self.file
                        .write_all_at(bytes.bytes(), self.offset(block))
                        .doing(self.what("write", block))?;
                    *content = Content::Generation(generation);
                    counts.writes += 1;
                }
                85..91 => match self.clear(block, BLKZEROOUT, libc::FALLOC_FL_ZERO_RANGE) {
                    Ok(()) => {
                        *content = Content::Zeroes;
                        counts.zeroed += 1;
                    }
                    Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => counts.refused += 1,
                    Err(error) => return Err(error).doing(self.what("zero", block)),
                },
                91..97 if self.discard => {
                    match self.clear(
                        block,
                        BLKDISCARD,
                        libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
                    ) {
                        Ok(()) => {
                            // A device may keep what it discards; a hole in a file is zeroes.
                            *content = if self.device { Content::Unknown } else { Content::Zeroes };
                            counts.discards += 1;
                        }
                        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => counts.refused += 1,
                        Err(error) => return Err(error).doing(self.what("discard", block)),
                    }
                }
                _ => {
                    self.file.sync_data().doing(self.what("flush after", block))?;
                    counts.flushes += 1;
                }
            }
        }
        // All that was written must still be there at the end.
        for (slot, content) in contents.iter().enumerate() {
            if *content != Content::Unknown {
                let block = slot as u64 * self.depth + self.index;
                self.read(block, *content, bytes.bytes(), scratch.bytes())?;
                counts.reads += 1;
                counts.verified += 1;
            }
        }
        Ok(counts)
    }

    fn label(&self, block: u64, generation: u64) -> Label {
        Label { block, seed: self.area.seed, generation }
    }

    fn offset(&self, block: u64) -> u64 {
        block * self.area.block as u64
    }

    fn what(&self, verb: &str, block: u64) -> String {
        format!("{verb} block {block} of {}", self.area.path.display())
    }

    fn read(&self, block: u64, content: Content, bytes: &mut [u8], scratch: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(bytes, self.offset(block)).doing(self.what("read", block))?;
        match content {
            Content::Unknown => Ok(()),
            Content::Generation(generation) => self.label(block, generation).check(bytes, scratch),
            Content::Zeroes if bytes.iter().all(|byte| *byte == 0) => Ok(()),
            Content::Zeroes => Err(format!("block {block} was zeroed and is not zeroes")),
        }
        .map_err(|what| Error::Mismatch(format!("{}: {what}", self.area.path.display())))
    }

    /// The request `ioctl` on a device, `fallocate` with `mode` on a file.
    fn clear(&self, block: u64, ioctl: libc::Ioctl, mode: i32) -> io::Result<()> {
        let range = [self.offset(block), self.area.block as u64];
        let done = if self.device {
            // SAFETY: the kernel reads two numbers behind the pointer, which lives during the call.
            unsafe { libc::ioctl(self.file.as_raw_fd(), ioctl, range.as_ptr()) }
        } else {
            let [start, len] = range.map(|number| i64::try_from(number).unwrap_or(i64::MAX));
            // SAFETY: takes numbers only.
            unsafe { libc::fallocate(self.file.as_raw_fd(), mode, start, len) }
        };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_file_survives_churn() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        let area = Area { path, seed: 5, bytes: 1 << 20, block: 4096, depth: 3, direct: false };
        churn(&area, 2000, true).unwrap();
        assert!(matches!(churn(&Area { bytes: 8192, ..area }, 10, true), Err(Error::Arguments(_))));
    }
}
