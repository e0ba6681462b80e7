//! The report as people and scripts read it.

use std::fmt::Write;

use super::finding::{Finding, Severity};
use super::report::Report;

/// How the text form looks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Style {
    /// Whether marks are coloured with ANSI escapes.
    pub colour: bool,
}

/// Verdict, backend, then a line per finding; a warning or a failure has lines of its own for what it means and
/// what mends it.
#[must_use]
pub fn to_text(report: &Report, style: Style) -> String {
    let backend = report.backend();
    let mut text = format!("preflight: {}\n", report.verdict().sentence);
    let _ = writeln!(
        text,
        "backend:   {}; CPU {}; hardware virtualization: {}; hypervisor below: {}\n",
        backend.kvm_module,
        backend.cpu_vendor,
        if backend.hardware_virtualization { "yes" } else { "no" },
        backend.hypervisor.as_deref().unwrap_or("none"),
    );
    let width = report.findings().iter().map(|finding| finding.id.as_str().len()).max().unwrap_or(0);
    for finding in report.findings() {
        write_finding(&mut text, finding, width, style);
    }
    text
}

/// The whole report as one JSON object; `schema` tells its layout.
#[must_use]
pub fn to_json(report: &Report) -> String {
    // A report is strings, numbers and enums: there is nothing in it that JSON cannot hold.
    let mut json =
        serde_json::to_string_pretty(report).unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}"));
    json.push('\n');
    json
}

fn write_finding(text: &mut String, finding: &Finding, width: usize, style: Style) {
    let because = finding.follows_from.map(|id| format!(" (because of {id})")).unwrap_or_default();
    let loud = matches!(finding.severity, Severity::Warning | Severity::Error);
    let aside =
        finding.means.as_ref().filter(|_| !loud).map(|means| format!(" - {means}")).unwrap_or_default();
    let _ =
        writeln!(text, "{}  {:width$}  {}{because}{aside}", mark(finding, style), finding.id, finding.saw);
    let indent = 4 + 2 + width + 2;
    for (label, line) in [("means", &finding.means), ("fix", &finding.fix)] {
        if let Some(line) = line.as_ref().filter(|_| loud) {
            let _ = writeln!(text, "{:indent$}{:7}{line}", "", format!("{label}:"));
        }
    }
}

fn mark(finding: &Finding, style: Style) -> String {
    let (word, colour) = match (finding.severity, finding.follows_from) {
        (_, Some(_)) => ("skip", 90),
        (Severity::Ok, None) => ("ok  ", 32),
        (Severity::Info, None) => ("info", 36),
        (Severity::Warning, None) => ("warn", 33),
        (Severity::Error, None) => ("FAIL", 31),
    };
    if style.colour { format!("\x1b[{colour}m{word}\x1b[0m") } else { word.to_owned() }
}
