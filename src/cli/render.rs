//! The status for people: one fact per line, labels on the left.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::status::model::{BalloonFacts, DeviceFacts, HostBackend, MemoryFacts, VcpuFacts};
use crate::status::plan::PlanSummary;
use crate::status::snapshot::{End, StageReached, Status};

/// Width of the labels.
const LABEL: usize = 9;

/// The whole page.
pub(super) fn status(status: &Status) -> String {
    let mut page = String::new();
    let age = status.uptime_ms.saturating_sub(status.since_ms);
    row(&mut page, "state", &format!("{} since {} ({})", status.state.name(), status.since, duration(age)));
    if let Some(end) = &status.end {
        end_rows(&mut page, end);
    }
    for warning in &status.warnings {
        row(&mut page, "warning", warning);
    }
    let process = format!("{}, up {}, nestling {}", status.pid, duration(status.uptime_ms), status.version);
    row(&mut page, "process", &process);
    if let Some(backend) = &status.backend {
        row(&mut page, "backend", &backend_text(backend));
    }
    row(&mut page, "plan", &plan_text(&status.plan));
    device_rows(&mut page, &status.plan);
    row(&mut page, "stages", &stages_text(&status.stages));
    row(&mut page, "memory", &memory_text(&status.machine.memory));
    if let Some(balloon) = &status.machine.memory.balloon {
        row(&mut page, "balloon", &balloon_text(balloon));
    }
    for vcpu in &status.machine.vcpus {
        row(&mut page, &format!("vCPU {}", vcpu.id), &vcpu_text(vcpu));
    }
    let exits = format!("{} to user space: {}", status.machine.exits_total, counts(&status.machine.exits));
    row(&mut page, "exits", &exits);
    devices(&mut page, &status.machine.devices);
    page
}

fn row(page: &mut String, label: &str, text: &str) {
    let _ = writeln!(page, "{label:LABEL$} {text}");
}

fn end_rows(page: &mut String, end: &End) {
    row(page, "ended", &format!("{}; exit code {} ({})", end.message, end.exit_code, end.exit_name));
    if let Some(exit) = &end.last_exit {
        row(page, "last exit", exit);
    }
    for line in &end.console_tail {
        row(page, "console", line);
    }
}

fn backend_text(backend: &HostBackend) -> String {
    let hardware = if backend.hardware_virtualization { "with" } else { "without" };
    let under = backend.hypervisor.as_ref().map(|name| format!(", under {name}")).unwrap_or_default();
    let HostBackend { kvm_module, cpu_vendor, .. } = backend;
    format!("{kvm_module} on {cpu_vendor} {hardware} hardware virtualization{under}")
}

fn plan_text(plan: &PlanSummary) -> String {
    let plural = if plan.cpus == 1 { "" } else { "s" };
    let mut text =
        format!("{} vCPU{plural}, {}, {}", plan.cpus, size(plan.memory_bytes), plan.kernel.display());
    if let Some(initrd) = &plan.initrd {
        let _ = write!(text, " + {}", initrd.display());
    }
    let _ = write!(text, ", {} console", plan.console);
    let others = [("balloon", plan.balloon), ("watchdog", plan.watchdog)];
    for (name, _) in others.iter().filter(|(_, is_there)| *is_there) {
        let _ = write!(text, ", {name}");
    }
    text
}

/// One row per device of the plan: what the guest knows it by, then what is at the other end.
fn device_rows(page: &mut String, plan: &PlanSummary) {
    let readonly = |readonly: bool| if readonly { ", read-only" } else { "" };
    for disk in &plan.disks {
        let parts = disk
            .partitions
            .iter()
            .map(|part| format!("{} {}{}", part.label, part.path.display(), readonly(part.readonly)));
        let what = match &disk.path {
            Some(path) => format!("{}{}", path.display(), readonly(disk.readonly)),
            None => format!("partitions {}", parts.collect::<Vec<_>>().join("; ")),
        };
        row(page, "disk", &format!("{}, serial {}: {what}", disk.name, disk.serial));
    }
    for (index, net) in plan.nets.iter().enumerate() {
        let tap = match (&net.tap, net.fd) {
            (Some(tap), _) => format!("tap {tap}"),
            (None, Some(fd)) => format!("the tap of descriptor {fd}"),
            (None, None) => "a tap of its own".to_owned(),
        };
        let plural = if net.queues == 1 { "" } else { "s" };
        row(page, "net", &format!("{index}, MAC {}: {tap}, {} queue pair{plural}", net.mac, net.queues));
    }
    for port in &plan.ports {
        row(page, "port", &format!("/dev/virtio-ports/{}: {}", port.name, port.path.display()));
    }
    for share in &plan.shares {
        let server = match (&share.dir, &share.socket) {
            (Some(dir), _) => dir.display().to_string(),
            (None, Some(socket)) => format!("the virtiofsd at {}", socket.display()),
            (None, None) => continue,
        };
        row(page, "share", &format!("tag {}: {server}{}", share.tag, readonly(share.readonly)));
    }
    if let Some(vsock) = &plan.vsock {
        let path = vsock.path.as_ref().map(|path| path.display().to_string());
        row(
            page,
            "vsock",
            &format!("cid {}: {}", vsock.cid, path.as_deref().unwrap_or("the node's AF_VSOCK")),
        );
    }
}

