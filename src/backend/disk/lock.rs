//! Who may open an image at the same time: one writer, or many readers.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::stat::{major, minor};

use super::DiskError;

/// How often a lock is tried again, and after how long. A process that is just being started holds what its parent has
/// open until it executes its own program, and one that was killed until the kernel has cleaned up.
const ATTEMPTS: u32 = 12;
const PAUSE: Duration = Duration::from_millis(25);

/// Locks an image, exclusively to write or shared to read; who has it locked is given a third of a second. The lock is an open-file-description lock
/// over the whole file (fcntl(2), `F_OFD_SETLK`): it belongs to this open file, not to the process, so that two disks of
/// one VM on one image collide as well; it goes when the file is closed.
pub(super) fn lock(file: &File, path: &Path, readonly: bool) -> Result<(), DiskError> {
    let kind = if readonly { libc::F_RDLCK } else { libc::F_WRLCK };
    for _ in 0..ATTEMPTS {
        match fcntl(file, FcntlArg::F_OFD_SETLK(&whole(kind))) {
            Ok(_) => return Ok(()),
            Err(Errno::EAGAIN | Errno::EACCES) => std::thread::sleep(PAUSE),
            Err(errno) => return Err(DiskError::Examine { path: path.into(), cause: errno.into() }),
        }
    }
    Err(DiskError::Locked { path: path.into(), by: holders(file) })
}

fn whole(kind: libc::c_int) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

/// How somebody else has locked an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Held {
    /// Nobody has.
    Free,
    /// To read: it may be opened read-only.
    Shared,
    /// To write: nobody else may open it.
    Exclusive,
}

/// How `file` is locked by others (`F_OFD_GETLK`).
pub(super) fn held(file: &File) -> nix::Result<Held> {
    let mut found = whole(libc::F_WRLCK);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut found))?;
    Ok(match libc::c_int::from(found.l_type) {
        libc::F_UNLCK => Held::Free,
        libc::F_RDLCK => Held::Shared,
        _ => Held::Exclusive,
    })
}

/// The processes that hold a lock on this file, as far as `/proc` shows them to us: `1234 (nestling)`, sorted by id. The
/// lock itself does not name its holder.
pub(super) fn holders(file: &File) -> Vec<String> {
    let Ok(metadata) = file.metadata() else { return Vec::new() };
    let device = metadata.dev();
    let mark = format!(" {:02x}:{:02x}:{} ", major(device), minor(device), metadata.ino());
    let mut pids: Vec<u32> = numbered("/proc".as_ref()).filter(|pid| holds(*pid, &mark)).collect();
    pids.sort_unstable();
    pids.into_iter().map(with_name).collect()
}

fn holds(pid: u32, mark: &str) -> bool {
    let descriptors = format!("/proc/{pid}/fdinfo");
    numbered(descriptors.as_ref()).any(|number| {
        fs::read_to_string(format!("{descriptors}/{number}"))
            .is_ok_and(|text| text.lines().any(|line| line.starts_with("lock:") && line.contains(mark)))
    })
}

fn with_name(pid: u32) -> String {
    match fs::read_to_string(format!("/proc/{pid}/comm")) {
        Ok(name) => format!("{pid} ({})", name.trim_end()),
        Err(_) => pid.to_string(),
    }
}

/// The entries of a directory whose names are numbers.
fn numbered(directory: &Path) -> impl Iterator<Item = u32> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holder_is_found_and_named() {
        let image = tempfile::NamedTempFile::new().unwrap();
        let (first, second) = (image.reopen().unwrap(), image.reopen().unwrap());
        assert_eq!(held(&second), Ok(Held::Free));
        lock(&first, image.path(), true).unwrap();
        assert_eq!(held(&second), Ok(Held::Shared));
        lock(&second, image.path(), true).unwrap();
        drop(second);
        let second = image.reopen().unwrap();
        lock(&first, image.path(), false).unwrap();
        assert_eq!(held(&second), Ok(Held::Exclusive));
        let refusal = lock(&second, image.path(), true).unwrap_err().to_string();
        assert!(refusal.contains(&format!("process {} (", std::process::id())), "{refusal}");
    }
}
