//! Reads `/proc/cpuinfo`, whatever it contains.

use super::text::printable;

/// The flags a check asks for, from the `flags` and `vmx flags` lines.
const INTERESTING: [&str; 6] = ["vmx", "svm", "hypervisor", "ept", "npt", "unrestricted_guest"];

/// One CPU's block.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Cpu {
    pub(super) vendor: String,
    pub(super) model: String,
    flags: Vec<&'static str>,
    has_flags_line: bool,
    has_vmx_flags_line: bool,
}

impl Cpu {
    pub(super) fn has(&self, flag: &str) -> bool {
        self.flags.contains(&flag)
    }

    /// Whether VT-x details are listed at all; they are since Linux 5.8.
    pub(super) fn lists_vmx_details(&self) -> bool {
        self.has_vmx_flags_line
    }
}

/// The CPUs that `content` describes completely enough to judge: those with a `flags` line.
///
/// Lines without a colon, unknown keys and bytes that are not UTF-8 are passed over.
pub(super) fn parse(content: &[u8]) -> Vec<Cpu> {
    let text = String::from_utf8_lossy(content);
    let mut cpus = Vec::new();
    let mut cpu = Cpu::default();
    for line in text.lines() {
        let Some((key, value)) = line.split_once(':') else { continue };
        match key.trim() {
            // Each block starts with its number.
            "processor" => cpus.push(std::mem::take(&mut cpu)),
            "vendor_id" => cpu.vendor = printable(value),
            "model name" => cpu.model = printable(value),
            "flags" => {
                cpu.has_flags_line = true;
                note_flags(&mut cpu, value);
            }
            "vmx flags" => {
                cpu.has_vmx_flags_line = true;
                note_flags(&mut cpu, value);
            }
            _ => {}
        }
    }
    cpus.push(cpu);
    cpus.retain(|cpu| cpu.has_flags_line);
    cpus
}

fn note_flags(cpu: &mut Cpu, line: &str) {
    for word in line.split_whitespace() {
        let known = INTERESTING.iter().find(|flag| **flag == word);
        if let Some(flag) = known.filter(|flag| !cpu.flags.contains(flag)) {
            cpu.flags.push(flag);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_two_cpus() {
        let cpus = parse(
            b"processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: Xeon\nflags\t\t: fpu vmx hypervisor\n\
              vmx flags\t: ept vpid unrestricted_guest\n\nprocessor\t: 1\nvendor_id\t: GenuineIntel\nflags\t\t: fpu\n",
        );
        assert_eq!(cpus.len(), 2);
        assert_eq!(cpus[0].vendor, "GenuineIntel");
        assert!(cpus[0].has("vmx") && cpus[0].has("ept") && cpus[0].lists_vmx_details());
        assert!(!cpus[1].has("vmx") && !cpus[1].lists_vmx_details());
    }

    #[test]
    fn a_flag_is_a_whole_word() {
        assert!(!parse(b"flags : vmxx avmx")[0].has("vmx"));
    }

    #[test]
    fn nothing_comes_of_nothing() {
        assert_eq!(parse(b""), []);
        assert_eq!(parse(b"processor : 0\nflags fpu vmx\n\xff\xfe"), []);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(content in proptest::collection::vec(any::<u8>(), 0..4096)) {
            parse(&content);
        }

        #[test]
        fn any_lines_are_survived(lines in proptest::collection::vec("(processor|flags|vmx \
            flags|vendor_id|model name)?\t?:?.{0,80}", 0..40)) {
            parse(lines.join("\n").as_bytes());
        }
    }
}
