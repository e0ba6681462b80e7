//! Receiving a tree: below its destination, whatever the sender says.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat, renameat};
use nix::sys::stat::{Mode, fchmod, futimens, mkdirat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, symlinkat, unlinkat};

use super::{Entry, FilesError, MAX_DEPTH, MAX_NAME, Modified, Totals};
use crate::frame::{self, Frame, Kind};
use crate::{ByteString, ProtocolError};

/// How to open a directory on the way: it, and no link to another.
const DIRECTORY: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// What the received files are to be.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Which permission bits are taken over. Of a guest's files the host takes `0o777`: no set-user-ID.
    pub mode_mask: u32,
    /// Whose they are; else the process's own.
    pub owner: Option<(u32, u32)>,
}

impl Options {
    /// For files from a peer that is not trusted: read, write and execute bits, and the process's own.
    pub const UNTRUSTED: Self = Self { mode_mask: 0o777, owner: None };
    /// For files from a peer that may decide: all bits.
    pub const TRUSTED: Self = Self { mode_mask: 0o7777, owner: None };
}

/// Where a tree goes, opened before its first byte is asked for.
#[derive(Debug)]
pub struct Destination {
    parent: OwnedFd,
    /// What the tree's root is called there; else what its sender calls it.
    name: Option<ByteString>,
    shown: String,
}

impl Destination {
    /// A directory that exists takes the tree in; any other path becomes the tree, and its parent must exist. A path
    /// that ends in `/` has to be a directory. `called` is the tree's name in a directory, else its sender decides:
    /// from a peer that is not trusted, give the name that was asked for.
    ///
    /// # Errors
    /// There is no such directory, or it cannot be opened.
    pub fn open(path: &Path, called: Option<&OsStr>) -> Result<Self, FilesError> {
        let as_directory = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let shown = path.display().to_string();
        let must_be = path.as_os_str().as_encoded_bytes().ends_with(b"/");
        let error = match open(path, as_directory, Mode::empty()) {
            Ok(parent) => return Ok(Self { parent, name: called.map(ByteString::from), shown }),
            Err(error) => error,
        };
        let name = match path.file_name() {
            Some(name) if !must_be && matches!(error, Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => name,
            _ => return Err(FilesError::local("cannot open the directory", shown, error)),
        };
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let parent = open(parent, as_directory, Mode::empty())
            .map_err(|error| FilesError::local("cannot open the directory", parent.display(), error))?;
        Ok(Self { parent, name: Some(name.into()), shown })
    }
}

/// Receives one tree, to its [`Entry::End`]. A file appears under its name when it is complete, and takes the place of
/// another or of a link at once; directories that exist are filled up. `report` is told of every entry.
///
/// # Errors
/// What came is no tree, the sender failed, or this end's filesystem did. What was complete before is left; of the
/// rest nothing is.
pub fn receive<R: Read>(
    from: &mut R,
    destination: Destination,
    options: Options,
    report: &mut dyn FnMut(&Entry),
) -> Result<Totals, FilesError> {
    let Destination { parent, name, shown } = destination;
    let place = Place { options, top: parent, shown, root: name, open: Vec::new() };
    let mut receiver = Receiver { from, place, totals: Totals::default() };
    let mut begun = false;
    loop {
        let entry: Entry = frame::read_message(receiver.from)?;
        report(&entry);
        match entry {
            Entry::Failed(failure) => return Err(FilesError::Peer(failure)),
            Entry::End(_) if receiver.place.open.is_empty() && begun => return Ok(receiver.totals),
            Entry::End(_) => return Err(FilesError::NoTree("it ends within")),
            Entry::Up => receiver.leave()?,
            _ if begun && receiver.place.open.is_empty() => {
                return Err(FilesError::NoTree("it has two roots"));
            }
            entry => receiver.take(entry)?,
        }
        begun = true;
    }
}

/// A directory that is being filled.
struct Open {
    directory: OwnedFd,
    name: ByteString,
    mode: u32,
    modified: Option<Modified>,
}

/// Where in the tree we are.
struct Place {
    options: Options,
    top: OwnedFd,
    shown: String,
    root: Option<ByteString>,
    open: Vec<Open>,
}

struct Receiver<'a, R> {
    from: &'a mut R,
    place: Place,
    totals: Totals,
}

