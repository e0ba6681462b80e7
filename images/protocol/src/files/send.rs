//! Sending a tree.

use std::fs::{File, Metadata, OpenOptions, ReadDir};
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::{Entry, FilesError, MAX_DEPTH, Modified, Totals};
use crate::frame::{self, Kind, MAX_PAYLOAD};
use crate::{ByteString, ProtocolError};

/// Sends the file or directory at `path`, under the last component of its name; a link there is followed. Ends with
/// [`Entry::End`], or, when this end's files fail, with [`Entry::Failed`].
///
/// # Errors
/// A file cannot be read, the tree is too deep, or the stream fails.
pub fn send<W: Write>(path: &Path, to: &mut W) -> Result<Totals, FilesError> {
    let mut sender = Sender { to, totals: Totals::default(), buffer: Vec::new() };
    match sender.tree(path) {
        Ok(()) => {
            let totals = sender.totals;
            frame::write_message(to, &Entry::End(totals))?;
            Ok(totals)
        }
        Err(error @ FilesError::Protocol(_)) => Err(error),
        Err(error) => {
            frame::write_message(to, &Entry::Failed(error.failure()))?;
            Err(error)
        }
    }
}

struct Sender<'a, W> {
    to: &'a mut W,
    totals: Totals,
    buffer: Vec<u8>,
}

impl<W: Write> Sender<'_, W> {
    fn tree(&mut self, root: &Path) -> Result<(), FilesError> {
        // `.` and `/` have no last component of their own.
        let whole =
            root.canonicalize().map_err(|error| FilesError::local("cannot open", root.display(), error))?;
        let name = root.file_name().or_else(|| whole.file_name()).unwrap_or("root".as_ref());
        let mut open: Vec<(PathBuf, ReadDir)> = Vec::new();
        self.entry(&whole, name.into(), &mut open)?;
        while let Some((directory, entries)) = open.last_mut() {
            match entries.next() {
                Some(Ok(entry)) => {
                    let path = directory.join(entry.file_name());
                    self.entry(&path, entry.file_name().into(), &mut open)?;
                }
                Some(Err(error)) => {
                    return Err(FilesError::local("cannot read the directory", directory.display(), error));
                }
                None => {
                    open.pop();
                    self.say(&Entry::Up)?;
                }
            }
        }
        Ok(())
    }

    fn entry(
        &mut self,
        path: &Path,
        name: ByteString,
        open: &mut Vec<(PathBuf, ReadDir)>,
    ) -> Result<(), FilesError> {
        let local = |doing| move |error| FilesError::local(doing, path.display(), error);
        let metadata = std::fs::symlink_metadata(path).map_err(local("cannot look at"))?;
        let kind = metadata.file_type();
        if kind.is_dir() {
            if open.len() >= MAX_DEPTH {
                return Err(FilesError::TooDeep(path.display().to_string()));
            }
            let entries = std::fs::read_dir(path).map_err(local("cannot read the directory"))?;
            let (mode, modified) = (mode(&metadata), modified(&metadata));
            self.counted(&Entry::Directory { name, mode, modified })?;
            open.push((path.to_path_buf(), entries));
            Ok(())
        } else if kind.is_symlink() {
            let target = std::fs::read_link(path).map_err(local("cannot read the link"))?;
            self.counted(&Entry::Symlink { name, target: target.into_os_string().into() })
        } else if kind.is_file() {
            self.file(path, name)
        } else {
            let reason = if kind.is_socket() {
                "a socket"
            } else if kind.is_fifo() {
                "a named pipe"
            } else {
                "a device"
            };
            self.totals.skipped += 1;
            self.say(&Entry::Skipped { name, reason: reason.into() })
        }
    }

    fn file(&mut self, path: &Path, name: ByteString) -> Result<(), FilesError> {
        let local = |doing| move |error| FilesError::local(doing, path.display(), error);
        // Should something else have taken its place meanwhile: a pipe must not block, nor a link lead away.
        let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
        let mut file: File =
            OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(local("cannot open"))?;
        let metadata = file.metadata().map_err(local("cannot look at"))?;
        if !metadata.is_file() {
            self.totals.skipped += 1;
            return self.say(&Entry::Skipped { name, reason: "no longer a file".into() });
        }
        let (mode, modified, size) = (mode(&metadata), modified(&metadata), metadata.len());
        self.counted(&Entry::File { name, mode, size, modified })?;
        self.buffer.resize(MAX_PAYLOAD, 0);
        loop {
            let read = match file.read(&mut self.buffer) {
                Ok(read) => read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(local("cannot read")(error)),
            };
            frame::write(self.to, Kind::Data, self.buffer.get(..read).unwrap_or_default())?;
            self.totals.bytes += read as u64;
            if read == 0 {
                return Ok(());
            }
        }
    }

    fn counted(&mut self, entry: &Entry) -> Result<(), FilesError> {
        self.totals.entries += 1;
        self.say(entry)
    }

    fn say(&mut self, entry: &Entry) -> Result<(), FilesError> {
        frame::write_message(self.to, entry).map_err(|error| match error {
            // A name of 255 bytes that are not UTF-8 is a kilobyte of JSON at most: this cannot be.
            ProtocolError::TooLong(_) => FilesError::NoTree("an entry that is longer than a frame"),
            error => error.into(),
        })
    }
}

fn mode(metadata: &Metadata) -> u32 {
    metadata.mode() & 0o7777
}

fn modified(metadata: &Metadata) -> Option<Modified> {
    let nanoseconds = u32::try_from(metadata.mtime_nsec()).ok()?;
    Some(Modified { seconds: metadata.mtime(), nanoseconds })
}
