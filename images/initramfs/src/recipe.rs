//! What goes into an initramfs, and putting it together.

use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::{Archive, Error, ModuleTree, libraries};

/// What a stock kernel needs for Nestling's devices. The console's come first: whatever fails after it can be read.
pub const DEFAULT_MODULES: [&str; 4] = ["virtio_pci", "virtio_console", "virtio_blk", "virtio_rng"];

/// The directories every guest has; those that the init mounts something on among them.
const DIRECTORIES: [&str; 9] = ["/bin", "/dev", "/etc", "/mnt", "/proc", "/root", "/run", "/sys", "/tmp"];

/// The character devices there are before devtmpfs is mounted.
const DEVICES: [(&str, u32, u32, u32); 2] = [("/dev/console", 0o600, 5, 1), ("/dev/null", 0o666, 1, 3)];

/// What is wanted in an initramfs.
#[derive(Debug, Clone, Default)]
pub struct Recipe {
    /// The program that becomes `/init`.
    pub init: PathBuf,
    /// Where the kernel's modules are; none for a kernel that has all it needs built in.
    pub kernel: Option<PathBuf>,
    /// The modules to load, in this order, each after what it needs.
    pub modules: Vec<String>,
    /// Modules that are there to be loaded by name later, each with what it needs; the init leaves them alone.
    pub spare_modules: Vec<String>,
    /// Files: where each lies here, and where it goes in the guest. Its permission bits go along.
    pub files: Vec<(PathBuf, String)>,
    /// Programs, like `files`, that come with the shared libraries they are linked with, each at its path on this machine.
    pub programs: Vec<(PathBuf, String)>,
    /// Symbolic links: what each points to, and where it is in the guest.
    pub symlinks: Vec<(String, String)>,
    /// A static busybox, installed with all its applets in `/bin`.
    pub busybox: Option<PathBuf>,
}

impl Recipe {
    /// Gathers everything into an archive.
    pub fn pack(&self) -> Result<Archive, Error> {
        let mut archive = Archive::new();
        for path in DIRECTORIES {
            archive.directory(path)?;
        }
        for (path, mode, major, minor) in DEVICES {
            archive.character_device(path, mode, major, minor)?;
        }
        archive.file("/init", 0o755, read(&self.init)?)?;
        if let Some(kernel) = &self.kernel {
            add_modules(&mut archive, &ModuleTree::open(kernel)?, &self.modules, &self.spare_modules)?;
        }
        for (source, path) in self.files.iter().chain(&self.programs) {
            add_file(&mut archive, source, path)?;
        }
        for (source, _) in &self.programs {
            for library in libraries::of(source)? {
                add_file(&mut archive, Path::new(&library), &library)?;
            }
        }
        for (target, path) in &self.symlinks {
            archive.symlink(target, path)?;
        }
        // Last, so that a file of the caller's own takes the place of an applet.
        if let Some(busybox) = &self.busybox {
            add_busybox(&mut archive, busybox)?;
        }
        Ok(archive)
    }

    /// Gathers everything and writes it to `out`, which is either the whole new archive or what it was before.
    pub fn pack_into(&self, out: &Path) -> Result<(), Error> {
        let archive = self.pack()?;
        let failed = |source| Error::Write { path: out.into(), source };
        let mut partial = out.as_os_str().to_owned();
        partial.push(format!(".{}.partial", std::process::id()));
        let written = std::fs::File::create(&partial).and_then(|file| {
            let mut file = BufWriter::new(file);
            archive.write_to(&mut file)?;
            file.flush()?;
            std::fs::rename(&partial, out)
        });
        if written.is_err() {
            // The reason to tell is why the archive could not be written.
            drop(std::fs::remove_file(&partial));
        }
        written.map_err(failed)
    }
}

/// The module files at their usual place; `/etc/modules`, the list that the init loads; and, when there are modules to
/// load by name, the index files that say what is there.
fn add_modules(
    archive: &mut Archive,
    tree: &ModuleTree,
    names: &[String],
    spare: &[String],
) -> Result<(), Error> {
    let mut list = String::new();
    for path in tree.load_order(names)? {
        list.push_str(&tree.guest_path(&path));
        list.push('\n');
    }
    archive.file("/etc/modules", 0o644, list.into_bytes())?;
    let all = [names, spare].concat();
    for path in tree.load_order(&all)? {
        archive.file(&tree.guest_path(&path), 0o644, tree.read(&path)?)?;
    }
    if !spare.is_empty() {
        let directory = tree.guest_directory();
        archive.file(&format!("{directory}/modules.dep"), 0o644, tree.modules_dep(&all)?.into_bytes())?;
        archive.file(&format!("{directory}/modules.builtin"), 0o644, tree.modules_builtin().into_bytes())?;
    }
    Ok(())
}

fn add_file(archive: &mut Archive, source: &Path, path: &str) -> Result<(), Error> {
    let metadata = std::fs::metadata(source).map_err(|error| unreadable(source, error))?;
    archive.file(path, metadata.permissions().mode(), read(source)?)
}

