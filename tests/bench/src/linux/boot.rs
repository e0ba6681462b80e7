//! A boot from exec to power-off that nobody disturbs.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use serde_json::Value;

use super::{GUEST_MIB, Guest};
use crate::Result;

/// What one boot cost.
#[derive(Debug)]
pub(super) struct Boot {
    /// Exits to user space by reason.
    pub(super) exits: BTreeMap<String, u64>,
    /// All VM exits, those included that KVM handled itself.
    pub(super) kvm_exits: u64,
    /// Milliseconds from exec to each stage.
    stages: BTreeMap<String, f64>,
    /// Milliseconds from exec to the end of the process.
    pub(super) end_ms: f64,
}

impl Boot {
    /// Boots a guest that powers off at once.
    pub(super) fn measure(guest: &Guest<'_>) -> Result<Self> {
        let status_file = guest.scratch.join("status.json");
        let mut command = guest.command(&["--status-file", &status_file.display().to_string()], "true");
        let begin = Instant::now();
        let output = command.stdin(Stdio::null()).output()?;
        let end_ms = begin.elapsed().as_secs_f64() * 1e3;
        if !output.status.success() {
            let log = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(format!("{}: {}\n{log}", guest.title(), output.status).into());
        }
        Self::read(&status_file, end_ms)
    }

    fn read(status_file: &Path, end_ms: f64) -> Result<Self> {
        let status: Value = serde_json::from_slice(&std::fs::read(status_file)?)?;
        let number = |value: &Value| value.as_u64().unwrap_or(0);
        let exits = status["exits"].as_object().ok_or("a status without exits")?;
        let stages = status["stages"].as_array().into_iter().flatten();
        let vcpus = status["vcpus"].as_array().into_iter().flatten();
        let stage = |one: &Value| Some((one["stage"].as_str()?.to_owned(), one["ms"].as_f64()?));
        Ok(Self {
            exits: exits.iter().map(|(reason, count)| (reason.clone(), number(count))).collect(),
            kvm_exits: vcpus.map(|vcpu| number(&vcpu["kvm_exits_total"])).sum(),
            stages: stages.filter_map(stage).collect(),
            end_ms,
        })
    }

    /// Milliseconds from exec to a stage; not a number if it was never reached.
    pub(super) fn stage(&self, name: &str) -> f64 {
        self.stages.get(name).copied().unwrap_or(f64::NAN)
    }
}

impl Guest<'_> {
    /// `nestling run` with a script as the guest's workload.
    pub(super) fn command(&self, arguments: &[&str], script: &str) -> Command {
        let mut command = Command::new(self.nestling);
        command.arg("run").arg("--kernel").arg(self.directory.join("vmlinux"));
        command.arg("--initrd").arg(self.directory.join("initramfs.cpio"));
        command.args(["--memory", &format!("{GUEST_MIB}M"), "--console", self.console]);
        command.arg("--socket").arg(self.socket()).args(arguments);
        command.args(["--", "/bin/sh", "-c", script]);
        command
    }
}
