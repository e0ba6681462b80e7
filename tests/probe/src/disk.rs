//! Fills a disk (or a file) with blocks that say where they belong, and looks whether they are still there.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use crate::error::{Doing, Error, Result};
use crate::pattern::{HEADER_BYTES, Label, Random};

/// Which blocks of what, and how they are reached. Fill and verify take the same.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Area {
    /// A block device or a file (made when it is not there)
    pub(crate) path: PathBuf,
    /// What the blocks' content is made of
    #[arg(long)]
    pub(crate) seed: u64,
    /// How many bytes from the start
    #[arg(long)]
    pub(crate) bytes: u64,
    /// Bytes in a block, which is one request
    #[arg(long, default_value_t = 4096)]
    pub(crate) block: usize,
    /// How many requests are under way at a time (threads)
    #[arg(long, default_value_t = 1)]
    pub(crate) depth: usize,
    /// Past the page cache (O_DIRECT)
    #[arg(long)]
    pub(crate) direct: bool,
}

impl Area {
    pub(crate) fn blocks(&self) -> Result<u64> {
        let block = self.block as u64;
        if self.block < HEADER_BYTES + 8 || !self.block.is_multiple_of(8) || !self.bytes.is_multiple_of(block)
        {
            return Err(Error::Arguments(format!(
                "--bytes {} must be a multiple of --block {}, and that one of 8 and at least {}",
                self.bytes,
                self.block,
                HEADER_BYTES + 8
            )));
        }
        if self.depth == 0 || self.depth > 1024 {
            return Err(Error::Arguments(format!("--depth {} is not between 1 and 1024", self.depth)));
        }
        Ok(self.bytes / block)
    }

    pub(crate) fn open(&self, write: bool) -> Result<File> {
        let mut options = OpenOptions::new();
        // A missing device must not become a file of that name.
        let file = !self.path.starts_with("/dev") || self.path.starts_with("/dev/shm");
        options.read(true).write(write).create(write && file);
        if self.direct {
            options.custom_flags(libc::O_DIRECT);
        }
        options.open(&self.path).doing(format!("open {}", self.path.display()))
    }

    /// Runs `work` on every block of `order`, `depth` blocks at a time; the first error ends it all.
    fn each(
        &self,
        order: &[u64],
        work: impl Fn(u64, &mut [u8], &mut [u8]) -> Result<()> + Sync,
    ) -> Result<()> {
        let next = AtomicUsize::new(0);
        let (block, next, work) = (self.block, &next, &work);
        std::thread::scope(|scope| {
            let worker = || -> Result<()> {
                let (mut one, mut other) = (Aligned::new(block), Aligned::new(block));
                while let Some(number) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(error) = work(*number, one.bytes(), other.bytes()) {
                        next.store(order.len(), Ordering::Relaxed);
                        return Err(error);
                    }
                }
                Ok(())
            };
            let workers: Vec<_> = (0..self.depth)
                .map(|_| std::thread::Builder::new().stack_size(64 << 10).spawn_scoped(scope, worker))
                .collect::<std::io::Result<_>>()
                .doing("start a thread")?;
            workers.into_iter().try_for_each(|worker| joined(worker.join()))
        })
    }
}

/// A thread's result; one that panicked is a failure of the probe itself.
pub(crate) fn joined<T>(result: std::thread::Result<Result<T>>) -> Result<T> {
    result.unwrap_or_else(|_| Err(Error::Mismatch("a thread of the probe panicked".into())))
}

/// Memory that O_DIRECT takes.
pub(crate) struct Aligned {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    const ALIGNMENT: usize = 4096;

