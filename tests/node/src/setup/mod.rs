//! What has to be there before a machine can be powered on: made once, cached under
//! `${XDG_CACHE_HOME:-~/.cache}/nestling/node/`.
//!
//! Each part's directory is named after a hash of what makes it, and appears by a rename: it is whole or not there.

mod debian;
mod parts;

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use crate::error::{Doing, Error, Result};
use crate::machine::kernel::Placement;
use crate::report::Report;

/// Everything that a machine is powered on with.
#[derive(Debug)]
pub(crate) struct Parts {
    pub bochs: PathBuf,
    /// Directory of the firmware, the kernel and its modules.
    pub machine: PathBuf,
    /// Where the flat kernel image belongs.
    pub kernel: Placement,
    /// The kernel's version.
    pub release: String,
}

impl Parts {
    pub(crate) fn kernel_image(&self) -> PathBuf {
        self.machine.join(parts::KERNEL_IMAGE)
    }

    pub(crate) fn module(&self, file: &str) -> PathBuf {
        self.machine.join("modules").join(file)
    }
}

/// Finds the parts, or makes those that are missing.
pub(crate) fn ensure(report: &Report) -> Result<Parts> {
    let cache = cache_directory()?;
    fs::create_dir_all(&cache).on("create", &cache)?;
    let _only_one = lock(&cache, report)?;
    let bochs = provide(&cache, "bochs", parts::BOCHS_RECIPE, |dir| parts::build_bochs(dir, report))?;
    let machine = provide(&cache, "machine", parts::MACHINE_RECIPE, |dir| parts::fetch_machine(dir, report))?;
    let release = machine.join("release");
    let release = fs::read_to_string(&release).on("read", &release)?.trim().to_owned();
    Ok(Parts { bochs: bochs.join("bochs"), kernel: parts::read_placement(&machine)?, machine, release })
}

fn cache_directory() -> Result<PathBuf> {
    let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")));
    Ok(base.ok_or(Error::NoCache)?.join("nestling/node"))
}

/// Waits while another process prepares the same cache.
fn lock(cache: &Path, report: &Report) -> Result<Flock<File>> {
    let path = cache.join("lock");
    let file = File::create(&path).on("create", &path)?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err((file, _)) => {
            report.say("waiting for another nestling-node that prepares the machine");
            Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno).on("lock", &path)
        }
    }
}

/// The directory made by `recipe`: from the cache, or by `make` in a directory that becomes it when all went well.
fn provide(
    cache: &Path,
    name: &str,
    recipe: &[&str],
    make: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let whole = cache.join(format!("{name}-{:016x}", fingerprint(recipe)));
    if whole.exists() {
        return Ok(whole);
    }
    let unfinished = whole.with_extension("unfinished");
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished).on("remove", &unfinished)?;
    }
    fs::create_dir(&unfinished).on("create", &unfinished)?;
    make(&unfinished)?;
    fs::rename(&unfinished, &whole).on("create", &whole)?;
    Ok(whole)
}

/// FNV-1a over all texts: names a recipe, guards against nothing.
fn fingerprint(texts: &[&str]) -> u64 {
    texts
        .iter()
        .flat_map(|text| text.bytes().chain([0]))
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_appears_whole_or_not_at_all() {
        let cache = tempfile::tempdir().unwrap();
        let fails = |dir: &Path| {
            fs::write(dir.join("half"), "").unwrap();
            Err(Error::Timeout(0))
        };
        provide(cache.path(), "part", &["recipe"], fails).unwrap_err();
        let made = provide(cache.path(), "part", &["recipe"], |_| Ok(())).unwrap();
        assert_eq!(fs::read_dir(&made).unwrap().count(), 0);
        let again = provide(cache.path(), "part", &["recipe"], |_| panic!("made twice")).unwrap();
        assert_eq!(made, again);
        assert_ne!(made, provide(cache.path(), "part", &["another"], |_| Ok(())).unwrap());
    }
}
