//! An image that appears under its name when it is complete, or not at all.
//!
//! Until then it has no name (`O_TMPFILE`, open(2)), and whatever kills us takes it along. A file system without such files
//! has it as `.NAME.PID.NANOSECONDS.new` beside its place; what a killed process left there is removed by the next one.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, RenameFlags, renameat2};
use nix::sys::signal::kill;
use nix::unistd::{Pid, linkat};

use super::DiskError;
use super::lock::{Held, held, holders};

/// A draft that nobody has touched for so long, and whose process is gone, is nobody's. That another pod's process is gone
/// cannot be seen from here.
const STALE_AFTER: Duration = Duration::from_secs(60);

/// An image that has not got its name yet. Dropped before it is published, it is gone.
#[derive(Debug)]
pub(super) struct Draft {
    file: File,
    /// The name it has for the time being, if it must have one.
    name: Option<PathBuf>,
    target: PathBuf,
    force: bool,
}

impl Draft {
    /// Makes an empty file on the file system of the one to come.
    pub(super) fn begin(target: &Path, force: bool) -> Result<Self, DiskError> {
        check_replaceable(target, force)?;
        remove_stale(target);
        match nameless(target) {
            Some(file) => Ok(Self { file, name: None, target: target.into(), force }),
            None => Self::begin_named(target, force),
        }
    }

    fn begin_named(target: &Path, force: bool) -> Result<Self, DiskError> {
        let failed = |source| DiskError::Write { path: target.into(), cause: source };
        let name = draft_name(target).map_err(failed)?;
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&name);
        Ok(Self { file: file.map_err(failed)?, name: Some(name), target: target.into(), force })
    }

    /// The file.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Where it can be opened once more.
    pub(super) fn path(&self) -> PathBuf {
        self.name.clone().unwrap_or_else(|| own_descriptor(&self.file))
    }

    /// Gives it its name, once all of it is on the medium.
    pub(super) fn publish(mut self) -> Result<(), DiskError> {
        let failed = |source| DiskError::Write { path: self.target.clone(), cause: source };
        self.file.sync_all().map_err(failed)?;
        check_replaceable(&self.target, self.force)?;
        let placed = match self.name.take() {
            None => self.place_nameless(),
            Some(name) => {
                let placed = self.place_named(&name);
                self.name = placed.is_err().then_some(name);
                placed
            }
        };
        match placed {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(DiskError::Exists(self.target.clone()));
            }
            Err(error) => return Err(failed(error)),
        }
        File::open(directory(&self.target)).and_then(|directory| directory.sync_all()).map_err(failed)
    }

    /// A link never replaces: what is to be replaced needs a name for the moment before the rename.
    fn place_nameless(&self) -> io::Result<()> {
        let link = |to: &Path| {
            let from = own_descriptor(&self.file);
            linkat(AT_FDCWD, &from, AT_FDCWD, to, AtFlags::AT_SYMLINK_FOLLOW).map_err(io::Error::from)
        };
        match link(&self.target) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && self.force => {
                let name = draft_name(&self.target)?;
                link(&name)?;
                // The name may be gone already; there is nobody to tell.
                fs::rename(&name, &self.target).inspect_err(|_| drop(fs::remove_file(&name)))
            }
            other => other,
        }
    }

    fn place_named(&self, name: &Path) -> io::Result<()> {
        let flags = if self.force { RenameFlags::empty() } else { RenameFlags::RENAME_NOREPLACE };
        match renameat2(AT_FDCWD, name, AT_FDCWD, &self.target, flags) {
            // A file system without RENAME_NOREPLACE: a link does not replace either.
            Err(Errno::EINVAL) if !self.force => {
                fs::hard_link(name, &self.target).and_then(|()| fs::remove_file(name))
            }
            other => other.map_err(io::Error::from),
        }
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            // It may be gone already; there is nobody to tell.
            let _ = fs::remove_file(name);
        }
    }
}

/// A file without a name, if there can be one that gets its name later: that takes `/proc`.
fn nameless(target: &Path) -> Option<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_TMPFILE).mode(0o600);
    let file = options.open(directory(target)).ok()?;
    own_descriptor(&file).exists().then_some(file)
}

