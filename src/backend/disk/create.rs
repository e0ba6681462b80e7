//! New images.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use imago::file::File as ImageFile;
use imago::qcow2::Qcow2;
use imago::{FormatAccess, FormatCreateBuilder};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use super::lock::{Held, held, holders};
use super::qcow2::resolve;
use super::{Access, DiskError, Format, Image, SECTOR};

/// An image to be made.
#[derive(Debug, Clone)]
pub struct NewImage {
    /// Its path.
    pub path: PathBuf,
    /// Its format.
    pub format: Format,
    /// Size of the disk in bytes, rounded up to a sector; `None` takes that of the backing file.
    pub size_bytes: Option<u64>,
    /// What it shows where nothing has been written; qcow2 only.
    pub backing: Option<Backing>,
    /// Replace what is there.
    pub force: bool,
}

/// The base of a new image.
#[derive(Debug, Clone)]
pub struct Backing {
    /// Its name as it will be in the image: relative to the image's directory, or absolute.
    pub name: String,
    /// Its format, or `None` to detect it.
    pub format: Option<Format>,
}

/// Makes an empty image; it appears under its name when it is complete, or not at all. Returns the disk's size in bytes.
///
/// # Errors
/// See [`DiskError`]: what is there and not forced, in use, or cannot be written; a backing file that cannot be opened.
pub fn create(new: &NewImage) -> Result<u64, DiskError> {
    let layout =
        |text: &str| DiskError::Write { path: new.path.clone(), cause: io::Error::other(text.to_owned()) };
    let base = new.backing.as_ref().map(|backing| base_of(&new.path, backing)).transpose()?;
    let size = new.size_bytes.or(base.as_ref().map(|base| base.bytes));
    let size = size.ok_or_else(|| layout("it needs a size, or a backing file whose size it takes"))?;
    let bytes = size.checked_next_multiple_of(SECTOR).filter(|bytes| i64::try_from(*bytes).is_ok());
    let bytes = bytes.ok_or_else(|| layout("no disk can be that large"))?;
    if bytes == 0 {
        return Err(layout("a disk has at least one sector of 512 bytes"));
    }
    if new.format == Format::Raw && base.is_some() {
        return Err(layout("a raw image has no backing file: say --format qcow2"));
    }
    let draft = Draft::begin(&new.path, new.force)?;
    draft
        .fill(new.format, bytes, base.as_ref())
        .map_err(|source| DiskError::Write { path: new.path.clone(), cause: source })?;
    draft.publish()?;
    Ok(bytes)
}

struct Base {
    name: String,
    format: Format,
    bytes: u64,
}

/// Opens the base once, so that a new image is never made on something that it cannot be opened with.
fn base_of(image: &Path, backing: &Backing) -> Result<Base, DiskError> {
    let path = resolve(image, &backing.name)?;
    let wrap = |error| DiskError::Backing { image: image.into(), source: Box::new(error) };
    let format = match backing.format {
        Some(format) => format,
        None => super::detect(&path).map_err(wrap)?,
    };
    let opened = Image { path, format: Some(format), access: Access::READ, follow_backing: true }
        .open()
        .map_err(wrap)?;
    Ok(Base { name: backing.name.clone(), format, bytes: opened.size_bytes() })
}

/// An image that has not got its name yet. Dropped before it is published, it is gone.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) path: PathBuf,
    target: PathBuf,
    file: File,
    force: bool,
    published: bool,
}

impl Draft {
    /// Makes an empty file beside the one to come.
    pub(super) fn begin(target: &Path, force: bool) -> Result<Self, DiskError> {
        let failed = |source| DiskError::Write { path: target.into(), cause: source };
        check_replaceable(target, force)?;
        let name = target.file_name().ok_or_else(|| failed(io::Error::other("it has no file name")))?;
        let mut draft = std::ffi::OsString::from(".");
        draft.push(name);
        draft.push(format!(".{}.new", std::process::id()));
        let path = target.with_file_name(draft);
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path);
        let file = file.map_err(failed)?;
        Ok(Self { path, target: target.into(), file, force, published: false })
    }

    /// Makes it an empty disk of `bytes` bytes.
    fn fill(&self, format: Format, bytes: u64, base: Option<&Base>) -> io::Result<()> {
        match format {
            Format::Raw => self.file.set_len(bytes),
            Format::Qcow2 => {
                let file = ImageFile::try_from(self.file.try_clone()?)?;
                let mut image = Qcow2::<ImageFile, FormatAccess<ImageFile>>::create_builder(file).size(bytes);
                if let Some(base) = base {
                    image = image.backing(base.name.clone(), base.format.name().to_owned());
                }
                image.create()
            }
        }
    }

    /// Makes it an empty disk without a base.
    pub(super) fn fill_empty(&self, format: Format, bytes: u64) -> io::Result<()> {
        self.fill(format, bytes, None)
    }

    /// Gives it its name, once all of it is on the medium.
    pub(super) fn publish(mut self) -> Result<(), DiskError> {
        let failed = |source| DiskError::Write { path: self.target.clone(), cause: source };
        self.file.sync_all().map_err(failed)?;
        check_replaceable(&self.target, self.force)?;
        let flags = if self.force { RenameFlags::empty() } else { RenameFlags::RENAME_NOREPLACE };
        match renameat2(AT_FDCWD, &self.path, AT_FDCWD, &self.target, flags) {
            Ok(()) => {}
            Err(Errno::EEXIST) => return Err(DiskError::Exists(self.target.clone())),
            // A file system without RENAME_NOREPLACE: a link does not replace either.
            Err(Errno::EINVAL) if !self.force => {
                fs::hard_link(&self.path, &self.target).map_err(failed)?;
                fs::remove_file(&self.path).map_err(failed)?;
            }
            Err(errno) => return Err(failed(errno.into())),
        }
        self.published = true;
        let directory = self.target.parent().filter(|parent| !parent.as_os_str().is_empty());
        File::open(directory.unwrap_or(Path::new(".")))
            .and_then(|directory| directory.sync_all())
            .map_err(failed)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.published {
            // It may be gone already; there is nobody to tell.
            let _ = fs::remove_file(&self.path);
        }
    }
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
        Held::Shared | Held::Exclusive => Err(DiskError::Locked { path: target.into(), by: holders(&file) }),
    }
}
