//! The kernel command line Nestling computes when it is not told to use the user's alone.

use crate::spec::plan::{CmdlinePlan, ConsoleKind};
use crate::x86::layout::CMDLINE_MAX_BYTES;

/// What the computed part depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CmdlineFacts {
    /// The guest's console device.
    pub console: ConsoleKind,
    /// Whether an initrd is given: then its init finds the root, not the kernel.
    pub has_initrd: bool,
    /// Whether the first disk is read-only, if there is a disk.
    pub first_disk_readonly: Option<bool>,
}

/// Why there is no command line.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CmdlineError {
    /// It is longer than any x86 kernel takes.
    #[error(
        "the kernel command line has {bytes} bytes, {computed} of them computed, and a kernel takes {limit}: shorten --cmdline",
        limit = CMDLINE_MAX_BYTES
    )]
    TooLong {
        /// The whole length in bytes.
        bytes: usize,
        /// The part the user did not write.
        computed: usize,
    },
}

/// Hints every guest gets. Each saves exits or instructions on a stock kernel, or tells us how the guest ended; a
/// kernel that does not know one ignores it.
const HINTS: &[&str] = &[
    // Messages below "warning" stay in the log: printing them all costs a stock kernel some 30 ms on virtio-console and,
    // on a UART, an exit per character (34,000 in one boot).
    "quiet",
    // A panicked guest resets at once instead of waiting for somebody to read the screen.
    "panic=-1",
    // kernel/reboot.c: sets only the mode used for a reboot out of a panic. That mode goes to the BIOS data area (see
    // BDA_RESET_FLAG in the address map), and the reboot still goes through the ACPI reset register.
    "reboot=panic_warm",
    // KVM lets a guest use the TSC as clock only where it is stable: no watchdog timer that compares it with another
    // clock, and no 20 ms of warp test each time a CPU comes up.
    "tsc=reliable",
    // There is no PCI configuration through ports: without this, early quirks look for 32 devices there, 64 exits.
    "pci=noearly",
    // The crypto self-tests of a distribution kernel are several hundred million instructions, and the kernel was tested.
    "cryptomgr.notests=1",
    // RDRAND seeds the guest's generator at boot, so nothing waits for entropy. The hypervisor is trusted anyway.
    "random.trust_cpu=on",
];
// Not among them: no_timer_check (KVM guests set it themselves), i8042.* and any RTC option (the FADT says they are not
// there), mitigations= and nokaslr (the guest owner's decision).

/// Computes the command line: console, hints and root, then the user's text, so that the user's word is the last one
/// and whatever follows a ` -- ` in it goes to init.
///
/// # Errors
/// When the result is longer than 2047 bytes.
pub fn compute(facts: &CmdlineFacts, plan: &CmdlinePlan) -> Result<String, CmdlineError> {
    let (computed, users) = match plan {
        CmdlinePlan::Append(text) => (computed(facts), text.trim()),
        CmdlinePlan::Replace(text) => (String::new(), text.trim()),
    };
    let parts: Vec<&str> = [computed.as_str(), users].into_iter().filter(|part| !part.is_empty()).collect();
    let cmdline = parts.join(" ");
    if cmdline.len() > CMDLINE_MAX_BYTES {
        return Err(CmdlineError::TooLong { bytes: cmdline.len(), computed: computed.len() });
    }
    Ok(cmdline)
}

fn computed(facts: &CmdlineFacts) -> String {
    let mut words = match facts.console {
        // Without a UART the driver need not probe four of them at their ISA addresses.
        ConsoleKind::Virtio => vec!["console=hvc0", "8250.nr_uarts=0"],
        // One UART: the other three ISA addresses need no probing.
        ConsoleKind::Serial => vec!["console=ttyS0", "8250.nr_uarts=1"],
    };
    words.extend(HINTS);
    if let (false, Some(readonly)) = (facts.has_initrd, facts.first_disk_readonly) {
        words.extend(["root=/dev/vda", if readonly { "ro" } else { "rw" }]);
    }
    words.join(" ")
}

#[cfg(test)]
mod tests;
