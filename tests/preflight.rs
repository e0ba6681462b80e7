//! Preflight on recorded machines, on this one, and on nonsense.

#![allow(clippy::expect_used, reason = "helpers of tests are tests, too")]

use std::collections::BTreeMap;
use std::path::PathBuf;

use nestling::preflight::guest_mode::GuestMode;
use nestling::preflight::{
    Answers, CheckId, CpuidLeaves, Device, DeviceNode, EXIT_PREFLIGHT_FAILED, Host, Identity, KvmAnswers,
    Layer, LiveHost, NodeKind, Preflight, RecordedHost, Recorder, Report, Severity, Style, gate, to_json,
    to_text,
};
use nix::errno::Errno;
use proptest::prelude::*;

fn trees() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/preflight")
}

fn load(tree: &str) -> RecordedHost {
    RecordedHost::load(trees().join(tree)).expect("a readable tree")
}

fn report(tree: &str) -> Report {
    Preflight::run(&load(tree))
}

/// The good node with one answer changed.
fn changed(change: impl FnOnce(&mut Answers)) -> Report {
    let mut answers = load("gke-good").answers().clone();
    change(&mut answers);
    Preflight::run(&RecordedHost::new(trees().join("gke-good"), answers))
}

fn with_guest_mode(outcome: GuestMode) -> Report {
    changed(|answers| answers.kvm.as_mut().expect("the good node has KVM").guest_mode = outcome)
}

fn ids(report: &Report, severity: Severity) -> Vec<&'static str> {
    report.findings().iter().filter(|f| f.severity == severity).map(|f| f.id.as_str()).collect()
}

fn fix(report: &Report, id: CheckId) -> String {
    report.finding(id).and_then(|finding| finding.fix.clone()).unwrap_or_default()
}

fn means(report: &Report, id: CheckId) -> String {
    report.finding(id).and_then(|finding| finding.means.clone()).unwrap_or_default()
}

/// What must be true of any report on any machine.
fn check_shape(report: &Report) {
    let text = to_text(report, Style::default());
    assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "control characters in {text:?}");
    assert!(text.starts_with("preflight: "), "{text}");
    assert!(text.lines().all(|line| line.chars().count() < 1200), "an endless line in {text}");
    let json: serde_json::Value = serde_json::from_str(&to_json(report)).expect("JSON");
    assert_eq!(json["schema"], 1);
    for finding in report.findings() {
        let loud = finding.severity >= Severity::Warning;
        assert!(!loud || (finding.means.is_some() && finding.fix.is_some()), "{finding:?}");
        assert!(!loud || finding.follows_from.is_none(), "a consequence must not shout: {finding:?}");
        assert!(!finding.saw.is_empty(), "{finding:?}");
    }
    let verdict = report.verdict();
    assert_eq!(verdict.can_run, verdict.decided_by.is_none());
    assert_eq!(report.exit_code(), if verdict.can_run { 0 } else { EXIT_PREFLIGHT_FAILED });
    assert_eq!(gate(report, false).is_ok(), verdict.can_run);
    assert_eq!(gate(report, true).is_ok(), verdict.device_works);
    assert!(!verdict.can_run || verdict.device_works);
}

