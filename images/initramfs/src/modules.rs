//! A kernel's modules: which there are, what each needs, and in what order they load.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::Error;

/// One kernel's `lib/modules/RELEASE`.
#[derive(Debug, Clone)]
pub struct ModuleTree {
    root: PathBuf,
    index: Index,
}

/// What is known of the modules, by name: with underscores, without directory and suffix.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Index {
    /// Where the file lies, below the tree, and the names of what it needs, each after what it needs itself.
    files: BTreeMap<String, (String, Vec<String>)>,
    built_in: BTreeSet<String>,
}

impl ModuleTree {
    /// Opens the modules of the one kernel in `kernel`: a directory that holds `lib/modules/RELEASE` (an unpacked
    /// package, a root filesystem), or that directory itself. A tree that `depmod` has not seen is read file by file.
    pub fn open(kernel: &Path) -> Result<Self, Error> {
        let root = find_root(kernel)?;
        let built_in = read_optional(&root.join("modules.builtin"))?.unwrap_or_default();
        let mut index = match read_optional(&root.join("modules.dep"))? {
            Some(text) => Index::from_modules_dep(&text),
            None => Index::from_files(&root)?,
        };
        index.built_in = built_in.lines().map(module_name).collect();
        Ok(Self { root, index })
    }

    /// The kernel's release: the name of the directory.
    #[must_use]
    pub fn release(&self) -> &str {
        self.root.file_name().and_then(|name| name.to_str()).unwrap_or_default()
    }

    /// The files of these modules and of all they need, in the order in which they load, as paths below the tree.
    /// What is built into the kernel needs no file and is left out.
    pub fn load_order<S: AsRef<str>>(&self, names: &[S]) -> Result<Vec<String>, Error> {
        let mut order = Vec::new();
        for name in names {
            self.visit(&module_name(name.as_ref()), &mut order, &mut Vec::new())?;
        }
        Ok(order)
    }

    /// The module's bytes as the kernel takes them, for a path out of [`Self::load_order`].
    pub fn read(&self, path: &str) -> Result<Vec<u8>, Error> {
        read_module(&self.root.join(path))
    }

    /// Where a module's file goes in the guest: its usual place, without the suffix of a compression.
    #[must_use]
    pub fn guest_path(&self, path: &str) -> String {
        format!("{}/{}", self.guest_directory(), plain_path(path))
    }

    /// The directory of the modules in the guest.
    #[must_use]
    pub fn guest_directory(&self) -> String {
        format!("/lib/modules/{}", self.release())
    }

    /// A `modules.dep` of these modules and all they need, as the guest finds them: a loader that knows names reads it.
    pub fn modules_dep<S: AsRef<str>>(&self, names: &[S]) -> Result<String, Error> {
        let mut text = String::new();
        for path in self.load_order(names)? {
            text.push_str(&plain_path(&path));
            text.push(':');
            let mut needs = self.load_order(&[&path])?;
            needs.pop();
            for needed in needs.iter().rev() {
                text.push(' ');
                text.push_str(&plain_path(needed));
            }
            text.push('\n');
        }
        Ok(text)
    }

    /// A `modules.builtin`: what the kernel has without a file.
    #[must_use]
    pub fn modules_builtin(&self) -> String {
        self.index.built_in.iter().fold(String::new(), |text, name| text + name + ".ko\n")
    }

    /// Depth first: what a module needs comes before it. `above` is the way down to here, to notice a circle.
    fn visit(&self, name: &str, order: &mut Vec<String>, above: &mut Vec<String>) -> Result<(), Error> {
        let Some((path, needs)) = self.index.files.get(name) else {
            let known = self.index.built_in.contains(name);
            return if known {
                Ok(())
            } else {
                Err(Error::NoModule { name: name.into(), tree: self.root.clone() })
            };
        };
        if order.contains(path) {
            return Ok(());
        }
        if above.iter().any(|other| other == name) {
            return Err(Error::Cycle { name: name.into(), tree: self.root.clone() });
        }
        above.push(name.into());
        for needed in needs {
            self.visit(needed, order, above)?;
        }
        above.pop();
        order.push(path.clone());
        Ok(())
    }
}