    pub(crate) fn new(len: usize) -> Self {
        let memory = vec![0; len + Self::ALIGNMENT];
        let start = memory.as_ptr().align_offset(Self::ALIGNMENT);
        Self { memory, start, len }
    }

    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

fn order(blocks: u64, random: bool, seed: u64) -> Vec<u64> {
    if random { Random::new(seed).order(blocks) } else { (0..blocks).collect() }
}

/// Says `prefix`, and at what rate it went.
fn report(prefix: &str, area: &Area, blocks: u64, start: Instant) {
    let seconds = start.elapsed().as_secs_f64();
    println!("{prefix} blocks={blocks} bytes={} depth={} seconds={seconds:.3}", area.bytes, area.depth);
}

/// `disk-fill`: every block once. With `fsync`, the last line means that all is on the disk.
pub(crate) fn fill(area: &Area, random: bool, fsync: bool) -> Result<()> {
    let (blocks, file) = (area.blocks()?, area.open(true)?);
    let start = Instant::now();
    area.each(&order(blocks, random, area.seed), |block, bytes, _| {
        Label { block, seed: area.seed, generation: 0 }.write(bytes);
        file.write_all_at(bytes, block * area.block as u64)
            .doing(format!("write block {block} of {}", area.path.display()))
    })?;
    report("written", area, blocks, start);
    if fsync {
        file.sync_all().doing(format!("flush {}", area.path.display()))?;
        println!("flushed bytes={}", area.bytes);
    }
    std::io::stdout().flush().doing("write to standard output")
}

/// `disk-verify`: reads them all, in an order that is not the one they were written in.
pub(crate) fn verify(area: &Area, random: bool) -> Result<()> {
    let (blocks, file) = (area.blocks()?, area.open(false)?);
    forget_cached(&file, &area.path)?;
    let start = Instant::now();
    area.each(&order(blocks, random, !area.seed), |block, bytes, scratch| {
        file.read_exact_at(bytes, block * area.block as u64)
            .doing(format!("read block {block} of {}", area.path.display()))?;
        let label = Label { block, seed: area.seed, generation: 0 };
        label
            .check(bytes, scratch)
            .map_err(|what| Error::Mismatch(format!("{}: {what}", area.path.display())))
    })?;
    println!("verified {blocks} blocks");
    report("read", area, blocks, start);
    Ok(())
}

/// What is read next comes from the disk, not from the page cache.
pub(crate) fn forget_cached(file: &File, path: &Path) -> Result<()> {
    nix::fcntl::posix_fadvise(file, 0, 0, nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED)
        .doing(format!("drop cached pages of {}", path.display()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn area(path: PathBuf) -> Area {
        Area { path, seed: 9, bytes: 64 << 10, block: 512, depth: 4, direct: false }
    }

    #[test]
    fn what_was_filled_verifies_and_one_changed_byte_does_not() {
        let directory = tempfile::tempdir().unwrap();
        let area = area(directory.path().join("disk"));
        fill(&area, true, true).unwrap();
        verify(&area, true).unwrap();
        assert!(verify(&Area { seed: 10, ..area.clone() }, true).is_err());
        let mut content = std::fs::read(&area.path).unwrap();
        content[512 * 77 + 100] ^= 1;
        std::fs::write(&area.path, content).unwrap();
        let text = verify(&area, true).unwrap_err().to_string();
        assert!(text.contains("block 77 of seed 9") && text.ends_with("damaged"), "{text}");
    }

    #[test]
    fn a_short_file_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let area = area(directory.path().join("disk"));
        fill(&area, false, false).unwrap();
        OpenOptions::new().write(true).open(&area.path).unwrap().set_len(4096).unwrap();
        assert!(verify(&area, false).is_err());
    }

    #[test]
    fn sizes_that_do_not_fit_are_refused() {
        let good = area("/nowhere".into());
        for bad in [
            Area { block: 100, ..good.clone() },
            Area { block: 32, ..good.clone() },
            Area { bytes: 1000, ..good.clone() },
            Area { depth: 0, ..good.clone() },
        ] {
            assert!(matches!(bad.blocks(), Err(Error::Arguments(_))), "{bad:?}");
        }
    }
}