/// Tree, deciding layer (none: it can run), every error, every warning.
type Row = (&'static str, Option<Layer>, &'static [&'static str], &'static [&'static str]);

const MACHINES: &[Row] = &[
    ("gke-good", None, &[], &[]),
    ("amd-bare-metal", None, &[], &[]),
    ("kvm-intel-bare", None, &[], &[]),
    ("ept-off", None, &[], &["kvm-ept", "kvm-unrestricted-guest"]),
    ("vmx-cpuinfo-only", None, &[], &["cpu-flags-agree"]),
    ("strange-proc", None, &[], &["cpu-info"]),
    ("pvm-backend", Some(Layer::Cpu), &["cpu-vmx"], &[]),
    ("vmx-masked-gke", Some(Layer::Cpu), &["cpu-vmx"], &[]),
    ("gce-n2d", Some(Layer::Cpu), &["cpu-vmx"], &[]),
    ("vmx-cpuid-only", Some(Layer::Cpu), &["cpu-vmx"], &["cpu-flags-agree"]),
    ("gvisor", Some(Layer::Cpu), &["cpu-vmx"], &["memory-thp", "container"]),
    ("nothing-mounted", Some(Layer::Cpu), &["cpu-vmx"], &["cpu-info", "memory-thp"]),
    ("module-missing", Some(Layer::Module), &["kvm-module"], &[]),
    ("bios-disabled", Some(Layer::Module), &["kvm-module"], &[]),
    ("gke-plain-pod", Some(Layer::DeviceNode), &["kvm-device"], &[]),
    ("kvm-directory", Some(Layer::DeviceNode), &["kvm-device"], &[]),
    ("kvm-eacces", Some(Layer::Permission), &["kvm-open"], &[]),
    ("kvm-eperm-cgroup", Some(Layer::Cgroup), &["kvm-open"], &[]),
];

#[test]
fn each_machine_is_judged_by_its_own_layer() {
    for (tree, layer, errors, warnings) in MACHINES {
        let report = report(tree);
        check_shape(&report);
        assert_eq!(report.verdict().layer, *layer, "{tree}: {}", report.verdict().sentence);
        assert_eq!(ids(&report, Severity::Error), *errors, "{tree}");
        assert_eq!(ids(&report, Severity::Warning), *warnings, "{tree}");
    }
}

#[test]
fn every_tree_has_a_row() {
    let mut on_disk: Vec<String> = std::fs::read_dir(trees())
        .expect("the fixtures")
        .filter_map(|entry| entry.ok().filter(|entry| entry.path().is_dir())?.file_name().into_string().ok())
        .collect();
    on_disk.sort();
    let mut tested: Vec<&str> = MACHINES.iter().map(|row| row.0).collect();
    tested.sort_unstable();
    assert_eq!(on_disk, tested);
}

#[test]
fn the_fix_fits_the_cause() {
    let words: &[(&str, CheckId, &str)] = &[
        ("vmx-masked-gke", CheckId::CpuVmx, "--enable-nested-virtualization"),
        ("vmx-masked-gke", CheckId::CpuVmx, "nodeSelector: {nested-virtualization: enabled}"),
        ("gce-n2d", CheckId::CpuVmx, "N2D"),
        ("gke-plain-pod", CheckId::KvmDevice, "privileged: true"),
        ("kvm-eacces", CheckId::KvmOpen, "supplementalGroups: [109]"),
        ("kvm-eperm-cgroup", CheckId::KvmOpen, "privileged: true"),
        ("kvm-directory", CheckId::KvmDevice, "type: CharDevice"),
        ("module-missing", CheckId::KvmModule, "modprobe kvm_intel"),
        ("bios-disabled", CheckId::KvmModule, "firmware"),
        ("vmx-cpuid-only", CheckId::CpuVmx, "firmware"),
        ("ept-off", CheckId::KvmEpt, "modprobe kvm_intel ept=1"),
        ("gvisor", CheckId::Container, "runtimeClassName: gvisor"),
    ];
    for (tree, id, expected) in words {
        let fix = fix(&report(tree), *id);
        assert!(fix.contains(expected), "{tree}, {id}: {fix}");
    }
}

#[test]
fn what_follows_from_a_missing_module_names_it() {
    let report = report("module-missing");
    for id in [CheckId::KvmDevice, CheckId::KvmOpen, CheckId::KvmApiVersion, CheckId::KvmGuestMode] {
        let finding = report.finding(id).expect("told all the same");
        assert_eq!(
            (finding.severity, finding.follows_from),
            (Severity::Info, Some(CheckId::KvmModule)),
            "{id}"
        );
    }
}

#[test]
fn a_kvm_without_hardware_is_refused_unless_it_is_meant() {
    let report = report("pvm-backend");
    let backend = report.backend();
    assert_eq!(backend.kvm_module, "kvm_pvm");
    assert_eq!(backend.cpu_vendor, "AuthenticAMD");
    assert_eq!(backend.hypervisor.as_deref(), Some("KVM"));
    assert!(!backend.hardware_virtualization);
    let refusal = gate(&report, false).expect_err("no hardware virtualization").to_string();
    assert!(refusal.contains("cpu-vmx") && refusal.contains("--allow-backend any"), "{refusal}");
    assert_eq!(gate(&report, true), Ok(()));
}

#[test]
fn allowing_any_backend_does_not_help_where_the_device_fails() {
    let refusal = gate(&report("gce-n2d"), true).expect_err("there is no /dev/kvm");
    assert_eq!(refusal.finding.id, CheckId::KvmDevice);
    assert!(!refusal.to_string().contains("--allow-backend"), "{refusal}");
}

#[test]
fn another_backend_beside_vmx_is_a_module_problem() {
    let report = changed(|answers| {
        answers.listings.insert("/sys/module".to_owned(), vec!["kvm".to_owned(), "kvm_pvm".to_owned()]);
    });
    assert_eq!(report.verdict().layer, Some(Layer::Module));
    assert!(fix(&report, CheckId::KvmModule).contains("modprobe kvm_intel"));
    assert_eq!(gate(&report, true), Ok(()));
}

#[test]
fn permission_bits_that_allow_point_above_themselves() {
    let report = changed(|answers| {
        let node = DeviceNode { kind: NodeKind::Char, major: 10, minor: 232, mode: 0o666, uid: 0, gid: 109 };
        answers.devices.insert("/dev/kvm".to_owned(), Device::Refused { node, errno: libc::EACCES });
    });
    assert_eq!(report.verdict().layer, Some(Layer::Permission));
    assert!(means(&report, CheckId::KvmOpen).contains("SELinux"));
}

#[test]
fn each_open_error_has_its_own_layer() {
    let layers = [
        (libc::EACCES, Layer::Permission),
        (libc::EPERM, Layer::Cgroup),
        (libc::ENODEV, Layer::Module),
        (libc::ENXIO, Layer::Module),
        (libc::EBUSY, Layer::DeviceNode),
        (libc::EIO, Layer::DeviceNode),
    ];
    for (errno, layer) in layers {
        let report = changed(|answers| {
            let node =
                DeviceNode { kind: NodeKind::Char, major: 10, minor: 232, mode: 0o600, uid: 7, gid: 7 };
            answers.devices.insert("/dev/kvm".to_owned(), Device::Refused { node, errno });
            answers.identity = Identity { uid: 1000, gid: 1000, groups: Vec::new() };
        });
        check_shape(&report);
        assert_eq!(report.verdict().layer, Some(layer), "{}", report.verdict().sentence);
    }
}

#[test]
fn a_device_with_another_number_is_not_kvm() {
    let report = changed(|answers| {
        let node = DeviceNode { kind: NodeKind::Char, major: 1, minor: 3, mode: 0o666, uid: 0, gid: 0 };
        answers.devices.insert("/dev/kvm".to_owned(), Device::Opened { node });
    });
    assert_eq!(report.verdict().decided_by, Some(CheckId::KvmDevice));
}

#[test]
fn missing_capabilities_are_named() {
    let report = changed(|answers| {
        let capabilities = &mut answers.kvm.as_mut().expect("KVM").capabilities;
        capabilities.remove("IRQFD");
        capabilities.insert("IOEVENTFD".to_owned(), 0);
    });
    assert_eq!(report.verdict().layer, Some(Layer::KvmApi));
    assert!(report.verdict().sentence.contains("IRQFD, IOEVENTFD"), "{}", report.verdict().sentence);
}

#[test]
fn a_capability_that_is_only_useful_is_a_warning() {
    let report = changed(|answers| {
        answers.kvm.as_mut().expect("KVM").capabilities.remove("READONLY_MEM");
    });
    assert!(report.verdict().can_run);
    assert!(report.verdict().sentence.contains("1 warning"), "{}", report.verdict().sentence);
    assert!(means(&report, CheckId::KvmCapabilities).contains("READONLY_MEM"));
}

#[test]
fn another_api_version_ends_the_questions() {
    let report = changed(|answers| answers.kvm.as_mut().expect("KVM").api_version = 11);
    assert_eq!(report.verdict().decided_by, Some(CheckId::KvmApiVersion));
    assert_eq!(
        report.finding(CheckId::KvmGuestMode).and_then(|f| f.follows_from),
        Some(CheckId::KvmApiVersion)
    );
}

#[test]
fn each_way_guest_mode_fails_is_explained() {
    let outcomes = [
        (GuestMode::WrongValue { value: 1, expected: 2 }, "0x1 instead of 0x2"),
        (
            GuestMode::CallFailed { call: "KVM_CREATE_VM".to_owned(), errno: libc::EBUSY },
            "KVM_CREATE_VM: EBUSY",
        ),
        (GuestMode::CallFailed { call: "KVM_CREATE_VM".to_owned(), errno: libc::ENOMEM }, "ENOMEM"),
        (GuestMode::EntryRefused { reason: 0x8000_0021 }, "KVM_EXIT_FAIL_ENTRY, hardware reason 0x80000021"),
        (GuestMode::InternalError { suberror: 1 }, "KVM_EXIT_INTERNAL_ERROR, suberror 1"),
        (GuestMode::UnexpectedExit { exit: "Shutdown".to_owned() }, "Shutdown"),
        (GuestMode::Hung { seconds: 10 }, "within 10 s"),
    ];
    for (outcome, words) in outcomes {
        let report = with_guest_mode(outcome);
        check_shape(&report);
        assert_eq!(report.verdict().layer, Some(Layer::GuestMode));
        assert!(report.verdict().sentence.contains(words), "{}", report.verdict().sentence);
    }
}

#[test]
fn an_odd_cpu_is_pointed_out() {
    let report = changed(|answers| {
        answers.cpuid[2].insert(1, [0; 4]);
    });
    assert!(report.verdict().can_run);
    assert!(report.finding(CheckId::CpuUniform).is_some_and(|f| f.saw.contains("CPU 2")));
}

#[test]
fn text_has_a_line_per_finding_and_colour_on_request() {
    let report = report("module-missing");
    let plain = to_text(&report, Style::default());
    assert!(
        plain.starts_with("preflight: no: a nested VM cannot run here, the module layer fails: "),
        "{plain}"
    );
    assert!(plain.contains("\nFAIL  kvm-module "), "{plain}");
    assert!(plain.contains("\nskip  kvm-guest-mode "), "{plain}");
    assert!(plain.contains("fix:   on the node"), "{plain}");
    assert!(to_text(&report, Style { colour: true }).contains("\x1b[31mFAIL\x1b[0m"));
}

#[test]
fn json_names_are_stable() {
    let json: serde_json::Value = serde_json::from_str(&to_json(&report("kvm-eperm-cgroup"))).expect("JSON");
    assert_eq!(json["verdict"]["can_run"], false);
    assert_eq!(json["verdict"]["layer"], "cgroup");
    assert_eq!(json["verdict"]["decided_by"], "kvm-open");
    assert_eq!(json["backend"]["kvm_module"], "kvm_intel");
    let findings = json["findings"].as_array().expect("a list");
    let open = findings.iter().find(|f| f["id"] == "kvm-open").expect("kvm-open");
    for key in ["id", "layer", "severity", "saw", "means", "fix", "follows_from"] {
        assert!(open.get(key).is_some(), "{key}");
    }
    assert_eq!(open["severity"], "error");
}

#[test]
fn docs_list_every_finding_and_no_other() {
    let docs = include_str!("../docs/preflight.md");
    let (_, section) = docs.split_once("## Findings").expect("a section of findings");
    let documented: Vec<&str> = section
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once("` |"))
        .map(|(id, _)| id)
        .collect();
    let emitted: Vec<&str> = CheckId::ALL.iter().map(|id| id.as_str()).collect();
    assert_eq!(documented, emitted, "docs/preflight.md lists the findings in the order of the checks");
}

#[test]
fn this_machine_recorded_and_played_back_gives_the_same_report() {
    let recorder = Recorder::new(&LiveHost);
    let live = Preflight::run(&recorder);
    check_shape(&live);
    let dir = tempfile::tempdir().expect("a directory");
    recorder.write(dir.path(), "this machine").expect("written");
    let played_back = Preflight::run(&RecordedHost::load(dir.path()).expect("loaded"));
    assert_eq!(to_json(&played_back), to_json(&live));
}

/// A machine made of arbitrary answers.
#[derive(Debug)]
struct Nonsense {
    files: BTreeMap<&'static str, Vec<u8>>,
    modules: Option<Vec<String>>,
    device: Device,
    cpuid: Vec<CpuidLeaves>,
    kvm: KvmAnswers,
}

impl Host for Nonsense {
    fn read(&self, path: &str) -> Result<Vec<u8>, Errno> {
        self.files.get(path).cloned().ok_or(Errno::EACCES)
    }
    fn list(&self, _: &str, _: &str) -> Result<Vec<String>, Errno> {
        self.modules.clone().ok_or(Errno::ENOENT)
    }
    fn device(&self, _: &str) -> Device {
        self.device.clone()
    }
    fn cpuid(&self) -> Vec<CpuidLeaves> {
        self.cpuid.clone()
    }
    fn identity(&self) -> Identity {
        Identity::default()
    }
    fn has_env(&self, _: &str) -> bool {
        false
    }
    fn kvm(&self) -> KvmAnswers {
        self.kvm.clone()
    }
}

const READ: [&str; 16] = [
    "/proc/cpuinfo",
    "/proc/misc",
    "/proc/meminfo",
    "/proc/self/status",
    "/proc/self/cgroup",
    "/proc/version",
    "/proc/sys/vm/overcommit_memory",
    "/sys/class/dmi/id/sys_vendor",
    "/sys/class/dmi/id/product_name",
    "/sys/kernel/mm/transparent_hugepage/enabled",
    "/sys/kernel/mm/transparent_hugepage/defrag",
    "/sys/kernel/mm/transparent_hugepage/shmem_enabled",
    "/sys/module/kvm_intel/parameters/ept",
    "/sys/module/kvm/parameters/ignore_msrs",
    "/sys/module/kvm/parameters/halt_poll_ns",
    "/run/.containerenv",
];

fn content() -> impl Strategy<Value = Vec<u8>> {
    let almost_right = "(processor|flags|vmx flags|Seccomp|CapEff|0:|232 kvm|\\[)?[\t :]{0,3}(vmx|svm|[0-9a-fxYN]{1,20}|kubepods|.{0,20})\\]?\n";
    prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..600),
        proptest::collection::vec(almost_right, 0..12).prop_map(|lines| lines.concat().into_bytes()),
        any::<u8>().prop_map(|byte| vec![byte; 100_000]),
    ]
}

