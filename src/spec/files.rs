//! Looks at the files a spec names, before anything is started.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::config::Given;
use super::error::{Problem, SpecError};

/// An I/O error without its number, with what mends the usual ones.
pub(crate) fn in_words(error: &io::Error) -> String {
    let Some(code) = error.raw_os_error() else { return error.to_string() };
    let words = nix::errno::Errno::from_raw(code).desc();
    match code {
        libc::ENOENT => format!("{words} (check the path; in a pod, check the volume mount)"),
        libc::EACCES => format!("{words} (check its owner and mode for user {})", nix::unistd::geteuid()),
        libc::EROFS => format!("{words} (mark it readonly, or mount the volume writable)"),
        libc::ETXTBSY => format!("{words} (another process uses it as a program)"),
        _ => words.to_owned(),
    }
}

/// Checks that a kernel or an initrd is a file that can be read; gives its size in bytes.
pub(super) fn check_image(given: &Given<PathBuf>, what: &'static str) -> Result<u64, SpecError> {
    let (_, metadata) = open(given, &given.value, what, false)?;
    let wanted = "a regular file";
    if !metadata.is_file() {
        return Err(wrong_kind(given, &given.value, what, kind_in_words(&metadata), wanted));
    }
    if metadata.len() == 0 {
        return Err(wrong_kind(given, &given.value, what, "empty", wanted));
    }
    Ok(metadata.len())
}

/// Checks that a disk is a file or a block device that can be opened as it will be used.
pub(super) fn check_disk<T>(given: &Given<T>, path: &Path, readonly: bool) -> Result<(), SpecError> {
    let (_, metadata) = open(given, path, "disk", !readonly)?;
    if metadata.file_type().is_block_device() {
        return Ok(());
    }
    if !metadata.is_file() {
        let wanted = "an image file or a block device";
        return Err(wrong_kind(given, path, "disk", kind_in_words(&metadata), wanted));
    }
    if metadata.len() < 512 {
        return Err(given.refuse(Problem::DiskEmpty { path: path.to_owned(), bytes: metadata.len() }));
    }
    Ok(())
}

/// Checks that a directory can be listed.
pub(super) fn check_directory<T>(given: &Given<T>, path: &Path) -> Result<(), SpecError> {
    let (_, metadata) = open(given, path, "shared directory", false)?;
    if metadata.is_dir() {
        return Ok(());
    }
    Err(wrong_kind(given, path, "shared directory", kind_in_words(&metadata), "a directory"))
}

/// Checks that the status file's directory is there and that no directory is in its place.
pub(super) fn check_status_file(given: &Given<PathBuf>) -> Result<(), SpecError> {
    let path = &given.value;
    let refuse = |reason: String| Err(given.refuse(Problem::StatusFile { path: path.clone(), reason }));
    if let Some(found) = occupied(path) {
        return refuse(format!("{found} is there"));
    }
    let parent = match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => return refuse("it is no file name".to_owned()),
    };
    match nix::unistd::access(parent, nix::unistd::AccessFlags::W_OK) {
        Ok(()) if parent.is_dir() => Ok(()),
        Ok(()) => refuse(format!("{} is no directory", parent.display())),
        Err(errno) => refuse(format!("its directory {}: {}", parent.display(), in_words(&errno.into()))),
    }
}

/// What is at a status file's path that must not be replaced: anything but a regular file that is empty or a JSON object.
fn occupied(path: &Path) -> Option<&'static str> {
    let metadata = path.symlink_metadata().ok()?;
    if metadata.is_dir() {
        return Some("a directory");
    }
    if !metadata.is_file() {
        return Some("something that is no regular file");
    }
    let mut first = [0; 1];
    let read = File::open(path).and_then(|mut file| file.read(&mut first));
    match read {
        Ok(0) => None,
        Ok(_) if first == *b"{" => None,
        Ok(_) => Some("a file that is no status"),
        Err(_) => Some("a file that cannot be read"),
    }
}

/// Opens without waiting, so that a FIFO in a kernel's place cannot hang us.
fn open<T>(
    given: &Given<T>,
    path: &Path,
    what: &'static str,
    write: bool,
) -> Result<(File, Metadata), SpecError> {
    OpenOptions::new()
        .read(true)
        .write(write)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .and_then(|file| file.metadata().map(|metadata| (file, metadata)))
        .map_err(|error| {
            given.refuse(Problem::Open { what, path: path.to_owned(), reason: in_words(&error) })
        })
}

fn wrong_kind<T>(
    given: &Given<T>,
    path: &Path,
    what: &'static str,
    found: &'static str,
    wanted: &'static str,
) -> SpecError {
    given.refuse(Problem::WrongKind { what, path: path.to_owned(), found, wanted })
}

fn kind_in_words(metadata: &Metadata) -> &'static str {
    let kind = metadata.file_type();
    if kind.is_dir() {
        "a directory"
    } else if kind.is_char_device() {
        "a character device"
    } else if kind.is_fifo() {
        "a pipe"
    } else if kind.is_socket() {
        "a socket"
    } else if kind.is_block_device() {
        "a block device"
    } else {
        "a file"
    }
}