impl Index {
    /// `modules.dep`: a line `PATH: PATH…` for each module, what has to load first standing last.
    fn from_modules_dep(text: &str) -> Self {
        let lines = text.lines().filter_map(|line| line.split_once(':'));
        let files = lines.map(|(path, needs)| {
            (module_name(path), (path.to_string(), needs.split_whitespace().rev().map(module_name).collect()))
        });
        Self { files: files.collect(), built_in: BTreeSet::new() }
    }

    /// Every module file below `root`, each asked what it needs.
    fn from_files(root: &Path) -> Result<Self, Error> {
        let mut index = Self::default();
        let mut pending = vec![root.to_path_buf()];
        while let Some(directory) = pending.pop() {
            let unreadable = |source| Error::Read { path: directory.clone(), source };
            for entry in std::fs::read_dir(&directory).map_err(unreadable)? {
                let path = entry.map_err(unreadable)?.path();
                let below = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
                if path.is_dir() && !path.is_symlink() {
                    pending.push(path);
                } else if [".ko", ".ko.xz", ".ko.zst"].iter().any(|suffix| below.ends_with(suffix)) {
                    let needs = depends(&read_module(&path)?);
                    index.files.insert(module_name(&below), (below, needs));
                }
            }
        }
        Ok(index)
    }
}

/// A module's path without the suffix of a compression.
fn plain_path(path: &str) -> String {
    let plain = path.split_once(".ko").map_or(path, |(stem, _)| stem);
    format!("{plain}.ko")
}

/// `kernel/drivers/char/hw_random/virtio-rng.ko.xz` is the module `virtio_rng`.
fn module_name(path: &str) -> String {
    let file = path.trim().rsplit('/').next().unwrap_or_default();
    file.split_once(".ko").map_or(file, |(stem, _)| stem).replace('-', "_")
}

/// The names a module needs, out of the zero-terminated `depends=a,b` of its `.modinfo` section.
fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(start) = module.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let value = module[start + KEY.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    let names = String::from_utf8_lossy(value);
    names.split(',').filter(|name| !name.is_empty()).map(module_name).collect()
}

fn find_root(kernel: &Path) -> Result<PathBuf, Error> {
    if kernel.join("modules.dep").exists() || kernel.join("kernel").is_dir() {
        return Ok(kernel.to_path_buf());
    }
    let places = [kernel.join("lib/modules"), kernel.join("usr/lib/modules"), kernel.to_path_buf()];
    let found =
        places.iter().map(|place| releases(place)).find(|found| !found.is_empty()).unwrap_or_default();
    match <[PathBuf; 1]>::try_from(found) {
        Ok([root]) => Ok(root),
        Err(found) => Err(Error::NoTree { path: kernel.into(), found: found.len() }),
    }
}

/// The directories in `place` that hold a kernel's modules.
fn releases(place: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(place).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.filter(|path| path.join("modules.dep").exists() || path.join("kernel").is_dir()).collect()
}

fn read_optional(path: &Path) -> Result<Option<String>, Error> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Read { path: path.into(), source }),
    }
}

/// A module's file, unpacked by its suffix.
fn read_module(path: &Path) -> Result<Vec<u8>, Error> {
    let packed = std::fs::read(path).map_err(|source| Error::Read { path: path.into(), source })?;
    let failed = |source| Error::Unpack { path: path.into(), source };
    let mut plain = Vec::new();
    match path.extension().and_then(|suffix| suffix.to_str()) {
        Some("xz") => lzma_rust2::XzReader::new(&packed[..], true).read_to_end(&mut plain).map_err(failed)?,
        Some("zst") => {
            let mut frames = ruzstd::decoding::StreamingDecoder::new(&packed[..])
                .map_err(|error| failed(io::Error::other(error.to_string())))?;
            frames.read_to_end(&mut plain).map_err(failed)?
        }
        _ => return Ok(packed),
    };
    Ok(plain)
}

#[cfg(test)]
#[path = "modules_test.rs"]
mod tests;
