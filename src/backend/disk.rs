//! Raw disk images: a file or block device whose bytes are the disk's bytes.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use vm_memory::VolatileSlice;

/// Bytes in a sector, the unit of the virtio-blk protocol (virtio 1.2 §5.2.4).
pub const SECTOR: u64 = 512;

/// Why an image cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// It cannot be opened.
    #[error("the disk {path} cannot be opened for {access}: {source}")]
    Open {
        /// The image.
        path: PathBuf,
        /// `reading` or `writing`.
        access: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
    /// It is a directory, a socket, ….
    #[error("the disk {0} is neither a regular file nor a block device")]
    NotADisk(PathBuf),
    /// Somebody else holds its lock.
    #[error(
        "the disk {0} is in use by another VM, or by another disk of this one; stop that VM, or open the disk readonly=true everywhere"
    )]
    Locked(PathBuf),
    /// It holds no sector.
    #[error(
        "the disk {path} has {size_bytes} bytes, less than one sector of 512; make it larger, for example with truncate -s 1G"
    )]
    Empty {
        /// The image.
        path: PathBuf,
        /// Its size.
        size_bytes: u64,
    },
    /// Its size or lock cannot be read.
    #[error("the disk {path} cannot be examined: {source}")]
    Examine {
        /// The image.
        path: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
}

/// An open, locked raw image.
#[derive(Debug)]
pub struct RawDisk {
    file: File,
    path: PathBuf,
    sectors: u64,
    readonly: bool,
}

impl RawDisk {
    /// Opens and locks the image: exclusively to write, shared to read. The lock goes when the process does.
    ///
    /// # Errors
    /// See [`DiskError`].
    pub fn open(path: &Path, readonly: bool) -> Result<Self, DiskError> {
        let access = if readonly { "reading" } else { "writing" };
        let failed = |source| DiskError::Open { path: path.into(), access, source };
        let examine = |source| DiskError::Examine { path: path.into(), source };
        // Before it is opened: opening a FIFO waits, and opening a device can do anything.
        let kind = path.metadata().map_err(failed)?.file_type();
        if !(kind.is_file() || kind.is_block_device()) {
            return Err(DiskError::NotADisk(path.into()));
        }
        let mut file = OpenOptions::new().read(true).write(!readonly).open(path).map_err(failed)?;
        lock(&file, readonly).map_err(|errno| match errno {
            Errno::EAGAIN | Errno::EACCES => DiskError::Locked(path.into()),
            other => examine(other.into()),
        })?;
        // The end of a block device is its size, where its metadata says 0.
        let size_bytes = file.seek(SeekFrom::End(0)).map_err(examine)?;
        if size_bytes < SECTOR {
            return Err(DiskError::Empty { path: path.into(), size_bytes });
        }
        if size_bytes % SECTOR != 0 {
            tracing::warn!(disk = %path.display(), "the last {} bytes are not a whole sector; the guest does not see them", size_bytes % SECTOR);
        }
        Ok(Self { file, path: path.into(), sectors: size_bytes / SECTOR, readonly })
    }

    /// The image.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Size in sectors.
    #[must_use]
    pub fn sectors(&self) -> u64 {
        self.sectors
    }

    /// Whether the guest may not write.
    #[must_use]
    pub fn readonly(&self) -> bool {
        self.readonly
    }