fn stages_text(stages: &[StageReached]) -> String {
    let reached: Vec<_> = stages
        .iter()
        .map(|reached| format!("{} at {}", reached.stage.name(), duration(reached.at.ms)))
        .collect();
    if reached.is_empty() { "none reached".to_owned() } else { reached.join(", ") }
}

fn memory_text(memory: &MemoryFacts) -> String {
    format!(
        "{}, the pod holds {} of it, {:.0} % in huge pages; Nestling itself {}",
        size(memory.size_bytes),
        size(memory.resident_bytes),
        memory.huge_share * 100.0,
        size(memory.overhead_bytes)
    )
}

/// The memory and the balloon alone: what `nestling memory` shows.
pub(super) fn memory(status: &Status) -> String {
    let (mut page, memory) = (String::new(), &status.machine.memory);
    row(&mut page, "memory", &memory_text(memory));
    let Some(balloon) = &memory.balloon else {
        row(&mut page, "balloon", "none");
        return page;
    };
    row(&mut page, "balloon", &balloon_text(balloon));
    let Some(guest) = &balloon.guest else {
        row(&mut page, "guest", silence(&status.machine.devices));
        return page;
    };
    row(&mut page, "guest", &format!("{} ago", duration(guest.age_ms)));
    for (name, value) in &guest.values {
        let text = if name.ends_with("_bytes") { size(*value) } else { value.to_string() };
        let name = name.trim_end_matches("_bytes").replace('_', " ");
        row(&mut page, "", &format!("{name} {text}"));
    }
    page
}

/// Why the guest tells nothing about its memory. Without a driver, a target changes nothing.
fn silence(devices: &[DeviceFacts]) -> &'static str {
    let driven = devices.iter().any(|device| device.kind == "virtio-balloon" && device.state == "active");
    if driven {
        "its driver has not said anything yet"
    } else {
        "has no driver for the balloon (in Linux: modprobe virtio_balloon), so that a target changes nothing yet"
    }
}

fn balloon_text(balloon: &BalloonFacts) -> String {
    format!(
        "{} for the guest, {} in the balloon; free memory handed back since the start: {} in all",
        size(balloon.target_bytes),
        size(balloon.balloon_bytes),
        size(balloon.reported_bytes)
    )
}

fn vcpu_text(vcpu: &VcpuFacts) -> String {
    let exits: u64 = vcpu.exits.values().sum();
    let all = vcpu.kvm_exits_total.map(|all| format!(" of {all} in all")).unwrap_or_default();
    let last = vcpu.last_exit.as_ref().map(|exit| format!(", the last: {exit}")).unwrap_or_default();
    format!("{}, {exits} exits to user space{all}{last}", vcpu.state)
}

fn devices(page: &mut String, devices: &[DeviceFacts]) {
    if devices.is_empty() {
        return;
    }
    let _ = writeln!(
        page,
        "\n{:12} {:16} {:12} {:>7} {:>7}  COUNTERS",
        "ADDRESS", "DEVICE", "STATE", "READS", "WRITES"
    );
    for device in devices {
        let DeviceFacts { kind, address, state, trapped_reads, trapped_writes, .. } = device;
        let line = format!("{address:12} {kind:16} {state:12} {trapped_reads:>7} {trapped_writes:>7}  ");
        let _ = writeln!(page, "{}", format!("{line}{}", device_detail(device)).trim_end());
    }
    page.push_str("\nREADS and WRITES are register accesses that left the guest for user space.\n");
}

fn device_detail(device: &DeviceFacts) -> String {
    let backend = device.backend.as_ref().map(|backend| format!("{backend}  ")).unwrap_or_default();
    let counters = device.counters.values().any(|count| *count > 0).then(|| counts(&device.counters));
    format!("{backend}{}", counters.unwrap_or_default()).trim_end().to_owned()
}

/// `io 120, mmio 3`, the largest first.
fn counts(counts: &BTreeMap<String, u64>) -> String {
    let mut pairs: Vec<_> = counts.iter().filter(|(_, count)| **count > 0).collect();
    pairs.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    let texts: Vec<_> = pairs.iter().map(|(name, count)| format!("{name} {count}")).collect();
    if texts.is_empty() { "none".to_owned() } else { texts.join(", ") }
}

