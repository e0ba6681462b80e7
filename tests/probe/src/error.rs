//! What went wrong, in one sentence that says the cause too, for a guest's console shows nothing else.

use std::io;

/// A command did not do what it was told, or found something that must not be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The system refused something.
    #[error("cannot {doing}: {source}")]
    System {
        /// What was tried.
        doing: String,
        /// Why not.
        source: io::Error,
    },
    /// What was read is not what was written, or the like: what the test is there to find.
    #[error("{0}")]
    Mismatch(String),
    /// The arguments cannot be meant.
    #[error("{0}")]
    Arguments(String),
}

/// The result of everything here.
pub(crate) type Result<T> = std::result::Result<T, Error>;

/// Says what was tried.
pub(crate) trait Doing<T> {
    /// `doing` fits behind "cannot".
    fn doing(self, doing: impl Into<String>) -> Result<T>;
}

impl<T, E: Into<io::Error>> Doing<T> for std::result::Result<T, E> {
    fn doing(self, doing: impl Into<String>) -> Result<T> {
        self.map_err(|error| Error::System { doing: doing.into(), source: error.into() })
    }
}
