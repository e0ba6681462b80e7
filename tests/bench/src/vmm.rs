//! The VMMs that are compared, each started as a fair user of it would.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::Result;

/// Guest RAM of the payload guest in MiB.
pub(crate) const GUEST_MIB: u64 = 128;
/// QEMU's machine without what the guest does not use. The CPU lacks one feature that not every KVM can set.
const MICROVM: &str = "microvm,x-option-roms=off,pit=off,pic=off,rtc=off,auto-kernel-cmdline=off";
const CPU: &str = "host,-arch-capabilities";

/// A VMM and the program it is.
#[derive(Debug, Clone)]
pub(crate) struct Vmm {
    kind: Kind,
    program: PathBuf,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Nestling,
    Qemu,
}

impl Vmm {
    pub(crate) fn nestling(program: &Path) -> Self {
        Self { kind: Kind::Nestling, program: program.to_owned() }
    }

    pub(crate) fn qemu(program: &Path) -> Self {
        Self { kind: Kind::Qemu, program: program.to_owned() }
    }

    /// Its name and version.
    pub(crate) fn title(&self) -> Result<String> {
        let output = Command::new(&self.program).arg("--version").stdin(Stdio::null()).output();
        let output = output.map_err(|error| format!("{} cannot be run: {error}", self.program.display()))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let version = text.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()));
        let name = match self.kind {
            Kind::Nestling => "nestling",
            Kind::Qemu => "QEMU -M microvm",
        };
        Ok(format!("{name} {}", version.unwrap_or("(version unknown)")))
    }

    /// Runs `kernel` with one vCPU, its UART on stdout.
    pub(crate) fn run(&self, kernel: &Path, scratch: &Path) -> Command {
        let mut command = Command::new(&self.program);
        let mib = GUEST_MIB.to_string();
        match self.kind {
            Kind::Nestling => {
                let socket = scratch.join("nestling.sock");
                command.args(["run", "--allow-backend", "any", "--console", "serial"]);
                command.args(["--memory", &format!("{mib}M")]);
                command.args([OsStr::new("--socket"), socket.as_os_str()]);
            }
            Kind::Qemu => {
                command.args(["-M", MICROVM, "-accel", "kvm", "-cpu", CPU, "-smp", "1", "-m", &mib]);
                command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
                command.args(["-serial", "stdio"]);
            }
        }
        let option = match self.kind {
            Kind::Nestling => "--kernel",
            Kind::Qemu => "-kernel",
        };
        command.arg(option).arg(kernel).stdin(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// Bytes on disk that it needs to run: the program, and the shared libraries it loads.
    pub(crate) fn disk_bytes(&self) -> Result<(u64, usize)> {
        let mut files = vec![self.program.clone()];
        // A static program has no libraries, and ldd says so by failing.
        let listed = Command::new("ldd").arg(&self.program).stderr(Stdio::null()).output();
        let listed = listed.map(|output| output.stdout).unwrap_or_default();
        let text = String::from_utf8_lossy(&listed).into_owned();
        files.extend(text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from));
        files.dedup();
        let mut bytes = 0;
        for file in &files {
            bytes += std::fs::metadata(file).map_err(|error| format!("{}: {error}", file.display()))?.len();
        }
        Ok((bytes, files.len()))
    }
}
