//! The findings together: a verdict, an exit code, and an answer for `run`.

use std::fmt;

use serde::Serialize;

use super::cpu::CpuFacts;
use super::finding::{CheckId, Finding, Findings, Layer, Severity};
use super::module::ModuleFacts;
use crate::status::model::HostBackend;

/// The exit code of `nestling preflight`, and of `nestling run`, when a nested VM cannot run here.
pub const EXIT_PREFLIGHT_FAILED: u8 = 200;

/// The layout of the JSON form; grows when a field is renamed or removed, not when one is added.
const SCHEMA: u32 = 1;

/// The chain that ends in a running guest, whatever the backend.
const DEVICE_CHAIN: [CheckId; 5] = [
    CheckId::KvmDevice,
    CheckId::KvmOpen,
    CheckId::KvmApiVersion,
    CheckId::KvmCapabilities,
    CheckId::KvmGuestMode,
];

/// Whether a nested VM can run here, and what decides that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Whether a nested VM can run here, with hardware virtualization.
    pub can_run: bool,
    /// Whether `/dev/kvm` works here all the same: `run --allow-backend any` would start.
    pub device_works: bool,
    /// The layer that is missing, when it cannot.
    pub layer: Option<Layer>,
    /// The finding that decides, when it cannot.
    pub decided_by: Option<CheckId>,
    /// All of that in one sentence.
    pub sentence: String,
}

/// Everything preflight found out.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    schema: u32,
    version: &'static str,
    verdict: Verdict,
    backend: HostBackend,
    findings: Vec<Finding>,
}

impl Report {
    pub(super) fn judge(findings: Findings, cpu: &CpuFacts, module: &ModuleFacts) -> Self {
        let findings = findings.into_vec();
        let backend = HostBackend {
            kvm_module: module.name.clone().unwrap_or_else(|| "unknown".to_owned()),
            cpu_vendor: cpu.vendor.clone(),
            hardware_virtualization: cpu.extension.is_some(),
            hypervisor: cpu.hypervisor.clone(),
        };
        let verdict = verdict(&findings, &backend);
        Self { schema: SCHEMA, version: env!("CARGO_PKG_VERSION"), verdict, backend, findings }
    }

    /// Whether a nested VM can run here, and what decides that.
    #[must_use]
    pub fn verdict(&self) -> &Verdict {
        &self.verdict
    }

    /// Which KVM is underneath.
    #[must_use]
    pub fn backend(&self) -> HostBackend {
        self.backend.clone()
    }

    /// Every finding, in the order of the checks.
    #[must_use]
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// The finding of one check, if it was made.
    #[must_use]
    pub fn finding(&self, id: CheckId) -> Option<&Finding> {
        self.findings.iter().find(|finding| finding.id == id)
    }

    /// 0 when a nested VM can run here, [`EXIT_PREFLIGHT_FAILED`] when not.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        if self.verdict.can_run { 0 } else { EXIT_PREFLIGHT_FAILED }
    }
}

fn verdict(findings: &[Finding], backend: &HostBackend) -> Verdict {
    let broken = DEVICE_CHAIN.iter().find_map(|id| broken_link(findings, *id));
    let deciding = findings.iter().find(|finding| finding.severity == Severity::Error).or(broken);
    let device_works = broken.is_none();
    let sentence = match deciding {
        None => yes(findings, backend),
        Some(finding) => no(finding, device_works, backend),
    };
    Verdict {
        can_run: deciding.is_none(),
        device_works,
        layer: deciding.map(|finding| finding.layer),
        decided_by: deciding.map(|finding| finding.id),
        sentence,
    }
}

/// The finding of `id`, if it says that this link of the chain does not hold.
fn broken_link(findings: &[Finding], id: CheckId) -> Option<&Finding> {
    let finding = findings.iter().find(|finding| finding.id == id)?;
    (finding.severity == Severity::Error || finding.follows_from.is_some()).then_some(finding)
}

fn yes(findings: &[Finding], backend: &HostBackend) -> String {
    let warnings = findings.iter().filter(|finding| finding.severity == Severity::Warning).count();
    let warnings = match warnings {
        0 => String::new(),
        1 => "; 1 warning".to_owned(),
        many => format!("; {many} warnings"),
    };
    format!("yes: a nested VM can run here, on {}{warnings}", backend.kvm_module)
}

fn no(finding: &Finding, device_works: bool, backend: &HostBackend) -> String {
    let aside = if device_works {
        format!(
            "; /dev/kvm itself works (backend {}): `nestling run --allow-backend any` uses it as it is",
            backend.kvm_module
        )
    } else {
        String::new()
    };
    format!("no: a nested VM cannot run here, the {} layer fails: {}{aside}", finding.layer, finding.saw)
}

/// Why `run` will not start.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Refusal {
    /// The finding that decides.
    pub finding: Finding,
    /// Whether `--allow-backend any` would help.
    pub any_backend_would_do: bool,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Finding { id, layer, saw, .. } = &self.finding;
        write!(f, "a nested VM cannot run here, the {layer} layer fails ({id}): {saw}")?;
        if let Some(fix) = &self.finding.fix {
            write!(f, "; to mend it: {fix}")?;
        }
        if self.any_backend_would_do {
            write!(f, "; to use this /dev/kvm as it is: --allow-backend any")?;
        }
        Ok(())
    }
}

/// Whether `run` may start. With `allow_any_backend`, a `/dev/kvm` that works is enough.
///
/// # Errors
/// The finding that stands in the way.
pub fn gate(report: &Report, allow_any_backend: bool) -> Result<(), Refusal> {
    let verdict = report.verdict();
    if verdict.can_run || (allow_any_backend && verdict.device_works) {
        return Ok(());
    }
    let broken = || DEVICE_CHAIN.iter().find_map(|id| broken_link(&report.findings, *id));
    let decided = verdict.decided_by.and_then(|id| report.finding(id));
    let finding = if allow_any_backend { broken().or(decided) } else { decided };
    match finding {
        Some(finding) => {
            Err(Refusal { finding: finding.clone(), any_backend_would_do: verdict.device_works })
        }
        None => Ok(()),
    }
}
