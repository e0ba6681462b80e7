//! A disk gets another size while the guest uses it: the driver reads `capacity` anew when it gets its configuration
//! interrupt (virtio 1.2 §5.2.5).

use std::io;
use std::sync::PoisonError;

use super::Block;
use crate::backend::disk::SECTOR;

/// Why a disk keeps its size.
#[derive(Debug, thiserror::Error)]
pub enum ResizeError {
    /// Sectors are not cut.
    #[error("{0} bytes are not a multiple of 512")]
    NoSectors(u64),
    /// It would become smaller.
    #[error(
        "the disk has {now} bytes, and does not become smaller: the guest would lose what lies behind {asked}"
    )]
    Smaller {
        /// Its size.
        now: u64,
        /// What was asked for.
        asked: u64,
    },
    /// Nothing of it can be written.
    #[error("the disk is read-only: make its image larger, and then ask without a size")]
    ReadOnly,
    /// Its size is not ours to change.
    #[error("the disk keeps its size of {now} bytes: {why}")]
    Fixed {
        /// Its size.
        now: u64,
        /// Whose it is.
        why: String,
    },
    /// The kernel did not let us.
    #[error("the disk could not be resized: {0}")]
    Kernel(#[source] io::Error),
}

impl Block {
    /// What GET_ID returns.
    #[must_use]
    pub fn serial(&self) -> &str {
        &self.0.options.serial
    }

    /// Its image, or its partitions.
    #[must_use]
    pub fn name(&self) -> String {
        self.0.disk.name()
    }

    /// Size in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.0.disk.size_bytes()
    }

    /// Makes the disk `bytes` large; without a number, it has the size of its image from now on. The driver is told of a
    /// change. Returns the size.
    ///
    /// # Errors
    /// See [`ResizeError`].
    pub fn resize(&self, bytes: Option<u64>) -> Result<u64, ResizeError> {
        // Held while the size changes: of two who resize, the later one tells the later size.
        let config = self.0.config.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.size_bytes();
        let done = match bytes {
            Some(bytes) => self.grow(before, bytes),
            None => self.0.disk.reread_size().map_err(ResizeError::Kernel),
        };
        // What failed may have changed it all the same.
        if self.size_bytes() != before
            && let Some(config) = &*config
        {
            config.announce();
        }
        done
    }

    fn grow(&self, now: u64, asked: u64) -> Result<u64, ResizeError> {
        let disk = &self.0.disk;
        if !asked.is_multiple_of(SECTOR) {
            return Err(ResizeError::NoSectors(asked));
        }
        if asked < now {
            return Err(ResizeError::Smaller { now, asked });
        }
        if disk.readonly() {
            return Err(ResizeError::ReadOnly);
        }
        match disk.grow(asked) {
            Ok(now) if now < asked => {
                let why = "a block device grows by its owner's hand; then ask without a size".to_owned();
                Err(ResizeError::Fixed { now, why })
            }
            Ok(now) => Ok(now),
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                Err(ResizeError::Fixed { now, why: error.to_string() })
            }
            Err(error) => Err(ResizeError::Kernel(error)),
        }
    }
}
