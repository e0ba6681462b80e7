//! Files → an uncompressed initramfs (cpio "newc"). Everything belongs to root; files are streamed, never held.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use cpio::newc::{Builder, ModeFileType};

use crate::error::{Doing, Error, Result};
use crate::machine::kernel;

/// Directories that the node mounts something on.
const COVERED: [&str; 3] = ["/proc", "/sys", "/dev"];

/// Writes one archive. The first entry for a path wins.
pub(crate) struct Packer<W: Write> {
    out: W,
    taken: HashSet<PathBuf>,
}

impl Packer<BufWriter<File>> {
    /// Starts an archive in a new file.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).on("create", path)?;
        Ok(Self::new(BufWriter::with_capacity(1 << 20, file)))
    }
}

impl<W: Write> Packer<W> {
    pub(crate) fn new(out: W) -> Self {
        Self { out, taken: HashSet::new() }
    }

    /// Adds a file, or a directory with all that is in it. Symbolic links in a directory stay links.
    pub(crate) fn add(&mut self, source: &Path, inside: &Path) -> Result<()> {
        if COVERED.iter().any(|covered| inside.starts_with(covered)) {
            return Err(Error::Hidden(inside.to_owned()));
        }
        if fs::metadata(source).on("read", source)?.is_dir() {
            self.add_directory(source, inside)
        } else {
            self.add_file(source, inside)
        }
    }

    fn add_directory(&mut self, source: &Path, inside: &Path) -> Result<()> {
        self.directory(inside)?;
        let entries: io::Result<Vec<_>> = fs::read_dir(source).on("list", source)?.collect();
        let mut entries = entries.on("list", source)?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let (path, inside) = (entry.path(), inside.join(entry.file_name()));
            let kind = entry.file_type().on("read", &path)?;
            if kind.is_dir() {
                self.add_directory(&path, &inside)?;
            } else if kind.is_symlink() {
                let target = fs::read_link(&path).on("read", &path)?;
                self.bytes(&inside, ModeFileType::Symlink, 0o777, target.as_os_str().as_bytes())?;
            } else if kind.is_file() {
                self.add_file(&path, &inside)?;
            }
        }
        Ok(())
    }

    fn add_file(&mut self, source: &Path, inside: &Path) -> Result<()> {
        let file = File::open(source).on("open", source)?;
        let about = file.metadata().on("read", source)?;
        if !about.is_file() {
            return Err(Error::CannotPack {
                path: source.to_owned(),
                what: "neither a file nor a directory",
            });
        }
        let Ok(size) = u32::try_from(about.len()) else {
            return Err(Error::CannotPack {
                path: source.to_owned(),
                what: "4 GiB or more do not fit an initramfs",
            });
        };
        let Some(entry) = self.entry(inside)? else { return Ok(()) };
        let mode = about.permissions().mode() & 0o7777;
        let mut writer =
            entry.mode(mode).set_mode_file_type(ModeFileType::Regular).write(&mut self.out, size);
        // A file that shrank meanwhile would leave the archive short: `finish` reports that.
        io::copy(&mut file.take(size.into()), &mut writer).on("pack", source)?;
        writer.finish().on("pack", source)?;
        Ok(())
    }

    /// Adds this executable as the node's PID 1, without the parts that only a debugger reads.
    pub(crate) fn add_init(&mut self, source: &Path) -> Result<()> {
        let mut executable = fs::read(source).on("read", source)?;
        kernel::strip(&mut executable);
        self.add_bytes(Path::new("/init"), 0o755, &executable)
    }

    /// Adds a kernel module without its signature: nobody in the node has the key, but the kernel would still spend a
    /// third of the boot's instructions on trying.
    pub(crate) fn add_module(&mut self, source: &Path, inside: &Path) -> Result<()> {
        let module = fs::read(source).on("read", source)?;
        self.add_bytes(inside, 0o600, unsigned(&module))
    }

    /// Adds a file made of `bytes`.
    pub(crate) fn add_bytes(&mut self, inside: &Path, mode: u32, bytes: &[u8]) -> Result<()> {
        self.bytes(inside, ModeFileType::Regular, mode, bytes)
    }

    fn bytes(&mut self, inside: &Path, kind: ModeFileType, mode: u32, bytes: &[u8]) -> Result<()> {
        let Some(entry) = self.entry(inside)? else { return Ok(()) };
        let size = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let mut writer = entry.mode(mode).set_mode_file_type(kind).write(&mut self.out, size);
        writer.write_all(bytes).on("pack", inside)?;
        writer.finish().on("pack", inside)?;
        Ok(())
    }

    /// Adds a directory and those above it, unless they are there.
    pub(crate) fn directory(&mut self, inside: &Path) -> Result<()> {
        if inside.parent().is_none() || self.taken.contains(inside) {
            return Ok(());
        }
        // Where programs of any user may write, as everywhere.
        let mode = if inside == Path::new("/tmp") { 0o1777 } else { 0o755 };
        self.bytes(inside, ModeFileType::Directory, mode, b"")
    }

    /// Adds the character device that PID 1 gets as its first file descriptors.
    pub(crate) fn console(&mut self) -> Result<()> {
        let path = Path::new("/dev/console");
        let Some(entry) = self.entry(path)? else { return Ok(()) };
        let entry = entry.mode(0o600).set_mode_file_type(ModeFileType::Char).rdev_major(5).rdev_minor(1);
        entry.write(&mut self.out, 0).finish().on("pack", path)?;
        Ok(())
    }

    /// The header of a new entry, its parents written; `None` when the path is taken.
    fn entry(&mut self, inside: &Path) -> Result<Option<Builder>> {
        let problem = |what| Error::CannotPack { path: inside.to_owned(), what };
        if inside.components().any(|c| matches!(c, Component::ParentDir | Component::CurDir)) {
            return Err(problem("a path in the node must not contain `..`"));
        }
        let Ok(name) = inside.strip_prefix("/") else {
            return Err(problem("a path in the node must be absolute"));
        };
        let name = name.to_str().ok_or_else(|| problem("a path in the node must be UTF-8"))?;
        if let Some(parent) = inside.parent() {
            self.directory(parent)?;
        }
        Ok(self.taken.insert(inside.to_owned()).then(|| Builder::new(name)))
    }

    /// Ends the archive.
    pub(crate) fn finish(mut self) -> Result<W> {
        Builder::new("TRAILER!!!").write(&mut self.out, 0).finish().doing("end the initramfs")?;
        self.out.flush().doing("end the initramfs")?;
        Ok(self.out)
    }
}