fn device() -> impl Strategy<Value = Device> {
    let kind = prop_oneof![Just(NodeKind::Char), Just(NodeKind::Directory), Just(NodeKind::Other)];
    let number = prop_oneof![Just((10, 232)), any::<(u64, u64)>()];
    (kind, number, any::<(u32, u32, u32)>(), 0..200_i32, 0..3_u8).prop_map(
        |(kind, (major, minor), (mode, uid, gid), errno, state)| {
            let node = DeviceNode { kind, major, minor, mode, uid, gid };
            match state {
                0 => Device::Absent { errno },
                1 => Device::Refused { node, errno },
                _ => Device::Opened { node },
            }
        },
    )
}

fn nonsense() -> impl Strategy<Value = Nonsense> {
    let files =
        proptest::collection::btree_map(proptest::sample::select(&READ[..]), content(), 0..READ.len());
    let modules = proptest::option::of(proptest::collection::vec("kvm(_intel|_amd|_pvm|.{0,9})?", 0..4));
    let leaf = (proptest::sample::select(&CpuidLeaves::WANTED[..]), any::<[u32; 4]>());
    let cpuid = proptest::collection::vec(proptest::collection::vec(leaf, 0..6), 0..3).prop_map(|cpus| {
        let fill = |leaves: Vec<(u32, [u32; 4])>| {
            let mut cpu = CpuidLeaves::default();
            leaves.into_iter().for_each(|(leaf, registers)| cpu.insert(leaf, registers));
            cpu
        };
        cpus.into_iter().map(fill).collect::<Vec<_>>()
    });
    let kvm = (prop_oneof![Just(12), any::<i32>()], ".{0,300}", any::<i32>()).prop_map(
        |(api_version, call, errno)| {
            let capabilities = BTreeMap::from([("IRQCHIP".to_owned(), errno)]);
            KvmAnswers { api_version, capabilities, guest_mode: GuestMode::CallFailed { call, errno } }
        },
    );
    (files, modules, device(), cpuid, kvm).prop_map(|(files, modules, device, cpuid, kvm)| Nonsense {
        files,
        modules,
        device,
        cpuid,
        kvm,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_machine_is_too_strange(machine in nonsense()) {
        check_shape(&Preflight::run(&machine));
    }
}
