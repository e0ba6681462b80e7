//! What an image is, without opening it for a VM.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::lock::{Held, held, holders};
use super::qcow2::header::Header;
use super::qcow2::{MAX_LAYERS, backing_format, refuse, resolve};
use super::{DiskError, Format, detect};

/// An image and those below it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImageInfo {
    /// The image itself, then its backing file, and so on.
    pub layers: Vec<Layer>,
    /// Why the chain ends before its end, if it does: the backing file is missing, or not supported.
    pub broken: Option<String>,
}

/// One image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Layer {
    /// Where it is.
    pub path: PathBuf,
    /// Its format.
    pub format: Format,
    /// Size of the disk, in bytes.
    pub virtual_bytes: u64,
    /// What it takes on its file system, in bytes.
    pub allocated_bytes: u64,
    /// Size of its clusters in bytes; qcow2 only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster_bytes: Option<u64>,
    /// Version of the format; qcow2 only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<u32>,
    /// Internal snapshots; qcow2 only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshots: Option<u32>,
    /// The backing file as the image names it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backing: Option<String>,
    /// How it is locked.
    pub lock: Held,
    /// The processes that hold locks, where we can see them: `1234 (nestling)`.
    pub held_by: Vec<String>,
}

/// Looks at an image and its backing files. Nothing is locked or changed.
///
/// # Errors
/// See [`DiskError`]; what is wrong below the image itself is in [`ImageInfo::broken`].
pub fn info(path: &Path, format: Option<Format>) -> Result<ImageInfo, DiskError> {
    let (layer, mut below) = layer(path, format)?;
    let mut layers = vec![layer];
    let mut broken = None;
    while let Some((path, format)) = below.take() {
        if layers.len() >= MAX_LAYERS || layers.iter().any(|layer| layer.path == path) {
            broken = Some(format!("{} comes again, or there are more than 16 images", path.display()));
            break;
        }
        match format.and_then(|format| self::layer(&path, Some(format))) {
            Ok((layer, next)) => {
                layers.push(layer);
                below = next;
            }
            Err(error) => broken = Some(error.to_string()),
        }
    }
    Ok(ImageInfo { layers, broken })
}

/// The image below another one: its path and its format, if that can be known.
type Below = Option<(PathBuf, Result<Format, DiskError>)>;

fn layer(path: &Path, format: Option<Format>) -> Result<(Layer, Below), DiskError> {
    let examine = |source| DiskError::Examine { path: path.into(), cause: source };
    // Also finds out what must not even be opened.
    let format = match (format, detect(path)) {
        (Some(format), Ok(_) | Err(DiskError::Ambiguous { .. })) | (None, Ok(format)) => format,
        (_, Err(error)) => return Err(error),
    };
    let mut file = File::open(path).map_err(|source| DiskError::Open {
        path: path.into(),
        access: "reading",
        cause: source,
    })?;
    let lock = held(&file).map_err(|errno| examine(errno.into()))?;
    let mut layer = Layer {
        path: path.into(),
        format,
        virtual_bytes: file.seek(SeekFrom::End(0)).map_err(examine)?,
        allocated_bytes: file.metadata().map_err(examine)?.blocks().saturating_mul(512),
        cluster_bytes: None,
        version: None,
        snapshots: None,
        backing: None,
        lock,
        held_by: if lock == Held::Free { Vec::new() } else { holders(&file) },
    };
    if format == Format::Raw {
        return Ok((layer, None));
    }
    let header = Header::read(&file).map_err(|refusal| refuse(path, refusal))?;
    layer.virtual_bytes = header.virtual_bytes;
    layer.cluster_bytes = Some(header.cluster_bytes);
    layer.version = Some(header.version);
    layer.snapshots = Some(header.snapshots);
    let Some(backing) = header.backing else { return Ok((layer, None)) };
    let below = resolve(path, &backing.name)?;
    let format = backing_format(path, &backing, &below);
    layer.backing = Some(backing.name);
    Ok((layer, Some((below, format))))
}
