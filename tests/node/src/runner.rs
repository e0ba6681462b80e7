//! The cargo runner: the same test, here or in the node.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::ValueEnum;

use crate::cli::placed;
use crate::error::{Doing, Result};
use crate::report::Report;
use crate::run::{self, Placed, Request};

/// Where to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Place {
    /// Here if this machine virtualizes in hardware, else in the node.
    Auto,
    /// Here, whatever it is.
    Host,
    /// In the node, also if this machine could.
    Node,
}

/// Runs a test; its exit code.
pub(crate) fn run(mut request: Request, place: Place, report: &Report) -> Result<u8> {
    let here = match place {
        Place::Auto => {
            hardware(Path::new("/")).inspect(|what| report.say(&format!("this machine has {what}")))
        }
        Place::Host => Some("whatever it has".to_owned()),
        Place::Node => None,
    };
    if here.is_some() {
        report.say(&format!("running {} here", request.program.display()));
        let error = Command::new(&request.program).args(&request.args).exec();
        return Err(error).on("run", &request.program);
    }
    request.env.extend(env::vars_os().filter(|(name, _)| passes(name)));
    request.files.extend(assets());
    request.files.extend(listed_files()?);
    run::run(&request, report)
}

/// What makes this machine fit to run nested guests, if it is: the CPU's flag, its KVM module, an open `/dev/kvm`.
fn hardware(root: &Path) -> Option<String> {
    let cpu = fs::read_to_string(root.join("proc/cpuinfo")).ok()?;
    let flags = cpu.lines().find(|line| line.starts_with("flags"))?;
    let has = |flag| flags.split_ascii_whitespace().any(|word| word == flag);
    let (flag, module) =
        [("vmx", "kvm_intel"), ("svm", "kvm_amd")].into_iter().find(|(flag, _)| has(*flag))?;
    let kvm = root.join("dev/kvm");
    let usable = root.join("sys/module").join(module).exists()
        && fs::OpenOptions::new().read(true).write(true).open(kvm).is_ok();
    usable.then(|| format!("{flag} and {module}"))
}

fn passes(name: &OsStr) -> bool {
    let known = ["RUST_BACKTRACE", "RUST_LOG"];
    name.as_bytes().starts_with(b"NESTLING_") || known.iter().any(|k| name == *k)
}

/// The tree of `$NESTLING_ASSETS`, at the same path.
fn assets() -> Option<Placed> {
    let directory = PathBuf::from(env::var_os("NESTLING_ASSETS").filter(|v| !v.is_empty())?);
    Some(Placed { source: directory.clone(), inside: directory })
}

fn listed_files() -> Result<Vec<Placed>> {
    entries(&env::var_os("NESTLING_NODE_FILES").unwrap_or_default()).iter().map(|text| placed(text)).collect()
}

fn entries(list: &OsString) -> Vec<String> {
    list.to_string_lossy()
        .split([':', '\n'])
        .map(str::trim)
        .filter(|e| !e.is_empty())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(flags: &str, module: &str, kvm: bool) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for dir in ["proc", "dev"] {
            fs::create_dir(root.path().join(dir)).unwrap();
        }
        fs::create_dir_all(root.path().join("sys/module").join(module)).unwrap();
        fs::write(root.path().join("proc/cpuinfo"), format!("processor : 0\nflags\t\t: fpu {flags} sse\n"))
            .unwrap();
        if kvm {
            fs::write(root.path().join("dev/kvm"), "").unwrap();
        }
        root
    }

    #[test]
    fn only_hardware_virtualization_keeps_a_test_here() {
        let found = |flags, module, kvm| hardware(machine(flags, module, kvm).path());
        assert_eq!(found("vmx", "kvm_intel", true).as_deref(), Some("vmx and kvm_intel"));
        assert_eq!(found("svm", "kvm_amd", true).as_deref(), Some("svm and kvm_amd"));
        assert_eq!(found("vmx", "kvm_intel", false), None);
        assert_eq!(found("vmx", "kvm_pvm", true), None);
        assert_eq!(found("vmx_like", "kvm_pvm", true), None);
    }

    #[test]
    fn files_are_listed_by_colons_or_lines() {
        assert_eq!(entries(&"/a=/b:/c\n /d \n\n".into()), ["/a=/b", "/c", "/d"]);
    }
}
