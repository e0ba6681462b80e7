//! Copies a disk from one image into a new one of another format.

use std::io;
use std::ops::ControlFlow;
use std::path::Path;

use super::create::fill_empty;
use super::draft::Draft;
use super::{Access, Buffers, Disk, DiskError, Format, Image};

/// Read at once, in bytes.
const CHUNK: u64 = 1 << 20;
/// Zeroes are left out in pieces of this size: a cluster of the qcow2 images that are made here, in bytes.
const GRAIN: usize = 64 << 10;

/// Copies the disk of `source` into a new image at `target`, which appears when it is complete, or not at all. Zeroes and
/// holes are not written. `progress` hears the bytes done and all bytes, and may stop it. Returns the disk's size in bytes.
///
/// # Errors
/// See [`DiskError`].
pub fn convert(
    source: &Image,
    target: &Path,
    format: Format,
    force: bool,
    progress: &mut Progress<'_>,
) -> Result<u64, DiskError> {
    let from = source.open()?;
    let draft = Draft::begin(target, force).map_err(unless_itself)?;
    let written = |source| DiskError::Write { path: target.into(), cause: source };
    fill_empty(draft.file(), format, from.size_bytes()).map_err(written)?;
    let to = Image { path: draft.path(), format: Some(format), access: Access::WRITE, follow_backing: false };
    let to = to.open()?;
    copy(&*from, &*to, progress).map_err(|error| match error {
        Failure::Read(cause) => DiskError::Read { disk: from.name(), cause },
        Failure::Stopped => DiskError::Stopped(target.into()),
        Failure::Write(source) => written(source),
    })?;
    to.flush().map_err(written)?;
    let bytes = to.size_bytes();
    drop(to);
    draft.publish()?;
    Ok(bytes)
}

/// A target that nobody but this process has open is what it reads.
fn unless_itself(error: DiskError) -> DiskError {
    let own = format!("{} (", std::process::id());
    match error {
        DiskError::InUse { path, by } if !by.is_empty() && by.iter().all(|who| who.starts_with(&own)) => {
            DiskError::Itself(path)
        }
        other => other,
    }
}

enum Failure {
    Read(io::Error),
    Write(io::Error),
    Stopped,
}

/// Hears the bytes done and all bytes, and says whether to go on.
pub type Progress<'p> = dyn FnMut(u64, u64) -> ControlFlow<()> + 'p;

fn copy(from: &dyn Disk, to: &dyn Disk, progress: &mut Progress<'_>) -> Result<(), Failure> {
    let mut tell = |done, total| match progress(done, total) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Failure::Stopped),
    };
    let total = from.size_bytes();
    let mut chunk = vec![0; CHUNK as usize];
    let mut at = 0;
    tell(0, total)?;
    while let Some(data) = from.next_data(at).map_err(Failure::Read)? {
        at = data.start;
        while at < data.end {
            // Chunks end where grains do, so that a grain is never written in two parts.
            let bytes = (CHUNK - at % CHUNK).min(data.end - at);
            let piece = chunk.get_mut(..bytes as usize).unwrap_or_default();
            from.read_at(&Buffers::of_slice(piece), at).map_err(Failure::Read)?;
            for (index, grain) in piece.chunks_mut(GRAIN).enumerate() {
                if grain.iter().any(|byte| *byte != 0) {
                    let offset = at + (index * GRAIN) as u64;
                    to.write_at(&Buffers::of_slice(grain), offset).map_err(Failure::Write)?;
                }
            }
            at += bytes;
            tell(at, total)?;
        }
    }
    tell(total, total)
}

#[cfg(test)]
mod tests;
