//! The kernel's command line: the keys that are ours, and which of init's arguments are the workload.

use std::ffi::OsString;

use crate::power::End;

/// Whether there is to be an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Agent {
    /// The host speaks the protocol: wait for it.
    On,
    /// Look once whether it does.
    Auto,
    /// No.
    Off,
}

/// The words of `/proc/cmdline`: those for the kernel (and us), and those after `--`, which are the workload.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Cmdline {
    keys: Vec<String>,
    workload_words: usize,
}

impl Cmdline {
    /// Reads `/proc/cmdline`; an unreadable one is an empty one.
    pub(crate) fn read() -> Self {
        Self::parse(&std::fs::read_to_string("/proc/cmdline").unwrap_or_default())
    }

    /// Splits as the kernel does (lib/cmdline.c, `next_arg`): on spaces, but not within double quotes.
    fn parse(text: &str) -> Self {
        let mut words = Vec::new();
        let (mut word, mut quoted) = (String::new(), false);
        for c in text.trim().chars() {
            match c {
                '"' => quoted = !quoted,
                c if c.is_whitespace() && !quoted => words.push(std::mem::take(&mut word)),
                c => word.push(c),
            }
        }
        words.push(word);
        words.retain(|word| !word.is_empty());
        match words.iter().position(|word| word == "--") {
            Some(dashes) => Self { workload_words: words.len() - dashes - 1, keys: words[..dashes].to_vec() },
            None => Self { keys: words, workload_words: 0 },
        }
    }

    /// The value of the last `key=value`, for the kernel too lets the last one win.
    fn value(&self, key: &str) -> Option<&str> {
        self.keys.iter().rev().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
    }

    /// `nestling.hostname=NAME`.
    pub(crate) fn hostname(&self) -> &str {
        self.value("nestling.hostname").filter(|name| !name.is_empty()).unwrap_or("nestling")
    }

    /// `nestling.end=poweroff|reboot|halt`: what to do when the workload has ended.
    pub(crate) fn end(&self) -> End {
        match self.value("nestling.end") {
            None | Some("poweroff") => End::PowerOff,
            Some("reboot") => End::Reboot,
            Some("halt") => End::Halt,
            Some(other) => {
                crate::say!("nestling.end={other} is neither poweroff, reboot nor halt: taking poweroff");
                End::PowerOff
            }
        }
    }

    /// `nestling.agent=on|auto|off`: whether the host is looked for.
    pub(crate) fn agent(&self) -> Agent {
        match self.value("nestling.agent") {
            None | Some("auto") => Agent::Auto,
            Some("on") => Agent::On,
            Some("off") => Agent::Off,
            Some(other) => {
                crate::say!("nestling.agent={other} is neither on, auto nor off: taking auto");
                Agent::Auto
            }
        }
    }

    /// The last `console=` without its options: `hvc0`, `ttyS0`.
    pub(crate) fn console(&self) -> Option<&str> {
        self.value("console").and_then(|value| value.split(',').next()).filter(|name| !name.is_empty())
    }

    /// The workload among init's arguments. The kernel hands over what follows `--`, but before it also every word it
    /// did not know; those are left out.
    pub(crate) fn workload(&self, mut arguments: Vec<OsString>) -> Vec<OsString> {
        if self.workload_words > 0 {
            return arguments.split_off(arguments.len().saturating_sub(self.workload_words));
        }
        let unknown =
            arguments.iter().take_while(|argument| self.keys.iter().any(|word| *argument == word.as_str()));
        let unknown = unknown.count();
        arguments.split_off(unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(words: &[&str]) -> Vec<OsString> {
        words.iter().map(OsString::from).collect()
    }

    #[test]
    fn keys_are_read_and_the_last_one_wins() {
        let line = Cmdline::parse(
            "console=ttyS0,115200 console=hvc0 nestling.hostname=a nestling.hostname=b quiet\n",
        );

        assert_eq!(line.hostname(), "b");
        assert_eq!(line.console(), Some("hvc0"));
        assert_eq!(line.end(), End::PowerOff);
    }

    #[test]
    fn an_empty_line_has_defaults() {
        let line = Cmdline::parse("\n");

        assert_eq!((line.hostname(), line.console(), line.end()), ("nestling", None, End::PowerOff));
        assert!(line.workload(Vec::new()).is_empty());
    }

    #[test]
    fn every_way_to_end_has_a_word() {
        assert_eq!(Cmdline::parse("nestling.end=reboot").end(), End::Reboot);
        assert_eq!(Cmdline::parse("nestling.end=halt").end(), End::Halt);
        assert_eq!(Cmdline::parse("nestling.end=explode").end(), End::PowerOff);
    }

    #[test]
    fn the_agent_is_looked_for_unless_told() {
        assert_eq!(Cmdline::parse("quiet").agent(), Agent::Auto);
        assert_eq!(Cmdline::parse("nestling.agent=on").agent(), Agent::On);
        assert_eq!(Cmdline::parse("nestling.agent=on nestling.agent=off").agent(), Agent::Off);
        assert_eq!(Cmdline::parse("nestling.agent=7").agent(), Agent::Auto);
    }

    #[test]
    fn words_the_kernel_did_not_know_are_no_workload() {
        let line = Cmdline::parse("quiet strange -- /bin/sh -c \"uname -a; nproc\"");
        let argv = arguments(&["strange", "/bin/sh", "-c", "uname -a; nproc"]);

        assert_eq!(line.workload(argv), arguments(&["/bin/sh", "-c", "uname -a; nproc"]));
    }

    #[test]
    fn without_dashes_only_words_of_the_line_are_left_out() {
        let line = Cmdline::parse("quiet strange");

        assert_eq!(line.workload(arguments(&["strange"])), arguments(&[]));
        assert_eq!(line.workload(arguments(&["strange", "/bin/true"])), arguments(&["/bin/true"]));
    }

    #[test]
    fn keys_after_the_dashes_are_the_workloads_own() {
        let line = Cmdline::parse("nestling.end=halt -- env nestling.end=reboot");

        assert_eq!(line.end(), End::Halt);
    }

    #[test]
    fn quotes_keep_spaces_inside_a_value() {
        assert_eq!(Cmdline::parse("nestling.hostname=\"a b\" x").hostname(), "a b");
    }
}
