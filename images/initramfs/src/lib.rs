//! Packs an initramfs: an init, the kernel modules it loads, extra files.
//!
//! - [`Recipe`] says what is wanted and [`Recipe::pack`] gathers it: the one entry most callers need;
//! - [`Archive`] is a tree of files that writes itself as a cpio archive, the same bytes for the same tree;
//! - [`ModuleTree`] is a kernel's `lib/modules/RELEASE`: which modules there are, and in what order they load.
//!
//! The archive is not compressed: the guest's kernel then has nothing to unpack, and a VMM can map it.

mod archive;
mod error;
mod libraries;
mod modules;
mod recipe;

pub use archive::Archive;
pub use error::Error;
pub use modules::ModuleTree;
pub use recipe::{DEFAULT_MODULES, Recipe};
