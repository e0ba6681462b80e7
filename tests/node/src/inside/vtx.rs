//! The proof that this machine has VT-x: what the CPU and `kvm_intel` say of themselves.

use std::fs;
use std::path::Path;

use nix::sys::utsname::uname;

use crate::error::{Doing, Error, Result};

const PARAMETERS: [&str; 3] = ["ept", "unrestricted_guest", "vpid"];

/// For example `Linux 6.1.0-56-cloud-amd64 vmx kvm_intel ept=Y unrestricted_guest=Y vpid=Y thp=madvise`.
pub(super) fn describe() -> Result<String> {
    let cpu = fs::read_to_string("/proc/cpuinfo").doing("read /proc/cpuinfo")?;
    if !cpu.lines().any(|line| line.starts_with("flags") && line.split_whitespace().any(|flag| flag == "vmx"))
    {
        return Err(Error::Unfit("the CPU has no vmx"));
    }
    if !Path::new("/dev/kvm").exists() {
        return Err(Error::Unfit("there is no /dev/kvm although its modules are loaded"));
    }
    let release = uname().doing("ask for the kernel's version")?.release().to_string_lossy().into_owned();
    let mut text = format!("Linux {release} vmx kvm_intel");
    for name in PARAMETERS {
        let path = format!("/sys/module/kvm_intel/parameters/{name}");
        let value = fs::read_to_string(&path).on("read", Path::new(&path))?;
        text += &format!(" {name}={}", value.trim());
    }
    let modes = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
    let chosen =
        modes.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map_or("unknown", |(mode, _)| mode);
    text += &format!(" thp={chosen}");
    Ok(text)
}
