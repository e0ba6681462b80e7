//! A directory that may be somebody else's: everything a program does with files, one line a thing.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use crate::error::{Doing, Error, Result};
use crate::pattern;

type Step = (&'static str, fn(&Path) -> io::Result<bool>);

/// In this order: later ones use what earlier ones left.
const STEPS: [Step; 13] = [
    ("create-and-write", write),
    ("read-back", read_back),
    ("write-in-the-middle", write_in_the_middle),
    ("append", append),
    ("truncate", truncate),
    ("mode", mode),
    ("times", times),
    ("hard-link", hard_link),
    ("symbolic-link", symbolic_link),
    ("rename", rename),
    ("list", list),
    ("directories", directories),
    ("delete", delete),
];

const BYTES: usize = 300_001;
const SEED: u64 = 77;

/// `file-check`: works in a new directory below `directory`, which is gone again when all went well.
pub(crate) fn check(directory: &Path) -> Result<()> {
    let own = directory.join(format!("file-check-{}", std::process::id()));
    fs::create_dir(&own).doing(format!("create {}", own.display()))?;
    for (name, step) in STEPS {
        if !step(&own).doing(format!("do {name} in {}", own.display()))? {
            return Err(Error::Mismatch(format!("{name} in {}: not what was expected", own.display())));
        }
        println!("{name}=ok");
    }
    fs::remove_dir(&own).doing(format!("remove {}", own.display()))
}

fn content() -> Vec<u8> {
    let mut bytes = vec![0; BYTES];
    pattern::fill(SEED, 0, &mut bytes);
    bytes
}

fn write(own: &Path) -> io::Result<bool> {
    let mut file = File::create_new(own.join("a"))?;
    file.write_all(&content())?;
    file.sync_all()?;
    Ok(File::create_new(own.join("a")).is_err_and(|error| error.kind() == io::ErrorKind::AlreadyExists))
}

fn read_back(own: &Path) -> io::Result<bool> {
    Ok(fs::metadata(own.join("a"))?.len() == BYTES as u64 && fs::read(own.join("a"))? == content())
}

fn write_in_the_middle(own: &Path) -> io::Result<bool> {
    let file = OpenOptions::new().read(true).write(true).open(own.join("a"))?;
    file.write_all_at(b"middle", 150_000)?;
    let mut around = [0; 8];
    file.read_exact_at(&mut around, 149_999)?;
    let expected = content();
    Ok(&around[1..7] == b"middle" && around[0] == expected[149_999] && around[7] == expected[150_006])
}

fn append(own: &Path) -> io::Result<bool> {
    OpenOptions::new().append(true).open(own.join("a"))?.write_all(b"tail")?;
    let mut file = File::open(own.join("a"))?;
    file.seek(SeekFrom::End(-4))?;
    let mut tail = String::new();
    file.read_to_string(&mut tail)?;
    Ok(tail == "tail" && file.metadata()?.len() == BYTES as u64 + 4)
}

fn truncate(own: &Path) -> io::Result<bool> {
    let file = OpenOptions::new().write(true).open(own.join("a"))?;
    file.set_len(10)?;
    file.set_len(20)?;
    Ok(fs::read(own.join("a"))? == [&content()[..10], &[0; 10]].concat())
}

fn mode(own: &Path) -> io::Result<bool> {
    fs::set_permissions(own.join("a"), fs::Permissions::from_mode(0o640))?;
    Ok(fs::metadata(own.join("a"))?.mode() & 0o7777 == 0o640)
}

fn times(own: &Path) -> io::Result<bool> {
    let then = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    OpenOptions::new().write(true).open(own.join("a"))?.set_modified(then)?;
    Ok(fs::metadata(own.join("a"))?.modified()? == then)
}

fn hard_link(own: &Path) -> io::Result<bool> {
    fs::hard_link(own.join("a"), own.join("hard"))?;
    let (one, other) = (fs::metadata(own.join("a"))?, fs::metadata(own.join("hard"))?);
    Ok(one.ino() == other.ino() && one.nlink() == 2)
}

fn symbolic_link(own: &Path) -> io::Result<bool> {
    symlink("a", own.join("soft"))?;
    let same = fs::read(own.join("soft"))? == fs::read(own.join("a"))?;
    Ok(same && fs::read_link(own.join("soft"))? == Path::new("a"))
}

fn rename(own: &Path) -> io::Result<bool> {
    fs::write(own.join("b"), "overwritten by the rename")?;
    fs::rename(own.join("hard"), own.join("b"))?;
    Ok(!own.join("hard").exists() && fs::metadata(own.join("b"))?.len() == 20)
}

fn list(own: &Path) -> io::Result<bool> {
    let names: io::Result<BTreeSet<_>> = fs::read_dir(own)?.map(|entry| Ok(entry?.file_name())).collect();
    Ok(names? == ["a", "b", "soft"].map(Into::into).into())
}

/// Enough entries that listing takes more than one request.
fn directories(own: &Path) -> io::Result<bool> {
    let deep = own.join("d/e/f");
    fs::create_dir_all(&deep)?;
    for number in 0..300 {
        fs::write(deep.join(format!("a-file-with-a-rather-long-name-{number:04}")), number.to_string())?;
    }
    let full = fs::read_dir(&deep)?.count() == 300 && fs::remove_dir(own.join("d")).is_err();
    fs::remove_dir_all(own.join("d"))?;
    Ok(full && !own.join("d").exists())
}

fn delete(own: &Path) -> io::Result<bool> {
    // What is open can be read though its name is gone.
    let open = File::open(own.join("a"))?;
    for name in ["a", "b", "soft"] {
        fs::remove_file(own.join(name))?;
    }
    let mut first = [0; 10];
    open.read_exact_at(&mut first, 0)?;
    Ok(first == content()[..10] && fs::read_dir(own)?.next().is_none())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_of_this_machine_passes_and_is_left_empty() {
        let directory = tempfile::tempdir().unwrap();
        check(directory.path()).unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
        assert!(check(&directory.path().join("nowhere")).is_err());
    }
}
