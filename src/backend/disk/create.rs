//! New images.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use imago::file::File as ImageFile;
use imago::qcow2::Qcow2;
use imago::{FormatAccess, FormatCreateBuilder};

use super::draft::Draft;
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
    fill(draft.file(), new.format, bytes, base.as_ref())
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
        None => super::detect(&path).map_err(|error| wrap(error.answered_by("--backing-format ")))?,
    };
    let opened = Image { path, format: Some(format), access: Access::READ, follow_backing: true }
        .open()
        .map_err(wrap)?;
    Ok(Base { name: backing.name.clone(), format, bytes: opened.size_bytes() })
}

/// Makes an empty file an empty disk of `bytes` bytes.
fn fill(file: &File, format: Format, bytes: u64, base: Option<&Base>) -> io::Result<()> {
    match format {
        Format::Raw => file.set_len(bytes),
        Format::Qcow2 => {
            let file = ImageFile::try_from(file.try_clone()?)?;
            let mut image = Qcow2::<ImageFile, FormatAccess<ImageFile>>::create_builder(file).size(bytes);
            if let Some(base) = base {
                image = image.backing(base.name.clone(), base.format.name().to_owned());
            }
            image.create()
        }
    }
}

/// Makes an empty file an empty disk without a base.
pub(super) fn fill_empty(file: &File, format: Format, bytes: u64) -> io::Result<()> {
    fill(file, format, bytes, None)
}
