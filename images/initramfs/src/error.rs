//! What can go wrong while packing: one sentence each, with the path and what mends it.

use std::io;
use std::path::PathBuf;

/// An initramfs could not be packed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file that goes into the archive cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file on this machine.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The archive cannot be written.
    #[error("cannot write {path}")]
    Write {
        /// The archive.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A path inside the guest is not one that an archive can hold.
    #[error("{path:?} is not a path inside the guest: give an absolute one without `..`")]
    GuestPath {
        /// The path as it was given.
        path: String,
    },
    /// Two different things are wanted at one path of the guest.
    #[error("/{path} would be two things in the guest: leave one of them out")]
    Twice {
        /// The path, without its first slash.
        path: String,
    },
    /// A file is too large for the archive's 32-bit sizes.
    #[error("/{path} is {bytes} bytes long, more than a cpio archive can hold (4 GiB): put it on a disk")]
    TooLarge {
        /// The path, without its first slash.
        path: String,
        /// Its size.
        bytes: usize,
    },
    /// There is no `lib/modules/RELEASE` where one was looked for, or several.
    #[error(
        "{path} holds {found} kernels' modules, not one: give the directory that holds lib/modules/RELEASE"
    )]
    NoTree {
        /// The directory that was given.
        path: PathBuf,
        /// How many were found.
        found: usize,
    },
    /// A module was asked for that the kernel does not have, neither as a file nor built in.
    #[error(
        "the kernel in {tree} has no module {name}: see modules.dep and modules.builtin there for those it has"
    )]
    NoModule {
        /// The module.
        name: String,
        /// The kernel's directory of modules.
        tree: PathBuf,
    },
    /// `modules.dep` speaks of modules that need each other.
    #[error("the module {name} in {tree} needs itself: make modules.dep anew with depmod")]
    Cycle {
        /// The module.
        name: String,
        /// The kernel's directory of modules.
        tree: PathBuf,
    },
    /// A compressed module does not unpack.
    #[error("cannot unpack the module {path}: the file is damaged, get the kernel's package anew")]
    Unpack {
        /// The module's file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The busybox given cannot be asked for its applets.
    #[error("cannot list the applets of {path}: it must run on this machine (Debian: busybox-static)")]
    Busybox {
        /// The busybox file.
        path: PathBuf,
        /// Why, where the system said so.
        source: io::Error,
    },
    /// The shared libraries of a program cannot be told.
    #[error("cannot tell which shared libraries {path} needs: {reason}")]
    Libraries {
        /// The program.
        path: PathBuf,
        /// Why, as ldd says it.
        reason: String,
    },
    /// `--file`, `--program` or `--symlink` without its equals sign.
    #[error("{given:?} has no `=`: write {form}")]
    Pair {
        /// What was given.
        given: String,
        /// How it is written.
        form: &'static str,
    },
}
