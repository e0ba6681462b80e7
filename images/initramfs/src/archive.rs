//! A tree of files that writes itself as a "newc" cpio archive (kernel Documentation: `buffer-format.rst`).

use std::collections::BTreeMap;
use std::io::{self, Write};

use cpio::newc::{Builder, trailer};

use crate::Error;

const DIRECTORY: u32 = 0o040_755;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_777;
const CHARACTER: u32 = 0o020_000;

/// The files of an initramfs by their path. It holds no times, owners or inode numbers of this machine, and is sorted:
/// the same tree always gives the same bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Archive {
    /// Paths have no slash at either end; a directory sorts before what it holds.
    nodes: BTreeMap<String, Node>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Node {
    mode: u32,
    /// A device's numbers.
    device: (u32, u32),
    /// A file's bytes, or where a link points.
    content: Vec<u8>,
}

impl Archive {
    /// An empty tree.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a directory, and those above it. One that is there already is left as it is.
    pub fn directory(&mut self, path: &str) -> Result<(), Error> {
        let path = guest_path(path)?;
        self.parents(&path)?;
        self.place(path, Node { mode: DIRECTORY, device: (0, 0), content: Vec::new() })
    }

    /// Adds a file with the permission bits of `mode`.
    pub fn file(&mut self, path: &str, mode: u32, content: Vec<u8>) -> Result<(), Error> {
        let path = guest_path(path)?;
        if u32::try_from(content.len()).is_err() {
            return Err(Error::TooLarge { path, bytes: content.len() });
        }
        self.parents(&path)?;
        self.place(path, Node { mode: REGULAR | (mode & 0o7777), device: (0, 0), content })
    }

    /// Adds a symbolic link at `path` that points to `target`, whether or not that is there.
    pub fn symlink(&mut self, target: &str, path: &str) -> Result<(), Error> {
        let path = guest_path(path)?;
        self.parents(&path)?;
        self.place(path, Node { mode: SYMLINK, device: (0, 0), content: target.into() })
    }

    /// Adds a character device.
    pub fn character_device(&mut self, path: &str, mode: u32, major: u32, minor: u32) -> Result<(), Error> {
        let path = guest_path(path)?;
        self.parents(&path)?;
        self.place(
            path,
            Node { mode: CHARACTER | (mode & 0o7777), device: (major, minor), content: Vec::new() },
        )
    }

    /// Whether something is at this path of the guest.
    #[must_use]
    pub fn contains(&self, path: &str) -> bool {
        guest_path(path).is_ok_and(|path| self.nodes.contains_key(&path))
    }

    /// Writes the archive, its trailer included.
    pub fn write_to<W: Write>(&self, mut out: W) -> io::Result<()> {
        for ((path, node), inode) in self.nodes.iter().zip(1..) {
            let size = u32::try_from(node.content.len()).map_err(io::Error::other)?;
            let mut entry = Builder::new(path)
                .ino(inode)
                .mode(node.mode)
                .nlink(if node.mode == DIRECTORY { 2 } else { 1 })
                .rdev_major(node.device.0)
                .rdev_minor(node.device.1)
                .write(&mut out, size);
            entry.write_all(&node.content)?;
            entry.finish()?;
        }
        trailer(out).map(drop)
    }

    fn parents(&mut self, path: &str) -> Result<(), Error> {
        for (slash, _) in path.match_indices('/') {
            let node = Node { mode: DIRECTORY, device: (0, 0), content: Vec::new() };
            self.place(path[..slash].into(), node)?;
        }
        Ok(())
    }

    /// The same thing twice is no conflict.
    fn place(&mut self, path: String, node: Node) -> Result<(), Error> {
        match self.nodes.get(&path) {
            Some(there) if *there != node => Err(Error::Twice { path }),
            Some(_) => Ok(()),
            None => {
                self.nodes.insert(path, node);
                Ok(())
            }
        }
    }
}

/// A path of the guest as the archive spells it: no slash at either end, none doubled, no `.` and no `..`.
fn guest_path(path: &str) -> Result<String, Error> {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if parts.is_empty() || parts.contains(&"..") || path.contains('\0') {
        return Err(Error::GuestPath { path: path.into() });
    }
    Ok(parts.join("/"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::io::Read;

    fn bytes(archive: &Archive) -> Vec<u8> {
        let mut bytes = Vec::new();
        archive.write_to(&mut bytes).unwrap();
        bytes
    }

    /// Every entry as (name, mode, content), read back by the reader of the same format.
    fn entries(archive: &Archive) -> Vec<(String, u32, Vec<u8>)> {
        let bytes = bytes(archive);
        let (mut left, mut entries) = (&bytes[..], Vec::new());
        loop {
            let mut reader = cpio::newc::Reader::new(left).unwrap();
            if reader.entry().is_trailer() {
                return entries;
            }
            let mut content = Vec::new();
            reader.read_to_end(&mut content).unwrap();
            entries.push((reader.entry().name().into(), reader.entry().mode(), content));
            left = reader.finish().unwrap();
        }
    }

    #[test]
    fn a_file_brings_the_directories_above_it() {
        let mut archive = Archive::new();
        archive.file("/a/b/c", 0o755, b"hello".to_vec()).unwrap();

        let expected = [
            ("a".into(), 0o040_755, vec![]),
            ("a/b".into(), 0o040_755, vec![]),
            ("a/b/c".into(), 0o100_755, b"hello".to_vec()),
        ];
        assert_eq!(entries(&archive), expected);
    }

    #[test]
    fn the_order_of_adding_does_not_show() {
        let (mut one, mut other) = (Archive::new(), Archive::new());
        one.file("/x", 0o644, b"1".to_vec()).unwrap();
        one.symlink("x", "/a/y").unwrap();
        other.symlink("x", "a/y").unwrap();
        other.file("x", 0o644, b"1".to_vec()).unwrap();

        assert_eq!(bytes(&one), bytes(&other));
    }

    #[test]
    fn the_first_header_is_what_the_kernel_reads() {
        let mut archive = Archive::new();
        archive.character_device("/console", 0o600, 5, 1).unwrap();

        let bytes = bytes(&archive);
        let fields = "070701" // magic
            .to_string()
            + "00000001" // inode
            + "00002180" // mode: character device, 0600
            + "00000000" + "00000000" // owner, group
            + "00000001" // links
            + "00000000" + "00000000" // time, size
            + "00000000" + "00000000" // device it lies on
            + "00000005" + "00000001" // device it is
            + "00000008" + "00000000"; // length of the name with its zero, checksum
        assert_eq!(&bytes[..110], fields.as_bytes());
        assert_eq!(&bytes[110..118], b"console\0");
        assert!(bytes.len().is_multiple_of(4));
    }

    #[test]
    fn one_path_cannot_be_two_things() {
        let mut archive = Archive::new();
        archive.file("/a", 0o644, Vec::new()).unwrap();

        assert!(matches!(archive.directory("/a"), Err(Error::Twice { .. })));
        assert!(matches!(archive.file("/a/b", 0o644, Vec::new()), Err(Error::Twice { .. })));
        assert!(archive.file("//a", 0o644, Vec::new()).is_ok());
    }

    #[test]
    fn paths_stay_inside_the_guest() {
        for path in ["", "/", "../x", "/a/../b", "a\0b"] {
            assert!(
                matches!(Archive::new().file(path, 0, Vec::new()), Err(Error::GuestPath { .. })),
                "{path:?}"
            );
        }
    }
}