/// `12 ms`, `3.4 s`, `5 min 6 s`, `2 h 3 min`.
fn duration(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{}.{} s", ms / 1000, ms / 100 % 10),
        60_000..3_600_000 => format!("{} min {} s", ms / 60_000, ms / 1000 % 60),
        _ => format!("{} h {} min", ms / 3_600_000, ms / 60_000 % 60),
    }
}

/// Mebibytes, with a tenth below ten.
fn size(bytes: u64) -> String {
    let tenths = u128::from(bytes) * 10 / (1 << 20);
    if tenths < 100 { format!("{}.{} MiB", tenths / 10, tenths % 10) } else { format!("{} MiB", tenths / 10) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_well() {
        for (ms, text) in [(7, "7 ms"), (1105, "1.1 s"), (61_000, "1 min 1 s"), (7_380_000, "2 h 3 min")] {
            assert_eq!(duration(ms), text);
        }
    }

    #[test]
    fn sizes_read_well() {
        for (bytes, text) in [(0, "0.0 MiB"), (4_300_000, "4.1 MiB"), (256 << 20, "256 MiB")] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn a_device_that_counted_nothing_has_an_empty_column() {
        let counters = BTreeMap::from([("interrupts".to_owned(), 0)]);
        let share = DeviceFacts { backend: Some("virtiofsd".into()), counters, ..DeviceFacts::default() };
        assert_eq!(device_detail(&share), "virtiofsd");
        assert_eq!(device_detail(&DeviceFacts::default()), "");
    }

    #[test]
    fn a_balloon_without_a_driver_is_told_from_one_that_says_nothing_yet() {
        let balloon = |state: &str| DeviceFacts {
            kind: "virtio-balloon".into(),
            state: state.into(),
            ..DeviceFacts::default()
        };
        assert!(silence(&[balloon("active")]).starts_with("its driver"));
        for devices in [vec![], vec![balloon("inactive")], vec![balloon("needs-reset")]] {
            assert!(silence(&devices).starts_with("has no driver"));
        }
    }

    #[test]
    fn every_device_of_the_plan_has_a_row_with_what_the_guest_knows_it_by() {
        use crate::spec::plan::{
            BalloonPlan, CmdlinePlan, ConsoleKind, DirectionPlan, DiskPlan, MachinePlan, NetPlan, PortPlan,
            RngPlan, SharePlan, ShareServer, TapPlan, VhostPlan, VsockHost, VsockPlan,
        };
        let net = |tap| NetPlan {
            tap,
            mac: [2, 0, 0, 0xaa, 0, 1],
            mtu: None,
            queues: 2,
            receive: DirectionPlan::default(),
            transmit: DirectionPlan::default(),
            vhost: VhostPlan::Off,
        };
        let plan = MachinePlan {
            cpus: 2,
            memory_bytes: 64 << 20,
            kernel: "k".into(),
            initrd: None,
            cmdline: CmdlinePlan::Append(String::new()),
            disks: vec![DiskPlan::image("/a".as_ref(), false), DiskPlan::image("/b".as_ref(), true)],
            ports: vec![PortPlan { name: "agent".into(), path: "/p".into() }],
            shares: vec![SharePlan { tag: "data".into(), server: ShareServer::Socket("/s".into()) }],
            vsock: Some(VsockPlan { cid: 7, host: VsockHost::Kernel }),
            agent: false,
            nets: vec![net(TapPlan::New), net(TapPlan::Named("t1".into()))],
            console: ConsoleKind::Virtio,
            watchdog: true,
            balloon: Some(BalloonPlan::default()),
            rng: RngPlan::default(),
        };
        let (summary, mut page) = (PlanSummary::from(&plan), String::new());
        device_rows(&mut page, &summary);
        assert_eq!(plan_text(&summary), "2 vCPUs, 64 MiB, k, virtio console, balloon, watchdog");
        let rows: Vec<_> =
            page.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(
            rows,
            [
                "disk vda, serial nestling-0: /a",
                "disk vdb, serial nestling-1: /b, read-only",
                "net 0, MAC 02:00:00:aa:00:01: a tap of its own, 2 queue pairs",
                "net 1, MAC 02:00:00:aa:00:01: tap t1, 2 queue pairs",
                "port /dev/virtio-ports/agent: /p",
                "share tag data: the virtiofsd at /s",
                "vsock cid 7: the node's AF_VSOCK",
            ]
        );
        let json = serde_json::to_string(&summary).expect("JSON");
        assert_eq!(serde_json::from_str::<PlanSummary>(&json).expect("reads"), summary);
    }

    #[test]
    fn counts_are_sorted_by_number() {
        let map = BTreeMap::from([("hlt".to_owned(), 1), ("io".to_owned(), 9), ("mmio".to_owned(), 0)]);
        assert_eq!(counts(&map), "io 9, hlt 1");
    }
}
