//! What was typed: one optional value per key, each with the place it came from.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::disk::DiskConfig;
use super::error::{Problem, SpecError};
use super::net::NetConfig;
use super::port::PortConfig;
use super::share::ShareConfig;
use super::vsock::VsockConfig;

/// The socket a VM listens on when nothing else is said.
pub const DEFAULT_SOCKET: &str = "/run/nestling/nestling.sock";

/// Where a value was written, so that a refusal can point at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A command line flag, with its dashes.
    Flag(&'static str),
    /// A place in a spec file; lines and columns count from 1.
    Spec {
        /// The file as it was named.
        file: Arc<Path>,
        /// Line.
        line: u64,
        /// Column, in characters.
        column: u64,
    },
    /// Nobody wrote it: the default of this key.
    Default(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(name) => f.write_str(name),
            Self::Spec { file, line, column } => write!(f, "{}:{line}:{column}", file.display()),
            Self::Default(key) => write!(f, "the default {key}"),
        }
    }
}

/// A value and where it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given<T> {
    /// What was written.
    pub value: T,
    /// Where.
    pub origin: Origin,
}

impl<T> Given<T> {
    /// A value that a flag carried.
    pub fn by_flag(flag: &'static str, value: T) -> Self {
        Self { value, origin: Origin::Flag(flag) }
    }

    /// The refusal of this value.
    pub(crate) fn refuse(&self, problem: Problem) -> SpecError {
        SpecError::Value { origin: self.origin.clone(), problem: Box::new(problem) }
    }
}

/// The form of Nestling's own log lines on stderr.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// One human-readable line per entry.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Everything that can be said about one run, as it was typed. A key that was not written is `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    /// `kernel`: the kernel image.
    pub kernel: Option<Given<PathBuf>>,
    /// `initrd`: the initial RAM disk.
    pub initrd: Option<Given<PathBuf>>,
    /// `cmdline`: appended to the kernel command line that Nestling computes.
    pub cmdline: Option<Given<String>>,
    /// `cmdline-replace`: the whole kernel command line.
    pub cmdline_replace: Option<Given<String>>,
    /// `command`, or what follows `--`: the guest's init runs it.
    pub command: Option<Given<Vec<String>>>,
    /// `cpus`: a number, or `auto`.
    pub cpus: Option<Given<String>>,
    /// `memory`: a size, or `auto`.
    pub memory: Option<Given<String>>,
    /// `disk`: block devices, in order.
    pub disk: Vec<Given<DiskConfig>>,
    /// `port`: named character ports, in order.
    pub port: Vec<Given<PortConfig>>,
    /// `share`: directories of the host.
    pub share: Vec<Given<ShareConfig>>,
    /// `vsock`: streams to programs of the host.
    pub vsock: Option<Given<VsockConfig>>,
    /// `net`: network interfaces, in order.
    pub net: Vec<Given<NetConfig>>,
    /// `console`: `virtio` or `serial`.
    pub console: Option<Given<String>>,
    /// `agent`: `on` or `off`.
    pub agent: Option<Given<String>>,
    /// `watchdog`: `on` or `off`.
    pub watchdog: Option<Given<String>>,
    /// `balloon`: `on` or `off`, and its keys.
    pub balloon: Option<Given<String>>,
    /// `rng`: the entropy device's keys.
    pub rng: Option<Given<String>>,
    /// `console-history`: bytes of console output that are kept, as a size.
    pub console_history: Option<Given<String>>,
    /// `socket`: the status socket's path.
    pub socket: Option<Given<PathBuf>>,
    /// `status-file`: where the status is kept on disk.
    pub status_file: Option<Given<PathBuf>>,
    /// `allow-backend`: `hardware` or `any`.
    pub allow_backend: Option<Given<String>>,
    /// `log-format`: `text` or `json`.
    pub log_format: Option<Given<String>>,
}

impl Config {
    /// This config with everything that `over` says put in its place. Disks, interfaces and ports are replaced as a whole, and one kind of
    /// command line replaces the other.
    #[must_use]
    pub fn overridden_by(self, over: Self) -> Self {
        let cmdline_is_over = over.cmdline.is_some() || over.cmdline_replace.is_some();
        let (cmdline, cmdline_replace) = if cmdline_is_over {
            (over.cmdline, over.cmdline_replace)
        } else {
            (self.cmdline, self.cmdline_replace)
        };
        Self {
            kernel: over.kernel.or(self.kernel),
            initrd: over.initrd.or(self.initrd),
            cmdline,
            cmdline_replace,
            command: over.command.or(self.command),
            cpus: over.cpus.or(self.cpus),
            memory: over.memory.or(self.memory),
            disk: if over.disk.is_empty() { self.disk } else { over.disk },
            port: if over.port.is_empty() { self.port } else { over.port },
            share: if over.share.is_empty() { self.share } else { over.share },
            vsock: over.vsock.or(self.vsock),
            net: if over.net.is_empty() { self.net } else { over.net },
            console: over.console.or(self.console),
            agent: over.agent.or(self.agent),
            watchdog: over.watchdog.or(self.watchdog),
            balloon: over.balloon.or(self.balloon),
            rng: over.rng.or(self.rng),
            console_history: over.console_history.or(self.console_history),
            socket: over.socket.or(self.socket),
            status_file: over.status_file.or(self.status_file),
            allow_backend: over.allow_backend.or(self.allow_backend),
            log_format: over.log_format.or(self.log_format),
        }
    }

    /// The log format, which is needed before anything else can be said.
    ///
    /// # Errors
    /// When it is neither `text` nor `json`.
    pub fn log_format(&self) -> Result<LogFormat, SpecError> {
        choose(self.log_format.as_ref(), "text or json", |text| match text {
            "text" => Some(LogFormat::Text),
            "json" => Some(LogFormat::Json),
            _ => None,
        })
        .map(Option::unwrap_or_default)
    }
}

/// Reads a value that is one of a few words.
pub(super) fn choose<T>(
    given: Option<&Given<String>>,
    choices: &'static str,
    read: impl Fn(&str) -> Option<T>,
) -> Result<Option<T>, SpecError> {
    let Some(given) = given else { return Ok(None) };
    match read(&given.value) {
        Some(value) => Ok(Some(value)),
        None => Err(given.refuse(Problem::Choice { text: given.value.clone(), choices })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flag(text: &str) -> Option<Given<String>> {
        Some(Given::by_flag("--x", text.to_owned()))
    }

    #[test]
    fn a_flag_wins_over_the_spec_and_the_rest_stays() {
        let spec = Config { cpus: flag("2"), memory: flag("1Gi"), ..Config::default() };
        let flags = Config { cpus: flag("4"), ..Config::default() };
        let merged = spec.overridden_by(flags);
        assert_eq!(merged.cpus, flag("4"));
        assert_eq!(merged.memory, flag("1Gi"));
    }

    #[test]
    fn a_replacing_command_line_drops_the_spec_s_appended_one() {
        let spec = Config { cmdline: flag("quiet"), ..Config::default() };
        let flags = Config { cmdline_replace: flag("console=hvc0"), ..Config::default() };
        let merged = spec.overridden_by(flags);
        assert_eq!(merged.cmdline, None);
        assert_eq!(merged.cmdline_replace, flag("console=hvc0"));
    }

    #[test]
    fn a_log_format_that_does_not_exist_is_refused_by_name() {
        let config = Config { log_format: flag("xml"), ..Config::default() };
        let text = config.log_format().expect_err("refused").to_string();
        assert_eq!(text, "--x: `xml` is not a choice here: write text or json");
    }
}
