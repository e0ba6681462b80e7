//! Everything that can go wrong on the host's side, one sentence each. The source chain is printed once, by `main`.

use std::io;
use std::path::{Path, PathBuf};

/// Why the executable could not be run, or its result not be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A plain operation on a file or a process failed.
    #[error("cannot {doing}")]
    Io { doing: String, source: io::Error },

    /// A tool that prepares the machine failed.
    #[error("{tool} failed ({status}): {mend}")]
    Tool { tool: String, status: std::process::ExitStatus, mend: &'static str },

    /// The command line makes no sense.
    #[error("{0}")]
    Usage(String),

    /// Neither of the variables that say where caches belong is set.
    #[error("cannot tell where to keep Bochs and the node's kernel: set HOME or XDG_CACHE_HOME")]
    NoCache,

    /// The executable to run is not an x86-64 ELF file.
    #[error("{} is not an x86-64 executable", .0.display())]
    NotExecutable(PathBuf),

    /// The executable wants a dynamic loader, which the machine does not have.
    #[error(
        "{} is linked dynamically; the node has no shared libraries: build it with -C target-feature=+crt-static",
        .0.display()
    )]
    NotStatic(PathBuf),

    /// The kernel file is not what it should be.
    #[error("the node's kernel {}: {what}; remove that directory and run `nestling-node setup`", path.display())]
    Kernel { path: PathBuf, what: &'static str },

    /// Kernel and files need more memory than the machine has.
    #[error(
        "kernel and files end at {needed_mib} MiB, the node has {memory_mib} MiB: raise --memory or pack fewer files"
    )]
    TooLarge { needed_mib: u64, memory_mib: u64 },

    /// A place in the node that its own mounts will cover.
    #[error("{} would be hidden in the node by its own /proc, /sys or /dev: choose another place", .0.display())]
    Hidden(PathBuf),

    /// A file that the archive format cannot hold.
    #[error("{}: {what}", path.display())]
    CannotPack { path: PathBuf, what: &'static str },

    /// A kernel module that the node's kernel does not have.
    #[error("the node's kernel has no module {0:?}")]
    NoModule(String),

    /// The kernel's command line has no room for more.
    #[error("the node's kernel command line has {length} bytes, more than {limit}: shorten --cmdline")]
    CommandLine { length: usize, limit: usize },

    /// The machine stopped before the program had ended.
    #[error("the node stopped ({status}) before the program ended: the log says why")]
    Died { status: std::process::ExitStatus },

    /// The machine is not what it should be. Said in the node.
    #[error("{0}")]
    Unfit(&'static str),

    /// PID 1 in the machine could not do its part.
    #[error("in the node: {0}")]
    Inside(String),

    /// Time is over.
    #[error("the program did not end within {0} s: raise --timeout, or see the log for where it hangs")]
    Timeout(u64),

    /// Somebody pressed Ctrl-C, or sent SIGTERM.
    #[error("stopped by signal {0}")]
    Signal(i32),
}

/// What every function on the host's side returns.
pub(crate) type Result<T> = std::result::Result<T, Error>;

/// Names what was being done when an I/O error came up.
pub(crate) trait Doing<T> {
    /// "cannot {verb} {path}".
    fn on(self, verb: &str, path: &Path) -> Result<T>;
    /// "cannot {doing}".
    fn doing(self, doing: &str) -> Result<T>;
}

impl<T, E: Into<io::Error>> Doing<T> for std::result::Result<T, E> {
    fn on(self, verb: &str, path: &Path) -> Result<T> {
        self.map_err(|e| Error::Io { doing: format!("{verb} {}", path.display()), source: e.into() })
    }

    fn doing(self, doing: &str) -> Result<T> {
        self.map_err(|e| Error::Io { doing: doing.to_owned(), source: e.into() })
    }
}

impl Error {
    /// The exit code of `nestling-node` itself, told apart from the program's as `timeout` and container tools do.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Timeout(_) => 124,
            Self::Signal(number) => u8::try_from(128 + number).unwrap_or(125),
            _ => 125,
        }
    }
}
