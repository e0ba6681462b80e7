//! How often each queue of each virtio device has interrupted.

use crate::error::{Doing, Result};

/// `irqs`: a line `NAME=TOTAL` for each interrupt of a virtio device, all CPUs together.
pub(crate) fn print() -> Result<()> {
    let text = std::fs::read_to_string("/proc/interrupts").doing("read /proc/interrupts")?;
    for (name, total) in virtio(&text) {
        println!("{name}={total}");
    }
    Ok(())
}

/// The rows of /proc/interrupts whose last word is a virtio device's: `virtio1-req.0`.
fn virtio(text: &str) -> Vec<(&str, u64)> {
    let rows = text.lines().filter_map(|line| {
        let name = line.split_whitespace().last().filter(|name| name.starts_with("virtio"))?;
        let counts = line.split_whitespace().skip(1).map_while(|word| word.parse::<u64>().ok());
        Some((name, counts.sum()))
    });
    rows.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_cpus_count_and_other_interrupts_do_not() {
        let text = "           CPU0       CPU1\n  9:          0          1   ACPI:Event\n \
                    24:         10         32  PCI-MSIX-0000:00:01.0   0-edge      virtio0-config\n \
                    25:          0          7   PCI-MSI 16385-edge      virtio1-req.0\nNMI:  3 4   Non-maskable\n";
        assert_eq!(virtio(text), [("virtio0-config", 42), ("virtio1-req.0", 7)]);
    }
}
