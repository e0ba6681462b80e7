//! The shared libraries of a program of this machine, as its own dynamic linker finds them.

use std::path::Path;
use std::process::Command;

use crate::Error;

/// The files that `program` needs beside itself, its dynamic linker included; none for a static one. Asks ldd(1).
pub(crate) fn of(program: &Path) -> Result<Vec<String>, Error> {
    let failed = |reason: String| Error::Libraries { path: program.into(), reason };
    let output = Command::new("ldd").arg(program).output().map_err(|error| failed(error.to_string()))?;
    let (text, complaint) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.success() {
        return parse(&text).map_err(failed);
    }
    let is_static = [&text, &complaint].iter().any(|said| said.contains("not a dynamic executable"));
    if is_static && program.is_file() { Ok(Vec::new()) } else { Err(failed(complaint.trim().to_owned())) }
}

/// Lines are `NAME => PATH (ADDRESS)`, `PATH (ADDRESS)` for the linker, `NAME (ADDRESS)` for what the kernel brings,
/// `statically linked`.
fn parse(text: &str) -> Result<Vec<String>, String> {
    let mut paths = Vec::new();
    for line in text.lines().map(str::trim) {
        if line.ends_with("not found") {
            return Err(line.to_owned());
        }
        let found = line.split_once("=> ").map_or(line, |(_, found)| found);
        let path = found.split_whitespace().next().unwrap_or_default();
        if path.starts_with('/') {
            paths.push(path.to_owned());
        }
    }
    Ok(paths)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_found_and_a_missing_library_is_told() {
        let text = "\tlinux-vdso.so.1 (0x1)\n\tlibm.so.6 => /lib/libm.so.6 (0x2)\n\t/lib64/ld.so.2 (0x3)\n";
        assert_eq!(parse(text).unwrap(), ["/lib/libm.so.6", "/lib64/ld.so.2"]);
        assert_eq!(parse("\tstatically linked\n").unwrap(), [""; 0]);
        assert_eq!(parse("\tlibx.so => not found\n").unwrap_err(), "libx.so => not found");
    }

    #[test]
    fn a_program_that_is_not_there_is_an_error() {
        assert!(matches!(of(Path::new("/no/such/program")), Err(Error::Libraries { .. })));
    }
}