/// A module without what `CONFIG_MODULE_SIG` appended: the signature, a `struct module_signature`, a mark.
fn unsigned(module: &[u8]) -> &[u8] {
    const MARK: &[u8] = b"~Module signature appended~\n";
    let without = || {
        let (rest, length) = module.strip_suffix(MARK)?.split_last_chunk()?;
        // The structure's last field is the signature's length; eight bytes come before it.
        let signature = usize::try_from(u32::from_be_bytes(*length)).ok()?;
        rest.get(..rest.len().checked_sub(signature + 8)?)
    };
    without().unwrap_or(module)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn list(mut archive: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut entries = Vec::new();
        loop {
            let mut reader = cpio::newc::Reader::new(archive).unwrap();
            if reader.entry().is_trailer() {
                return entries;
            }
            let mut content = Vec::new();
            reader.read_to_end(&mut content).unwrap();
            entries.push((reader.entry().name().to_owned(), reader.entry().mode(), content));
            archive = reader.finish().unwrap();
        }
    }

    #[test]
    fn a_tree_arrives_with_parents_modes_and_links() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        fs::write(dir.path().join("sub/tool"), b"#!").unwrap();
        fs::set_permissions(dir.path().join("sub/tool"), fs::Permissions::from_mode(0o755)).unwrap();
        symlink("sub/tool", dir.path().join("alias")).unwrap();
        let mut packer = Packer::new(Vec::new());
        packer.add(dir.path(), Path::new("/a/b")).unwrap();
        packer.add(&dir.path().join("sub/tool"), Path::new("/a/b/sub/tool")).unwrap();
        let entries = list(&packer.finish().unwrap());
        let expected = [
            ("a", 0o40755, &b""[..]),
            ("a/b", 0o40755, b""),
            ("a/b/alias", 0o120_777, b"sub/tool"),
            ("a/b/sub", 0o40755, b""),
            ("a/b/sub/tool", 0o100_755, b"#!"),
        ];
        assert_eq!(entries, expected.map(|(name, mode, content)| (name.to_owned(), mode, content.to_vec())));
    }

    #[test]
    fn a_module_loses_its_signature_and_nothing_else() {
        let signed = b"\x7fELF code SIGN\0\0\x02\0\0\0\0\0\0\0\0\x04~Module signature appended~\n";
        assert_eq!(unsigned(signed), b"\x7fELF code ");
        assert_eq!(unsigned(b"\x7fELF code "), b"\x7fELF code ");
        assert_eq!(unsigned(b"~Module signature appended~\n"), b"~Module signature appended~\n");
    }

    #[test]
    fn places_that_cannot_work_are_refused() {
        let mut packer = Packer::new(Vec::new());
        assert!(matches!(
            packer.add(Path::new("/etc/hostname"), Path::new("/proc/x")),
            Err(Error::Hidden(_))
        ));
        assert!(matches!(packer.add_bytes(Path::new("x"), 0, b""), Err(Error::CannotPack { .. })));
        assert!(matches!(packer.add_bytes(Path::new("/a/../x"), 0, b""), Err(Error::CannotPack { .. })));
        assert!(matches!(packer.add(Path::new("/no/such"), Path::new("/x")), Err(Error::Io { .. })));
    }
}