impl<R: Read> Receiver<'_, R> {
    fn take(&mut self, entry: Entry) -> Result<(), FilesError> {
        match entry {
            Entry::Directory { name, mode, modified } => {
                let name = self.place.name(name)?;
                self.enter(name, mode, modified)
            }
            Entry::File { name, mode, modified, .. } => {
                let name = self.place.name(name)?;
                self.file(&name, mode, modified)
            }
            Entry::Symlink { name, target } => {
                let name = self.place.name(name)?;
                self.symlink(&name, &target)
            }
            Entry::Skipped { .. } => {
                self.totals.skipped = self.totals.skipped.saturating_add(1);
                Ok(())
            }
            Entry::Up | Entry::End(_) | Entry::Failed(_) => Err(FilesError::NoTree("an entry out of order")),
        }
    }

    fn enter(&mut self, name: ByteString, mode: u32, modified: Option<Modified>) -> Result<(), FilesError> {
        let place = &mut self.place;
        if place.open.len() >= MAX_DEPTH {
            return Err(FilesError::TooDeep(place.shown.clone()));
        }
        // Ours alone until it is complete; the mode that it is to have may not even let us in.
        match mkdirat(place.here(), name.as_os_str(), Mode::S_IRWXU) {
            Ok(()) => place.own(&name)?,
            Err(Errno::EEXIST) => {}
            Err(error) => return Err(place.failed("cannot make the directory", &name)(error)),
        }
        let directory = openat(place.here(), name.as_os_str(), DIRECTORY, Mode::empty())
            .map_err(place.failed("cannot open the directory", &name))?;
        place.open.push(Open { directory, name, mode, modified });
        self.totals.entries += 1;
        Ok(())
    }

    fn leave(&mut self) -> Result<(), FilesError> {
        let place = &mut self.place;
        let Open { directory, name, mode, modified } =
            place.open.pop().ok_or(FilesError::NoTree("it goes up from its root"))?;
        fchmod(&directory, place.mode(mode)).map_err(place.failed("cannot set the mode of", &name))?;
        set_modified(&directory, modified).map_err(place.failed("cannot set the time of", &name))
    }

    fn file(&mut self, name: &ByteString, mode: u32, modified: Option<Modified>) -> Result<(), FilesError> {
        let Self { from, place, totals } = self;
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let made = Temporary::make(place.here(), |temporary| {
            openat(place.here(), temporary, flags, Mode::S_IRUSR | Mode::S_IWUSR)
        });
        let (temporary, file) = made.map_err(place.failed("cannot make the file", name))?;
        let mut file = File::from(file);
        while let Some(bytes) = next_data(*from)? {
            file.write_all(&bytes).map_err(place.failed("cannot write", name))?;
            totals.bytes = totals.bytes.saturating_add(bytes.len() as u64);
        }
        // The owner first: chown takes set-user-ID away.
        place.own(&temporary.name)?;
        fchmod(&file, place.mode(mode)).map_err(place.failed("cannot set the mode of", name))?;
        set_modified(&file, modified).map_err(place.failed("cannot set the time of", name))?;
        temporary.become_named(name).map_err(place.failed("cannot replace", name))?;
        totals.entries += 1;
        Ok(())
    }

    fn symlink(&mut self, name: &ByteString, target: &ByteString) -> Result<(), FilesError> {
        let place = &self.place;
        let made =
            Temporary::make(place.here(), |temporary| symlinkat(target.as_os_str(), place.here(), temporary));
        let (temporary, ()) = made.map_err(place.failed("cannot make the link", name))?;
        place.own(&temporary.name)?;
        temporary.become_named(name).map_err(place.failed("cannot replace", name))?;
        self.totals.entries += 1;
        Ok(())
    }
}

