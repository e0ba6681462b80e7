//! Where a run keeps what the machine said: `target/node/<name>-<pid>/`, removed when all went well.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::error::{Doing, Result};
use crate::report::Report;

/// Lines shown of a log when something went wrong.
const TAIL_LINES: usize = 20;

/// One run's directory.
#[derive(Debug)]
pub(crate) struct Logs {
    directory: PathBuf,
}

impl Logs {
    /// Makes the directory for a run of `program`.
    pub(crate) fn create(program: &Path) -> Result<Self> {
        let name = program.file_name().unwrap_or_default().to_string_lossy();
        let directory = target_directory().join("node").join(format!("{name}-{}", std::process::id()));
        fs::create_dir_all(&directory).on("create", &directory)?;
        Ok(Self { directory })
    }

    /// A file in it.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// The serial console.
    pub(crate) fn console(&self) -> PathBuf {
        self.path("console.log")
    }

    /// What the kernel logged, sent by PID 1 when the program failed.
    pub(crate) fn kernel(&self) -> PathBuf {
        self.path("kernel.log")
    }

    /// What Bochs logged.
    pub(crate) fn bochs(&self) -> PathBuf {
        self.path("bochs.log")
    }

    /// Copies the console to where the user wants it.
    pub(crate) fn keep_console(&self, to: &Path) -> Result<()> {
        let mut file = File::create(to).on("create", to)?;
        for log in [self.console(), self.kernel()] {
            if let Ok(mut log) = File::open(&log) {
                io::copy(&mut log, &mut file).on("write", to)?;
            }
        }
        Ok(())
    }

    /// Removes what the machine was started from, the size of which is nothing to keep.
    pub(crate) fn remove_inputs(&self) {
        for name in ["initramfs", "kernel", "bios", "vgabios", "rom", "boot-info"] {
            // What cannot be removed does no harm.
            let _ = fs::remove_file(self.path(name));
        }
    }

    /// All went well: nothing is kept.
    pub(crate) fn discard(self) {
        // What cannot be removed does no harm.
        let _ = fs::remove_dir_all(&self.directory);
    }

    /// Something went wrong: says where the logs are, and shows the end of those that may tell why. What Bochs says is
    /// worth reading only when the machine died: a power-off is a panic to it.
    pub(crate) fn show(&self, died: bool, report: &Report) {
        report.say(&format!("logs are in {}", self.directory.display()));
        let inner = [self.console(), self.kernel()];
        let outer = [self.bochs(), self.path("bochs.stderr")];
        for log in inner.into_iter().chain(outer.into_iter().filter(|_| died)) {
            let Ok(tail) = tail(&log) else { continue };
            if !tail.is_empty() {
                report.say(&format!("the end of {}:", log.file_name().unwrap_or_default().to_string_lossy()));
                let _ = io::stderr().write_all(tail.as_bytes());
            }
        }
    }
}

fn tail(path: &Path) -> io::Result<String> {
    const ENOUGH: u64 = 16 << 10;
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(ENOUGH)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    let last = &lines[lines.len().saturating_sub(TAIL_LINES)..];
    Ok(last.iter().map(|line| format!("  {}\n", line.trim_end())).collect())
}

/// Cargo's target directory: the one this executable lies in, if it does.
fn target_directory() -> PathBuf {
    let named = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let own = || {
        let exe = std::env::current_exe().ok()?;
        exe.ancestors().find(|dir| dir.ends_with("target")).map(Path::to_owned)
    };
    let directory = named.or_else(own).unwrap_or_else(|| PathBuf::from("target"));
    std::path::absolute(&directory).unwrap_or(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_the_last_lines_whatever_bytes_they_hold() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut text: Vec<u8> = (0..40_000).flat_map(|i| format!("line {i}\n").into_bytes()).collect();
        text.extend(b"\xff\xfe\r\n");
        fs::write(file.path(), text).unwrap();
        let tail = tail(file.path()).unwrap();
        assert_eq!(tail.lines().count(), TAIL_LINES);
        assert!(tail.starts_with("  line 39981\n") && tail.ends_with("  \u{fffd}\u{fffd}\n"));
    }
}
