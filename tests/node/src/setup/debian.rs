//! Debian's tools: installs what is missing, and says so before it does.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::unistd::geteuid;

use crate::error::{Doing, Error, Result};
use crate::report::Report;

/// Commands whose package has another name.
const PACKAGES: [(&str, &str); 1] = [("xz", "xz-utils")];

/// Makes sure that the commands exist: installs their packages if not.
pub(super) fn require(commands: &[&str], report: &Report) -> Result<()> {
    let missing: Vec<&str> =
        commands.iter().filter(|name| !exists(name)).map(|name| package_of(name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    report.say(&format!("installing Debian packages: {}", missing.join(" ")));
    fresh_lists(report)?;
    let mut install = as_root("apt-get");
    install.args(["install", "-qq", "-y", "--no-install-recommends"]).args(&missing);
    install.env("DEBIAN_FRONTEND", "noninteractive");
    run(&mut install, "apt-get install", "install the packages named above by hand, then try again")
}

/// Updates apt's package lists, once per process and at most once an hour: a list that is older may name versions
/// which the mirror no longer has.
pub(super) fn fresh_lists(report: &Report) -> Result<()> {
    const RECENT: u64 = 3600;
    static DONE: std::sync::Once = std::sync::Once::new();
    let recent = Path::new("/var/lib/apt/lists/partial")
        .metadata()
        .and_then(|about| about.modified())
        .is_ok_and(|time| time.elapsed().is_ok_and(|age| age.as_secs() < RECENT));
    if (recent && lists_name_the_kernel()) || DONE.is_completed() {
        return Ok(());
    }
    report.say("apt-get update");
    DONE.call_once(|| ());
    run(as_root("apt-get").args(["update", "-qq"]), "apt-get update", "see what apt says above")
}

fn lists_name_the_kernel() -> bool {
    let mut show = Command::new("apt-cache");
    show.args(["show", "--no-all-versions", "linux-image-cloud-amd64"]);
    show.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    show.status().is_ok_and(|status| status.success())
}

/// Runs a tool with its output on our standard error.
pub(super) fn run(command: &mut Command, tool: &str, mend: &'static str) -> Result<()> {
    let out = io::stderr().as_fd().try_clone_to_owned().doing("copy standard error")?;
    let status = command.stdin(Stdio::null()).stdout(out).status().doing(&format!("start {tool}"))?;
    if status.success() { Ok(()) } else { Err(Error::Tool { tool: tool.to_owned(), status, mend }) }
}

fn as_root(program: &str) -> Command {
    if geteuid().is_root() {
        return Command::new(program);
    }
    let mut sudo = Command::new("sudo");
    sudo.arg(program);
    sudo
}

fn package_of(command: &str) -> &str {
    PACKAGES.iter().find(|(name, _)| *name == command).map_or(command, |(_, package)| package)
}

fn exists(command: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(command).is_file())
}