/// A file's next bytes; `None` at its end.
fn next_data<R: Read>(from: &mut R) -> Result<Option<Vec<u8>>, FilesError> {
    match frame::read(from)? {
        Some(Frame { kind: Kind::Data, payload }) => Ok(Some(payload).filter(|bytes| !bytes.is_empty())),
        // A sender that cannot read on says so in place of data.
        Some(frame) => Err(match frame.message() {
            Ok(Entry::Failed(failure)) => FilesError::Peer(failure),
            _ => ProtocolError::UnexpectedKind { got: frame.kind, wanted: "data" }.into(),
        }),
        None => Err(ProtocolError::Truncated("a file").into()),
    }
}

impl Place {
    /// The name to use: the root's may be given by the destination. One component, whoever gave it.
    fn name(&mut self, sent: ByteString) -> Result<ByteString, FilesError> {
        let name = if self.open.is_empty() { self.root.take().unwrap_or(sent) } else { sent };
        let bytes = name.as_bytes();
        let is_component = !bytes.is_empty() && bytes != b"." && bytes != b".." && !bytes.contains(&b'/');
        if is_component && bytes.len() <= MAX_NAME { Ok(name) } else { Err(FilesError::BadName(name)) }
    }

    fn here(&self) -> &OwnedFd {
        self.open.last().map_or(&self.top, |open| &open.directory)
    }

    fn failed<E: Into<std::io::Error>>(
        &self,
        doing: &'static str,
        name: &ByteString,
    ) -> impl FnOnce(E) -> FilesError {
        let mut path = self.shown.clone();
        for part in self.open.iter().map(|open| &open.name).chain([name]) {
            path = format!("{path}/{part}");
        }
        move |error| FilesError::local(doing, path, error)
    }

    fn own(&self, name: &ByteString) -> Result<(), FilesError> {
        let Some((user, group)) = self.options.owner else { return Ok(()) };
        let (user, group) = (Some(Uid::from_raw(user)), Some(Gid::from_raw(group)));
        fchownat(self.here(), name.as_os_str(), user, group, AtFlags::AT_SYMLINK_NOFOLLOW)
            .map_err(self.failed("cannot change the owner of", name))
    }

    fn mode(&self, mode: u32) -> Mode {
        Mode::from_bits_truncate(mode & self.options.mode_mask)
    }
}

fn set_modified<F: AsFd>(file: &F, modified: Option<Modified>) -> nix::Result<()> {
    let Some(Modified { seconds, nanoseconds }) = modified else { return Ok(()) };
    // UTIME_NOW and UTIME_OMIT are numbers beyond: a sender does not get to mean them.
    let nanoseconds = i64::from(nanoseconds.min(999_999_999));
    futimens(file.as_fd(), &TimeSpec::UTIME_OMIT, &TimeSpec::new(seconds, nanoseconds))
}

/// A name that is there until the file is complete, and gone if it never is.
struct Temporary<'a> {
    directory: &'a OwnedFd,
    name: ByteString,
    kept: bool,
}

impl<'a> Temporary<'a> {
    /// Makes something under a name that nobody has.
    fn make<T>(directory: &'a OwnedFd, make: impl Fn(&str) -> nix::Result<T>) -> nix::Result<(Self, T)> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        loop {
            let name = format!(".nestling-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
            match make(&name) {
                Ok(made) => {
                    let name = ByteString::from(name.as_str());
                    return Ok((Self { directory, name, kept: false }, made));
                }
                // Left by another process of this number; there are finitely many.
                Err(Errno::EEXIST) => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn become_named(mut self, name: &ByteString) -> nix::Result<()> {
        renameat(self.directory, self.name.as_os_str(), self.directory, name.as_os_str())?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        if !self.kept {
            // Nobody is left to tell.
            let _gone = unlinkat(self.directory, self.name.as_os_str(), UnlinkatFlags::NoRemoveDir);
        }
    }
}