fn own_descriptor(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

fn directory(target: &Path) -> &Path {
    target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// `.NAME.PID.NANOSECONDS.new` beside the target: another pod's process may have the same PID.
fn draft_name(target: &Path) -> io::Result<PathBuf> {
    let name = target.file_name().ok_or_else(|| io::Error::other("it has no file name"))?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_nanos());
    let mut draft = OsString::from(".");
    draft.push(name);
    draft.push(format!(".{}.{now}.new", std::process::id()));
    Ok(target.with_file_name(draft))
}

/// The PID in a draft's name.
fn maker(draft: &OsStr, target: &OsStr) -> Option<i32> {
    let rest = draft.as_bytes().strip_prefix(b".")?.strip_prefix(target.as_bytes())?.strip_prefix(b".")?;
    let (pid, nanoseconds) = std::str::from_utf8(rest).ok()?.strip_suffix(".new")?.split_once('.')?;
    nanoseconds.parse::<u128>().ok()?;
    pid.parse().ok()
}

/// Removes what killed processes have left of drafts for this place. Nothing here is worth failing for.
fn remove_stale(target: &Path) {
    let Some(name) = target.file_name() else { return };
    for entry in fs::read_dir(directory(target)).into_iter().flatten().flatten() {
        // To open anything else may take for ever, as a pipe does, or lead elsewhere.
        if let Some(pid) = maker(&entry.file_name(), name)
            && entry.file_type().is_ok_and(|kind| kind.is_file())
            && is_stale(&entry.path(), pid)
        {
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn is_stale(draft: &Path, pid: i32) -> bool {
    // In a container, the next process often has the number of the last one.
    let is_ours = u32::try_from(pid) == Ok(std::process::id());
    let is_gone = is_ours || kill(Pid::from_raw(pid), None) == Err(Errno::ESRCH);
    let untouched = |file: &File| file.metadata()?.modified()?.elapsed().map_err(io::Error::other);
    is_gone
        && File::open(draft).is_ok_and(|file| {
            held(&file) == Ok(Held::Free) && untouched(&file).is_ok_and(|age| age >= STALE_AFTER)
        })
}

/// Whether a path is free, or may be replaced: with force, a regular file that nobody has locked.
fn check_replaceable(target: &Path, force: bool) -> Result<(), DiskError> {
    let metadata = match target.symlink_metadata() {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(DiskError::Write { path: target.into(), cause: source }),
    };
    if !force {
        return Err(DiskError::Exists(target.into()));
    }
    if !metadata.is_file() {
        let source = io::Error::other("what is there is no regular file, and only that is replaced");
        return Err(DiskError::Write { path: target.into(), cause: source });
    }
    let examine = |source| DiskError::Examine { path: target.into(), cause: source };
    let file = File::open(target).map_err(examine)?;
    match held(&file).map_err(|errno| examine(errno.into()))? {
        Held::Free => Ok(()),
        Held::Shared | Held::Exclusive => Err(DiskError::InUse { path: target.into(), by: holders(&file) }),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap().flatten();
        let mut names: Vec<_> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn begin(target: &Path, force: bool, named: bool) -> Draft {
        let begin = if named { Draft::begin_named } else { Draft::begin };
        let draft = begin(target, force).unwrap();
        draft.file().write_all(b"new").unwrap();
        draft
    }

    #[test]
    fn a_draft_has_no_name_before_it_is_published() {
        let place = tempfile::tempdir().unwrap();
        let target = place.path().join("a.img");
        let draft = begin(&target, false, false);
        assert!(
            names(place.path()).is_empty(),
            "whatever kills us now leaves nothing: {:?}",
            names(place.path())
        );
        assert_eq!(fs::read(draft.path()).unwrap(), b"new");
        draft.publish().unwrap();
        assert_eq!(names(place.path()), ["a.img"]);
    }

    #[test]
    fn both_kinds_replace_only_by_force_and_leave_nothing_beside() {
        for named in [false, true] {
            let place = tempfile::tempdir().unwrap();
            let target = place.path().join("a.img");
            begin(&target, false, named).publish().unwrap();
            fs::write(&target, "old").unwrap();
            drop(begin(&target, true, named));
            assert_eq!(
                (fs::read(&target).unwrap(), names(place.path())),
                (b"old".to_vec(), vec!["a.img".into()])
            );
            begin(&target, true, named).publish().unwrap();
            assert_eq!(
                (fs::read(&target).unwrap(), names(place.path())),
                (b"new".to_vec(), vec!["a.img".into()])
            );
            fs::remove_file(&target).unwrap();
            let late = begin(&target, false, named);
            fs::write(&target, "somebody was faster").unwrap();
            assert!(matches!(late.publish(), Err(DiskError::Exists(_))));
            assert_eq!(names(place.path()), ["a.img"]);
        }
    }

    #[test]
    fn what_a_dead_process_left_is_removed_and_nothing_else() {
        let place = tempfile::tempdir().unwrap();
        let target = place.path().join("a.img");
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        let (gone, alive, own) = (child.id(), std::os::unix::process::parent_id(), std::process::id());
        let old = SystemTime::now() - 2 * STALE_AFTER;
        let put = |name: String, when: SystemTime| {
            let file = File::create(place.path().join(name)).unwrap();
            file.set_modified(when).unwrap();
            file
        };
        put(format!(".a.img.{gone}.1.new"), old);
        put(format!(".a.img.{own}.1.new"), old);
        put(format!(".a.img.{gone}.2.new"), SystemTime::now());
        put(format!(".a.img.{alive}.1.new"), old);
        put(format!(".b.img.{gone}.1.new"), old);
        put(format!(".a.img.{gone}.new"), old);
        let locked = put(format!(".a.img.{gone}.3.new"), old);
        super::super::lock::lock(&locked, &target, false).unwrap();
        let pipe = place.path().join(format!(".a.img.{gone}.4.new"));
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let before = names(place.path());
        drop(begin(&target, false, false));
        let mut expected = before;
        expected
            .retain(|name| *name != format!(".a.img.{gone}.1.new") && *name != format!(".a.img.{own}.1.new"));
        assert_eq!(names(place.path()), expected);
    }
}
