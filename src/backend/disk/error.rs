//! Why an image cannot be used.

use std::io;
use std::path::PathBuf;

/// Why an image cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// It cannot be opened.
    #[error("the disk {path} cannot be opened for {access}: {}", words(cause))]
    Open {
        /// The image.
        path: PathBuf,
        /// `reading` or `writing`.
        access: &'static str,
        /// The kernel's reason.
        cause: io::Error,
    },
    /// It is a directory, a socket, ….
    #[error("the disk {0} is neither a regular file nor a block device")]
    NotADisk(PathBuf),
    /// It is to be replaced, and somebody has it open.
    #[error(
        "{path} is not replaced while it is in use{}: stop who uses it, or choose another name",
        by_whom(by)
    )]
    InUse {
        /// The image.
        path: PathBuf,
        /// The processes that hold locks, where we can see them.
        by: Vec<String>,
    },
    /// It is to be replaced by a copy of what is read from it.
    #[error("{0} is what is being copied, or a backing file of it: choose another name for the copy")]
    Itself(PathBuf),
    /// Somebody else holds its lock.
    #[error(
        "the disk {path} is in use by another VM, or by another disk of this one{}; stop that VM, or open the disk readonly=true everywhere",
        by_whom(by)
    )]
    Locked {
        /// The image.
        path: PathBuf,
        /// The processes that hold locks, where we can see them.
        by: Vec<String>,
    },
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
    #[error("the disk {path} cannot be examined: {}", words(cause))]
    Examine {
        /// The image.
        path: PathBuf,
        /// The kernel's reason.
        cause: io::Error,
    },
    /// The file system cannot do without the page cache.
    #[error(
        "the file system of the disk {0} has no O_DIRECT: leave out direct=true, or move the image to another volume"
    )]
    NoDirect(PathBuf),
    /// Bytes and name say different things about its format.
    #[error("the disk {path} {}", disagreement(*begins, say))]
    Ambiguous {
        /// The image.
        path: PathBuf,
        /// Whether it is the beginning that says qcow2, and not the name.
        begins: bool,
        /// What to write before the format: `format=`, `--format `, ….
        say: &'static str,
    },
    /// A partition that is no raw image.
    #[error(
        "the image {0} looks like qcow2 by its name or its beginning, and partitions are raw images: make a raw one with `nestling disk convert`, or say format=raw if it is raw all the same"
    )]
    NotRaw(PathBuf),
    /// It is called qcow2 and is none.
    #[error(
        "the disk {path} is no sound qcow2 image: {reason}; go back to a copy of it, or say its right format"
    )]
    NotQcow2 {
        /// The image.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
    /// It is a qcow2 image of a kind that is not supported.
    #[error("the qcow2 image {path} {problem}")]
    Qcow2 {
        /// The image.
        path: PathBuf,
        /// What about it, and what mends it.
        problem: String,
    },
    /// Its backing file cannot be used.
    #[error("the backing file of {image}: {source}")]
    Backing {
        /// The image that names the backing file.
        image: PathBuf,
        /// What is wrong with it.
        source: Box<DiskError>,
    },
    /// A partition of a composite disk cannot be used.
    #[error("the partition {label}: {source}")]
    Partition {
        /// Its label.
        label: String,
        /// What is wrong with it.
        source: Box<DiskError>,
    },
    /// A composite disk that no partition table can describe.
    #[error("the composite disk cannot be laid out: {0}")]
    Layout(String),
    /// The asynchronous engine that was asked for is not there.
    #[error("the disk {disk} cannot use io_uring: {reason}; leave out io=uring, or write io=threads")]
    NoUring {
        /// Its name.
        disk: String,
        /// Why.
        reason: String,
    },
    /// An engine's threads or descriptors cannot be made.
    #[error("the I/O engine of the disk {disk} cannot be started: {}", words(cause))]
    Engine {
        /// Its name.
        disk: String,
        /// The kernel's reason.
        cause: io::Error,
    },
    /// What it holds cannot be read.
    #[error("the disk {disk} cannot be read: {}", words(cause))]
    Read {
        /// Its name.
        disk: String,
        /// The reason.
        cause: io::Error,
    },
    /// Somebody stopped it before it was complete.
    #[error("{0} is not made: stopped by a signal")]
    Stopped(PathBuf),
    /// An image cannot be made.
    #[error("the disk {path} cannot be written: {}", words(cause))]
    Write {
        /// The image.
        path: PathBuf,
        /// The reason.
        cause: io::Error,
    },
    /// An image is in the new one's place.
    #[error("{0} exists: choose another name, or replace it with --force")]
    Exists(PathBuf),
}

impl DiskError {
    /// The same error, where the question for a format is answered by `say` (`--format `) and not by `format=`.
    #[must_use]
    pub fn answered_by(mut self, by: &'static str) -> Self {
        match &mut self {
            Self::Ambiguous { say, .. } => *say = by,
            Self::Backing { source, .. } | Self::Partition { source, .. } => {
                let inner = std::mem::replace(&mut **source, Self::Layout(String::new()));
                **source = inner.answered_by(by);
            }
            _ => {}
        }
        self
    }
}

fn disagreement(begins: bool, say: &str) -> String {
    if begins {
        format!(
            "begins like a qcow2 image but its name does not end in .qcow2: say {say}qcow2, or {say}raw if a guest may have written that beginning"
        )
    } else {
        format!(
            "has a name that ends in .qcow2 but does not begin as such an image: say {say}raw if that is what it is"
        )
    }
}

fn by_whom(by: &[String]) -> String {
    if by.is_empty() { String::new() } else { format!(" (process {})", by.join(", ")) }
}

/// An I/O error without its number.
pub(super) fn words(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(code) => nix::errno::Errno::from_raw(code).desc().to_owned(),
        None => error.to_string(),
    }
}
