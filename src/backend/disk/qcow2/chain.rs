//! Opens an image together with the images it is based on.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use imago::file::File as ImageFile;
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder};

use super::super::detect::{Format, detect};
use super::super::direct::Direct;
use super::super::raw::{end_of, open_locked};
use super::super::{Access, DiskError};
use super::header::{BackingName, Header, Refusal};
use super::storage::{TableFile, alignment};
use super::tables::Tables;
use super::{REPAIR, is_damage};

/// Backing files of backing files. A longer chain is a mistake, and reading through it would be slow.
pub(in super::super) const MAX_LAYERS: usize = 16;

/// An image that is ready to be read and written.
pub(super) struct Opened {
    pub(super) image: FormatAccess<TableFile>,
    /// How many images it is made of, itself included.
    pub(super) layers: usize,
}

/// The images opened so far, top first, by device and inode.
type Seen = Vec<(u64, u64)>;

/// Opens `path` as a qcow2 image.
pub(super) fn open(path: &Path, access: Access, follow_backing: bool) -> Result<Opened, DiskError> {
    let mut seen = Seen::new();
    let image = open_qcow2(path, access, follow_backing, &mut seen)?;
    Ok(Opened { image, layers: seen.len() })
}

fn open_qcow2(
    path: &Path,
    access: Access,
    follow_backing: bool,
    seen: &mut Seen,
) -> Result<FormatAccess<TableFile>, DiskError> {
    let file = open_layer(path, access, seen)?;
    let header = Header::read(&file).map_err(|refusal| refuse(path, refusal))?;
    let end = end_of(&file);
    let end = end.map_err(|cause| DiskError::Examine { path: path.into(), cause })?;
    let tables =
        Tables::load(&file, &header, !access.readonly, end).map_err(|refusal| refuse(path, refusal))?;
    let virtual_bytes = header.virtual_bytes;
    let backing = match header.backing {
        None => None,
        Some(_) if !follow_backing => {
            return Err(problem(path, "has a backing file, and backing=deny is said"));
        }
        Some(backing) => {
            let below = open_backing(path, &backing, access.direct, seen)
                .map_err(|error| DiskError::Backing { image: path.into(), source: Box::new(error) })?;
            Some(Arc::new(below))
        }
    };
    let failed = |cause: std::io::Error| {
        if is_damage(&cause) {
            problem(path, &format!("is damaged ({cause}): {REPAIR}"))
        } else {
            DiskError::Open { path: path.into(), access: "reading", cause }
        }
    };
    // Whatever the image names has been opened above, or does not exist for imago.
    let file = ImageFile::try_from(switched(path, file, access)?).map_err(failed)?;
    check_alignment(path, access, &file, tables.cluster_bytes())?;
    let (tables, data) = TableFile::of_image(file, tables, virtual_bytes, !access.readonly);
    let image = Qcow2::<TableFile, Arc<FormatAccess<TableFile>>>::builder(tables)
        .write(!access.readonly)
        .backing(backing)
        .data_file(Some(data))
        .open(DenyImplicitOpenGate::default())
        .map_err(failed)?;
    Ok(FormatAccess::new(image))
}

fn open_backing(
    image: &Path,
    backing: &BackingName,
    direct: bool,
    seen: &mut Seen,
) -> Result<FormatAccess<TableFile>, DiskError> {
    let path = resolve(image, &backing.name)?;
    let format = backing_format(image, backing, &path)?;
    let access = Access { readonly: true, direct };
    match format {
        Format::Qcow2 => open_qcow2(&path, access, true, seen),
        Format::Raw => {
            let file = open_layer(&path, access, seen)?;
            let failed = |source| DiskError::Open { path: path.clone(), access: "reading", cause: source };
            let file = ImageFile::try_from(switched(&path, file, access)?).map_err(failed)?;
            let raw = Raw::builder(TableFile::of_raw(file)).write(false);
            raw.open(DenyImplicitOpenGate::default()).map(FormatAccess::new).map_err(failed)
        }
    }
}

/// The format of the backing file at `path`: what the image says, or what name and beginning say together.
pub(in super::super) fn backing_format(
    image: &Path,
    backing: &BackingName,
    path: &Path,
) -> Result<Format, DiskError> {
    let Some(format) = backing.format else {
        return detect(path).map_err(|error| match error {
            DiskError::Ambiguous { .. } => {
                let base = &backing.name;
                let mend = "say it with `qemu-img rebase -u -F FORMAT -b";
                problem(
                    image,
                    &format!("does not tell the format of its backing file {base:?}: {mend} {base:?}`"),
                )
            }
            other => other,
        });
    };
    Ok(format)
}

/// Opens and locks one file of the chain.
fn open_layer(path: &Path, access: Access, seen: &mut Seen) -> Result<File, DiskError> {
    let examine = |source| DiskError::Examine { path: path.into(), cause: source };
    if seen.len() >= MAX_LAYERS {
        return Err(problem(path, "is below 16 others: flatten the chain with `nestling disk convert`"));
    }
    // Before it is locked: an image that is its own base would find its own lock.
    let metadata = path.metadata().map_err(|source| DiskError::Open {
        path: path.into(),
        access: "reading",
        cause: source,
    })?;
    let identity = (metadata.dev(), metadata.ino());
    if seen.contains(&identity) {
        return Err(problem(path, "is its own backing file, directly or through others"));
    }
    let file = open_locked(path, access.readonly)?;
    let opened = file.metadata().map_err(examine)?;
    seen.push((opened.dev(), opened.ino()));
    Ok(file)
}

/// The file with O_DIRECT, if that is wanted; imago learns its alignment by itself.
fn switched(path: &Path, file: File, access: Access) -> Result<File, DiskError> {
    if access.direct {
        Direct::switch_on(&file, path, access.readonly)?;
    }
    Ok(file)
}

/// What is around a cluster that is smaller than an access is written with it, and that may be a table.
fn check_alignment(path: &Path, access: Access, file: &ImageFile, cluster: u64) -> Result<(), DiskError> {
    let smallest = alignment(file);
    if access.readonly || smallest <= cluster {
        return Ok(());
    }
    let text = format!(
        "has clusters of {cluster} bytes, and without the page cache no less than {smallest} are written there: leave out \
         direct=true, or copy it with `nestling disk convert`"
    );
    Err(problem(path, &text))
}

/// Where a backing file is: its name is relative to the directory of the image that names it.
pub(in super::super) fn resolve(image: &Path, name: &str) -> Result<PathBuf, DiskError> {
    let name = name.strip_prefix("file:").unwrap_or(name);
    // QEMU takes what precedes a colon for a protocol, unless there is a slash before it.
    if name.split('/').next().is_some_and(|first| first.contains(':')) {
        let text = format!("has the backing file {name:?}: only files are supported");
        return Err(problem(image, &text));
    }
    Ok(image.parent().unwrap_or(Path::new("")).join(name))
}

pub(in super::super) fn refuse(path: &Path, refusal: Refusal) -> DiskError {
    match refusal {
        Refusal::Io(source) => DiskError::Open { path: path.into(), access: "reading", cause: source },
        Refusal::NotQcow2(reason) => DiskError::NotQcow2 { path: path.into(), reason },
        Refusal::Unsupported(problem) => DiskError::Qcow2 { path: path.into(), problem },
    }
}

fn problem(path: &Path, text: &str) -> DiskError {
    DiskError::Qcow2 { path: path.into(), problem: text.to_owned() }
}
