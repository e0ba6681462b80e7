//! What format an image has, when nobody says.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::DiskError;

/// How the bytes of an image become those of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// As they are.
    Raw,
    /// QEMU's copy-on-write format, version 2 or 3.
    Qcow2,
}

impl Format {
    /// `raw` or `qcow2`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }

    /// Reads a name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Raw, Self::Qcow2].into_iter().find(|format| format.name() == name)
    }
}

/// The first bytes of a qcow2 image: `QFI` and 0xfb.
pub(super) const MAGIC: [u8; 4] = *b"QFI\xfb";

/// The format of an image of which nobody has said it: qcow2 if its name ends in `.qcow2` *and* it begins as one, raw if
/// neither is so.
///
/// A guest can write any beginning to its raw disk. Would the beginning alone decide, then the guest could make us open a
/// file of its choice, as the backing file of the image it has forged, at the next start.
///
/// # Errors
/// [`DiskError::Ambiguous`] when name and beginning disagree; an image that cannot be read.
pub fn detect(path: &Path) -> Result<Format, DiskError> {
    let failed = |source| DiskError::Open { path: path.into(), access: "reading", cause: source };
    let kind = path.metadata().map_err(failed)?;
    let named = path.extension().is_some_and(|suffix| suffix.eq_ignore_ascii_case("qcow2"));
    if !(kind.is_file() || std::os::unix::fs::FileTypeExt::is_block_device(&kind.file_type())) {
        return Err(DiskError::NotADisk(path.into()));
    }
    match (begins_as_qcow2(path).map_err(failed)?, named) {
        (true, true) => Ok(Format::Qcow2),
        (false, false) => Ok(Format::Raw),
        (begins, _) => Err(DiskError::Ambiguous { path: path.into(), begins, say: "format=" }),
    }
}

/// Whether an image's name *or* its beginning says qcow2.
pub(super) fn looks_like_qcow2(path: &Path) -> Result<bool, DiskError> {
    match detect(path) {
        Ok(format) => Ok(format == Format::Qcow2),
        Err(DiskError::Ambiguous { .. }) => Ok(true),
        Err(error) => Err(error),
    }
}

fn begins_as_qcow2(path: &Path) -> io::Result<bool> {
    let mut magic = Vec::with_capacity(MAGIC.len());
    File::open(path)?.take(MAGIC.len() as u64).read_to_end(&mut magic)?;
    Ok(magic == MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_and_beginning_must_agree() {
        let directory = tempfile::tempdir().unwrap();
        for (name, magic, found) in [
            ("a.img", false, "raw"),
            ("a.qcow2", true, "qcow2"),
            ("b.QCOW2", true, "qcow2"),
            ("b.img", true, "say format=qcow2, or format=raw if a guest may have written"),
            ("c.qcow2", false, "does not begin as such an image: say format=raw"),
        ] {
            let path = directory.path().join(name);
            std::fs::write(&path, if magic { &MAGIC[..] } else { b"MBR" }).unwrap();
            match detect(&path) {
                Ok(format) => assert_eq!(format.name(), found, "{name}"),
                Err(error) => assert!(error.to_string().contains(found), "{name}: {error}"),
            }
        }
        assert!(matches!(detect(directory.path()), Err(DiskError::NotADisk(_))));
    }
}