/// `/bin/busybox` and a link for each applet, save where the archive has something already.
fn add_busybox(archive: &mut Archive, busybox: &Path) -> Result<(), Error> {
    let failed = |source| Error::Busybox { path: busybox.into(), source };
    let content = read(busybox)?;
    let listed = Command::new(busybox).arg("--list").stderr(Stdio::null()).output().map_err(failed)?;
    if !listed.status.success() {
        return Err(failed(io::Error::other(format!("busybox --list: {}", listed.status))));
    }
    archive.file("/bin/busybox", 0o755, content)?;
    for applet in String::from_utf8_lossy(&listed.stdout).split_whitespace() {
        let path = format!("/bin/{applet}");
        if !archive.contains(&path) {
            archive.symlink("busybox", &path)?;
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|source| unreadable(path, source))
}

fn unreadable(path: &Path, source: io::Error) -> Error {
    Error::Read { path: path.into(), source }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn recipe(directory: &Path) -> Recipe {
        std::fs::write(directory.join("init"), b"init").unwrap();
        let modules = directory.join("lib/modules/1.0/kernel");
        std::fs::create_dir_all(&modules).unwrap();
        std::fs::write(modules.join("a.ko"), b"\0depends=b\0").unwrap();
        std::fs::write(modules.join("b.ko"), b"\0depends=\0").unwrap();
        Recipe {
            init: directory.join("init"),
            kernel: Some(directory.into()),
            modules: vec!["a".into()],
            spare_modules: Vec::new(),
            programs: Vec::new(),
            files: vec![(directory.join("init"), "/usr/bin/tool".into())],
            symlinks: vec![("tool".into(), "/usr/bin/other".into())],
            busybox: None,
        }
    }

    #[test]
    fn the_same_recipe_gives_the_same_bytes_whenever_it_is_packed() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        recipe(one.path()).pack_into(&one.path().join("out")).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
        recipe(other.path()).pack_into(&other.path().join("out")).unwrap();

        assert_eq!(
            std::fs::read(one.path().join("out")).unwrap(),
            std::fs::read(other.path().join("out")).unwrap()
        );
    }

    #[test]
    fn the_list_of_modules_is_in_load_order() {
        let directory = tempfile::tempdir().unwrap();
        let mut bytes = Vec::new();
        recipe(directory.path()).pack().unwrap().write_to(&mut bytes).unwrap();

        let text = String::from_utf8_lossy(&bytes);
        assert!(text.contains("/lib/modules/1.0/kernel/b.ko\n/lib/modules/1.0/kernel/a.ko\n"));
    }

    #[test]
    fn spare_modules_are_there_with_an_index_and_not_in_the_list() {
        let directory = tempfile::tempdir().unwrap();
        let spared =
            Recipe { modules: vec!["b".into()], spare_modules: vec!["a".into()], ..recipe(directory.path()) };
        let mut bytes = Vec::new();
        let archive = spared.pack().unwrap();
        archive.write_to(&mut bytes).unwrap();

        let text = String::from_utf8_lossy(&bytes);
        assert!(archive.contains("/lib/modules/1.0/kernel/a.ko"));
        assert!(!text.contains("/lib/modules/1.0/kernel/a.ko\n"), "a spare module is in the list");
        assert!(text.contains("kernel/b.ko:\nkernel/a.ko: kernel/b.ko\n"), "{text}");
        assert!(archive.contains("/lib/modules/1.0/modules.builtin"));
    }

    #[test]
    fn a_program_brings_its_libraries() {
        let directory = tempfile::tempdir().unwrap();
        let mut recipe = recipe(directory.path());
        recipe.programs.push(("/bin/true".into(), "/bin/true".into()));
        let archive = recipe.pack().unwrap();

        let libraries = libraries::of(Path::new("/bin/true")).unwrap();
        assert!(
            !libraries.is_empty() && libraries.iter().all(|path| archive.contains(path)),
            "{libraries:?}"
        );
        assert!(archive.contains("/bin/true"));
    }

    #[test]
    fn a_missing_init_is_named_and_leaves_no_file() {
        let directory = tempfile::tempdir().unwrap();
        let out = directory.path().join("out");
        let recipe = Recipe { init: directory.path().join("nowhere"), ..Recipe::default() };

        let error = recipe.pack_into(&out).unwrap_err().to_string();

        assert!(error.contains("nowhere"), "{error}");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_busybox_gives_its_applets_and_spares_files_of_ones_own() {
        let directory = tempfile::tempdir().unwrap();
        let busybox = directory.path().join("busybox");
        std::fs::write(&busybox, "#!/bin/sh\necho sh\necho init\n").unwrap();
        std::fs::set_permissions(&busybox, PermissionsExt::from_mode(0o755)).unwrap();
        let mut recipe = recipe(directory.path());
        recipe.busybox = Some(busybox);
        recipe.symlinks.push(("mine".into(), "/bin/init".into()));

        let archive = recipe.pack().unwrap();

        let mut expected = Archive::new();
        expected.symlink("busybox", "/bin/sh").unwrap();
        assert!(
            archive.contains("/bin/sh") && archive.contains("/bin/busybox") && archive.contains("/bin/init")
        );
    }
}
