//! A file that is read straight into guest memory.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::BootError;

/// An opened image file whose length is known.
#[derive(Debug)]
pub struct ImageFile {
    what: &'static str,
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl ImageFile {
    /// Opens `path`; `what` names it in messages ("kernel", "initrd").
    ///
    /// # Errors
    /// When it is not there, not readable, not a regular file, or empty.
    pub fn open(what: &'static str, path: &Path) -> Result<Self, BootError> {
        let failed = |source| BootError::Open { what, path: path.to_owned(), source };
        // Before opening it: opening a pipe would wait for somebody to write into it.
        if let Some(is) = other_than_file(&std::fs::metadata(path).map_err(failed)?) {
            return Err(BootError::NotAFile { what, path: path.to_owned(), is });
        }
        let file = File::open(path).map_err(failed)?;
        let bytes = file.metadata().map_err(failed)?.len();
        if bytes == 0 {
            return Err(BootError::Empty { what, path: path.to_owned() });
        }
        Ok(Self { what, path: path.to_owned(), file, bytes })
    }

    /// The path it was opened by.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its length in bytes when it was opened, never 0.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Reads exactly `buffer.len()` bytes at `offset`.
    ///
    /// # Errors
    /// When the file ends before or cannot be read.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), BootError> {
        self.file
            .read_exact_at(buffer, offset)
            .map_err(|error| self.read_error(offset, buffer.len() as u64, error.into()))
    }

    /// The first bytes of the file: `N` of them, zeros where it is shorter.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn head<const N: usize>(&self) -> Result<[u8; N], BootError> {
        let mut head = [0; N];
        let available = usize::try_from(self.bytes).unwrap_or(N).min(N);
        self.read_at(0, &mut head[..available])?;
        Ok(head)
    }

    /// Reads `bytes` at `offset` into guest memory at `start`, without a copy in between.
    ///
    /// # Errors
    /// When the file ends before, cannot be read, or the guest has no RAM there.
    pub fn read_into(
        &mut self,
        offset: u64,
        bytes: u64,
        memory: &GuestMemoryMmap,
        start: GuestAddress,
    ) -> Result<(), BootError> {
        let count = usize::try_from(bytes).unwrap_or(usize::MAX);
        let sought = self.file.seek(SeekFrom::Start(offset));
        sought.map_err(|error| self.read_error(offset, bytes, error.into()))?;
        // One read(2) takes at most 0x7ffff000 bytes, and a file on a network may give fewer at any time.
        let mut done = 0;
        while done < count {
            let at = GuestAddress(start.0.saturating_add(done as u64));
            let read = memory.read_volatile_from(at, &mut self.file, (count - done).min(MAX_READ));
            match read.map_err(|error| self.read_error(offset, bytes, error.into()))? {
                0 => return Err(self.read_error(offset, bytes, "the file ends early".into())),
                more => done += more,
            }
        }
        Ok(())
    }

    fn read_error(
        &self,
        offset: u64,
        bytes: u64,
        source: Box<dyn std::error::Error + Send + Sync>,
    ) -> BootError {
        BootError::Read { what: self.what, path: self.path.clone(), offset, bytes, source }
    }
}

/// Bytes asked for at once.
const MAX_READ: usize = 1 << 30;

fn other_than_file(metadata: &std::fs::Metadata) -> Option<&'static str> {
    let kind = metadata.file_type();
    match kind {
        _ if kind.is_file() => None,
        _ if kind.is_dir() => Some("a directory"),
        _ if kind.is_fifo() => Some("a pipe"),
        _ if kind.is_socket() => Some("a socket"),
        _ if kind.is_block_device() => Some("a block device"),
        _ => Some("a character device"),
    }
}
