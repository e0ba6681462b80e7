//! Can a nested VM run on this node and in this pod? Checks that each end in a finding, and a verdict over them.
//!
//! "It doesn't work" has ten causes, one per layer: CPU, hypervisor, kernel module, device node, permission, device
//! cgroup, KVM API, guest mode, memory, confinement. Each check looks at one of them and says what it saw, what that
//! means for a VM, and the one command or manifest line that mends it. A check that cannot say anything because an
//! earlier layer already failed names that layer instead of adding a second alarm.
//!
//! | file | what is in it |
//! |---|---|
//! | `finding` | a finding: id, layer, severity, saw, means, fix |
//! | `report` | verdict, backend, exit code, the gate that `run` asks |
//! | `render` | the report as text and as JSON |
//! | `host` | everything a check may read, as a trait; `live`, `recorded` and `recorder` implement it |
//! | `cpu`, `platform`, `module`, `device`, `kvm_api`, `memory`, `devices`, `process` | the checks, in this order |
//! | `guest_mode` | a few instructions run in a real VM |
//!
//! Preflight never fails on a strange host: whatever cannot be read or parsed becomes a finding. It imports nothing
//! from the VMM.

mod cloud;
mod cpu;
mod cpuinfo;
mod device;
mod devices;
mod finding;
pub mod guest_mode;
mod host;
mod kvm_api;
mod live;
mod memory;
mod module;
mod parameters;
mod platform;
mod process;
mod recorded;
mod recorder;
mod render;
mod report;
mod text;

pub use finding::{CheckId, Finding, Layer, Severity};
pub use host::{CpuidLeaves, Device, DeviceNode, Host, Identity, KvmAnswers, NodeKind};
pub use live::LiveHost;
pub use recorded::{Answers, RecordedHost, TreeError};
pub use recorder::Recorder;
pub use render::{Style, to_json, to_text};
pub use report::{EXIT_PREFLIGHT_FAILED, Refusal, Report, Verdict, gate};

use finding::Findings;

/// One inspection of a host.
///
/// ```
/// use nestling::preflight::{LiveHost, Preflight, gate};
///
/// let report = Preflight::run(&LiveHost);
/// println!("{}", report.verdict().sentence);
/// if let Err(refusal) = gate(&report, false) {
///     eprintln!("nestling run: {refusal}");
/// }
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Preflight;

impl Preflight {
    /// The checks a run needs before it starts: CPU, module and `/dev/kvm`, without a test guest. About a millisecond.
    ///
    /// What is left out shows itself when the machine is built; [`Preflight::run`] then finds the words for it.
    #[must_use]
    pub fn quick(host: &dyn Host) -> Report {
        let mut findings = Findings::default();
        let cpu = cpu::check(host, &mut findings);
        let device = host.device(device::KVM);
        let module = module::check(host, &cpu, &device, &mut findings);
        // Whether the device opened is among the findings.
        let _ = device::check(host, &cpu, &module, &device, &mut findings);
        Report::judge(findings, &cpu, &module)
    }

    /// Runs every check on `host`, from the CPU upwards, and judges what was found.
    ///
    /// Takes a few milliseconds; a guest that hangs is given up after [`guest_mode::LIMIT`].
    #[must_use]
    pub fn run(host: &dyn Host) -> Report {
        let mut findings = Findings::default();
        let cpu = cpu::check(host, &mut findings);
        let device = host.device(device::KVM);
        let module = module::check(host, &cpu, &device, &mut findings);
        parameters::check(host, &cpu, &module, &mut findings);
        let opened = device::check(host, &cpu, &module, &device, &mut findings);
        kvm_api::check(host, opened, &mut findings);
        memory::check(host, &mut findings);
        devices::check(host, &mut findings);
        process::check(host, &mut findings);
        Report::judge(findings, &cpu, &module)
    }
}
