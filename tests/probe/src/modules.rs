//! Kernel modules by name, with what they need.

use std::ffi::CString;
use std::fs::File;
use std::path::{Path, PathBuf};

use nestling_initramfs::ModuleTree;
use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};

use crate::error::{Doing, Error, Result};

/// `load`: loads each module `NAME` or `NAME,PARAMETER=VALUE…` from this kernel's tree, after what it needs. One that is
/// built in or loaded already is fine. A kernel that takes no modules at all has what it has: the same script then runs
/// on every kernel, and fails where it needs what is not there.
pub(crate) fn load(names: &[String]) -> Result<()> {
    if !Path::new("/proc/modules").exists() {
        println!("modules=none");
        return Ok(());
    }
    let release = nix::sys::utsname::uname().doing("ask for the kernel's release")?;
    let root = PathBuf::from("/lib/modules").join(release.release());
    let tree = ModuleTree::open(&root).map_err(|error| Error::Arguments(error.to_string()))?;
    for entry in names {
        let (name, parameters) = entry.split_once(',').unwrap_or((entry, ""));
        let order = tree.load_order(&[name]).map_err(|error| Error::Arguments(error.to_string()))?;
        for (index, path) in order.iter().enumerate() {
            let last = index + 1 == order.len();
            insert(&root.join(path), if last { parameters } else { "" })?;
        }
        println!("module={name} {}", if order.is_empty() { "built-in" } else { "loaded" });
    }
    Ok(())
}

fn insert(path: &Path, parameters: &str) -> Result<()> {
    let doing = || format!("load {}", path.display());
    let file = File::open(path).doing(doing())?;
    let parameters = CString::new(parameters.replace(',', " ")).doing(doing())?;
    match finit_module(&file, &parameters, ModuleInitFlags::empty()) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(error) => Err(error).doing(doing()),
    }
}
