//! This process: which container it is in, which cgroups limit it, and what it may ask of the kernel.

use super::finding::{CheckId, Finding, Findings, Layer};
use super::host::Host;
use super::memory::field;
use super::text::printable;

const CGROUP: &str = "/proc/self/cgroup";
const STATUS: &str = "/proc/self/status";

/// The capabilities that later features ask for, with their bit (include/uapi/linux/capability.h).
const CAPABILITIES: [(&str, u32); 5] =
    [("DAC_OVERRIDE", 1), ("NET_ADMIN", 12), ("SYS_ADMIN", 21), ("SYS_RESOURCE", 24), ("MKNOD", 27)];

/// Tells what surrounds this process.
pub(super) fn check(host: &dyn Host, findings: &mut Findings) {
    let cgroup =
        host.read(CGROUP).map(|content| String::from_utf8_lossy(&content).into_owned()).unwrap_or_default();
    let status =
        host.read(STATUS).map(|content| String::from_utf8_lossy(&content).into_owned()).unwrap_or_default();
    findings.add(cgroup_kind(&cgroup));
    findings.add(container(host, &cgroup));
    findings.add(seccomp(&status));
    findings.add(capabilities(&status));
}

/// cgroups(7): version 2 is the line `0::`, version 1 has one numbered line per hierarchy.
fn cgroup_kind(cgroup: &str) -> Finding {
    let id = CheckId::CgroupKind;
    let v2 = cgroup.lines().any(|line| line.starts_with("0::"));
    let v1 = cgroup.lines().filter(|line| line.split(':').count() >= 3 && !line.starts_with("0::")).count();
    let finding = |kind: &str| Finding::info(id, Layer::Container, format!("{kind} ({CGROUP})"));
    match (v1, v2) {
        (0, true) => finding("v2"),
        (0, false) => finding("unknown").means("the pod's memory and CPU limits cannot be found out"),
        (_, true) => finding("hybrid").means("limits are read from the v1 controllers"),
        (_, false) => finding("v1"),
    }
}

fn container(host: &dyn Host, cgroup: &str) -> Finding {
    let id = CheckId::Container;
    let version = host.read("/proc/version").unwrap_or_default();
    let version = String::from_utf8_lossy(&version);
    // The fixed kernel version that gVisor presents (pkg/sentry/syscalls/linux).
    if version.contains("gVisor")
        || version.starts_with("Linux version 4.4.0 #1 SMP Sun Jan 10 15:06:54 PST 2016")
    {
        return Finding::warning(
            id,
            Layer::Container,
            format!("gVisor (/proc/version: {})", printable(&version)),
        )
        .means("this container talks to gVisor instead of the node's kernel, which has no KVM for it")
        .fix("remove `runtimeClassName: gvisor` from the pod");
    }
    let there = |path: &str| host.read(path).is_ok();
    let mut signs = Vec::new();
    if host.has_env("KUBERNETES_SERVICE_HOST") {
        signs.push("KUBERNETES_SERVICE_HOST is set");
    }
    if cgroup.contains("kubepods") {
        signs.push("cgroup path contains kubepods");
    }
    let pod = !signs.is_empty();
    if there("/.dockerenv") {
        signs.push("/.dockerenv");
    }
    if there("/run/.containerenv") {
        signs.push("/run/.containerenv");
    }
    let kind = match (pod, signs.is_empty()) {
        (true, _) => "a Kubernetes pod",
        (false, false) => "a container",
        (false, true) => return Finding::info(id, Layer::Container, "no sign of a container"),
    };
    Finding::info(id, Layer::Container, format!("{kind} ({})", signs.join("; ")))
}

/// proc(5): Seccomp is 0 (off), 1 (strict) or 2 (filter).
fn seccomp(status: &str) -> Finding {
    let id = CheckId::Seccomp;
    let value = |key| field(status, key).unwrap_or_else(|| "?".to_owned());
    let (mode, no_new_privileges) = (value("Seccomp"), value("NoNewPrivs"));
    let finding = Finding::info(
        id,
        Layer::Confinement,
        format!("{STATUS}: Seccomp: {mode}, NoNewPrivs: {no_new_privileges}"),
    );
    match mode.as_str() {
        "0" => finding.means("no system call filter, as in a privileged container"),
        "2" => finding.means(
            "a system call filter is on; KVM's own ioctls were tried above, tap and mount \
            may still be refused",
        ),
        _ => finding,
    }
}

fn capabilities(status: &str) -> Finding {
    let id = CheckId::Capabilities;
    let text = field(status, "CapEff").unwrap_or_else(|| "?".to_owned());
    let saw = format!("{STATUS}: CapEff: {text}");
    let Ok(effective) = u64::from_str_radix(&text, 16) else {
        return Finding::info(id, Layer::Confinement, saw);
    };
    let names = |wanted: bool| {
        let matching = CAPABILITIES.iter().filter(|(_, bit)| (effective >> bit & 1 == 1) == wanted);
        let names: Vec<&str> = matching.map(|(name, _)| *name).collect();
        if names.is_empty() { "none".to_owned() } else { names.join(", ") }
    };
    Finding::info(id, Layer::Confinement, saw).means(format!(
        "of those that matter, has: {}; lacks: {}",
        names(true),
        names(false)
    ))
}