    /// Fills `buffers` from byte `offset`.
    ///
    /// # Errors
    /// The kernel's own, and a file that has become shorter.
    pub fn read_at(&self, buffers: &[VolatileSlice<'_>], offset: u64) -> io::Result<()> {
        self.transfer(buffers, offset, libc::preadv)
    }

    /// Writes `buffers` at byte `offset`.
    ///
    /// # Errors
    /// The kernel's own.
    pub fn write_at(&self, buffers: &[VolatileSlice<'_>], offset: u64) -> io::Result<()> {
        self.transfer(buffers, offset, libc::pwritev)
    }

    /// Everything written so far is on the medium when this returns.
    ///
    /// # Errors
    /// The kernel's own.
    pub fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn transfer(
        &self,
        buffers: &[VolatileSlice<'_>],
        mut offset: u64,
        vectored: VectoredCall,
    ) -> io::Result<()> {
        let guards: Vec<_> = buffers.iter().map(VolatileSlice::ptr_guard_mut).collect();
        let mut vectors: Vec<libc::iovec> = guards
            .iter()
            .filter(|guard| guard.len() > 0)
            .map(|guard| libc::iovec { iov_base: guard.as_ptr().cast(), iov_len: guard.len() })
            .collect();
        let mut rest = vectors.as_mut_slice();
        while !rest.is_empty() {
            let count = rest.len().min(MAX_VECTORS) as libc::c_int;
            let at = libc::off_t::try_from(offset).map_err(io::Error::other)?;
            // SAFETY: every iovec is guest memory that `guards` keeps mapped; the guest may change it at any time, but no
            // Rust reference to it exists.
            let done = unsafe { vectored(self.file.as_raw_fd(), rest.as_ptr(), count, at) };
            match usize::try_from(done) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(done) => {
                    offset += done as u64;
                    rest = advance(rest, done);
                }
                Err(_) => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        return Err(error);
                    }
                }
            }
        }
        Ok(())
    }
}

type VectoredCall =
    unsafe extern "C" fn(libc::c_int, *const libc::iovec, libc::c_int, libc::off_t) -> libc::ssize_t;

/// UIO_MAXIOV of Linux.
const MAX_VECTORS: usize = 1024;

/// Drops the first `done` bytes of `vectors`.
fn advance(mut vectors: &mut [libc::iovec], mut done: usize) -> &mut [libc::iovec] {
    while let Some(first) = vectors.first_mut() {
        if done < first.iov_len {
            first.iov_base = first.iov_base.cast::<u8>().wrapping_add(done).cast();
            first.iov_len -= done;
            break;
        }
        done -= first.iov_len;
        vectors = &mut vectors[1..];
    }
    vectors
}

/// An open-file-description lock over the whole file: it belongs to this open file, not to the process, so that two disks
/// of one VM on one image collide as well.
fn lock(file: &File, shared: bool) -> nix::Result<()> {
    let kind = if shared { libc::F_RDLCK } else { libc::F_WRLCK };
    let whole = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_OFD_SETLK(&whole)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn image(bytes: usize) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&vec![0x5a; bytes]).unwrap();
        file
    }

    #[test]
    fn scattered_buffers_are_written_and_read_back() {
        let image = image(4096);
        let disk = RawDisk::open(image.path(), false).unwrap();
        let mut first = [1_u8; 100];
        let mut second = [2_u8; 412];
        let buffers = [VolatileSlice::from(&mut first[..]), VolatileSlice::from(&mut second[..])];
        disk.write_at(&buffers, 512).unwrap();
        let mut back = [0_u8; 1024];
        disk.read_at(&[VolatileSlice::from(&mut back[..])], 256).unwrap();
        assert_eq!(back[..256], [0x5a; 256]);
        assert_eq!(back[256..356], [1; 100]);
        assert_eq!(back[356..768], [2; 412]);
        let mut beyond = [0_u8; 512];
        let error = disk.read_at(&[VolatileSlice::from(&mut beyond[..])], 4096).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn one_writer_or_many_readers() {
        let image = image(512);
        let writer = RawDisk::open(image.path(), false).unwrap();
        for readonly in [false, true] {
            assert!(matches!(RawDisk::open(image.path(), readonly), Err(DiskError::Locked(_))));
        }
        drop(writer);
        let _reader = RawDisk::open(image.path(), true).unwrap();
        let _another = RawDisk::open(image.path(), true).unwrap();
        assert!(matches!(RawDisk::open(image.path(), false), Err(DiskError::Locked(_))));
    }

    #[test]
    fn what_is_not_a_disk_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("missing.img");
        let text = |result: Result<RawDisk, DiskError>| result.unwrap_err().to_string();
        assert!(text(RawDisk::open(&missing, true)).contains("missing.img"));
        let fifo = directory.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for path in [directory.path(), &fifo, Path::new("/dev/null")] {
            assert!(text(RawDisk::open(path, true)).contains("neither"));
        }
        assert!(text(RawDisk::open(image(511).path(), true)).contains("511 bytes"));
    }
}
