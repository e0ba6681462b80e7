//! What was typed becomes the plan: defaults filled in, every value checked.

use std::path::PathBuf;

use super::command::to_cmdline;
use super::config::{Config, DEFAULT_SOCKET, Given, Origin, choose};
use super::disk::disk_plan;
use super::error::{Problem, SpecError};
use super::files::{check_image, check_status_file};
use super::net::net_plan;
use super::plan::{AllowBackend, BalloonPlan, CmdlinePlan, ConsoleKind, MachinePlan, NetPlan, RunPlan};
use super::size::parse_size;
use super::{balloon, console, port, rng, share, vsock};

/// The most vCPUs a machine has.
const MAX_CPUS: u8 = 32;
/// Guest RAM is handed out in huge pages of this size.
const HUGE_PAGE: u64 = 2 << 20;
/// The least RAM a Linux guest can do something with.
const MIN_MEMORY: u64 = 32 << 20;
/// RAM when nothing is said.
const DEFAULT_MEMORY: u64 = 256 << 20;
/// What a Linux kernel keeps of its command line (COMMAND_LINE_SIZE less the NUL).
const MAX_CMDLINE: usize = 2047;
/// `sun_path` less its NUL.
const MAX_SOCKET_PATH: usize = 107;

impl Config {
    /// Checks everything that was typed and fills in what was not.
    ///
    /// # Errors
    /// The first value that cannot be used, with its place and its mend.
    pub fn resolve(&self) -> Result<RunPlan, SpecError> {
        let memory_bytes = self.memory_bytes()?;
        let machine = MachinePlan {
            cpus: self.cpu_count()?,
            memory_bytes,
            kernel: self.kernel_path()?,
            initrd: self.initrd_path(memory_bytes)?,
            cmdline: self.cmdline_plan()?,
            disks: self.disk.iter().map(disk_plan).collect::<Result<_, _>>()?,
            ports: port::plan(&self.port)?,
            shares: share::plans(&self.share)?,
            vsock: self.vsock.as_ref().map(vsock::plan).transpose()?,
            agent: self.has_agent()?,
            nets: self.nets()?,
            console: self.console_kind()?,
            watchdog: self.has_watchdog()?,
            balloon: read(self.balloon.as_ref(), balloon::parse)?.unwrap_or(Some(BalloonPlan::default())),
            rng: read(self.rng.as_ref(), rng::parse)?.unwrap_or_default(),
        };
        Ok(RunPlan {
            machine,
            socket: self.socket_path()?,
            status_file: self.status_file_path()?,
            allow_backend: self.allowed_backend()?,
            console_history: console::history_bytes(self.console_history.as_ref())?,
        })
    }

    fn cpu_count(&self) -> Result<u8, SpecError> {
        let Some(given) = &self.cpus else { return Ok(1) };
        if given.value == "auto" {
            return Ok(cpus_of_this_process());
        }
        match given.value.parse() {
            Ok(count @ 1..=MAX_CPUS) => Ok(count),
            _ => Err(given.refuse(Problem::Cpus { text: given.value.clone() })),
        }
    }

    fn memory_bytes(&self) -> Result<u64, SpecError> {
        match &self.memory {
            Some(given) if given.value != "auto" => check_memory(given, host_memory_bytes()),
            _ => Ok(DEFAULT_MEMORY),
        }
    }

    fn kernel_path(&self) -> Result<PathBuf, SpecError> {
        let given = self.kernel.as_ref().ok_or(SpecError::NoKernel)?;
        check_image(given, "kernel")?;
        Ok(given.value.clone())
    }

    fn initrd_path(&self, memory_bytes: u64) -> Result<Option<PathBuf>, SpecError> {
        let Some(given) = &self.initrd else { return Ok(None) };
        let path = given.value.clone();
        let size = check_image(given, "initrd")?;
        if size >= memory_bytes {
            let (initrd_mib, memory_mib) = (size.div_ceil(1 << 20), memory_bytes >> 20);
            return Err(given.refuse(Problem::InitrdTooLarge { path, initrd_mib, memory_mib }));
        }
        Ok(Some(path))
    }

    fn cmdline_plan(&self) -> Result<CmdlinePlan, SpecError> {
        match (&self.cmdline, &self.cmdline_replace) {
            (Some(_), Some(given)) => Err(given.refuse(Problem::TwoCmdlines)),
            (Some(given), None) => self.with_command(check_cmdline(given)?).map(CmdlinePlan::Append),
            (None, Some(given)) => self.with_command(check_cmdline(given)?).map(CmdlinePlan::Replace),
            (None, None) => self.with_command(String::new()).map(CmdlinePlan::Append),
        }
    }

    /// The user's part of the command line with the command at its end, where init finds it.
    fn with_command(&self, cmdline: String) -> Result<String, SpecError> {
        let Some(given) = self.command.as_ref().filter(|given| !given.value.is_empty()) else {
            return Ok(cmdline);
        };
        if cmdline.split(' ').any(|word| word == "--") {
            return Err(given.refuse(Problem::TwoCommands));
        }
        let command = to_cmdline(&given.value).map_err(|problem| given.refuse(problem))?;
        Ok(format!("{cmdline} {command}").trim_start().to_owned())
    }

    fn nets(&self) -> Result<Vec<NetPlan>, SpecError> {
        self.net.iter().enumerate().map(|(index, given)| net_plan(given, index)).collect()
    }

    fn console_kind(&self) -> Result<ConsoleKind, SpecError> {
        choose(self.console.as_ref(), "virtio or serial", |text| match text {
            "virtio" => Some(ConsoleKind::Virtio),
            "serial" => Some(ConsoleKind::Serial),
            _ => None,
        })
        .map(|kind| kind.unwrap_or(ConsoleKind::Virtio))
    }

    fn has_watchdog(&self) -> Result<bool, SpecError> {
        on_or_off(self.watchdog.as_ref()).map(|watchdog| watchdog.unwrap_or(true))
    }

    fn has_agent(&self) -> Result<bool, SpecError> {
        on_or_off(self.agent.as_ref()).map(|agent| agent.unwrap_or(false))
    }

    fn allowed_backend(&self) -> Result<AllowBackend, SpecError> {
        choose(self.allow_backend.as_ref(), "hardware or any", |text| match text {
            "hardware" => Some(AllowBackend::Hardware),
            "any" => Some(AllowBackend::Any),
            _ => None,
        })
        .map(|allowed| allowed.unwrap_or(AllowBackend::Hardware))
    }

    fn socket_path(&self) -> Result<PathBuf, SpecError> {
        let default = Given { value: PathBuf::from(DEFAULT_SOCKET), origin: Origin::Default("socket") };
        let given = self.socket.as_ref().unwrap_or(&default);
        let (path, length) = (given.value.clone(), given.value.as_os_str().len());
        if length > MAX_SOCKET_PATH {
            return Err(given.refuse(Problem::SocketTooLong { path, length }));
        }
        if given.value.file_name().is_none() {
            let (what, found, wanted) =
                ("socket path", "no file name", "a path such as /run/nestling/nestling.sock");
            return Err(given.refuse(Problem::WrongKind { what, path, found, wanted }));
        }
        Ok(path)
    }

    fn status_file_path(&self) -> Result<Option<PathBuf>, SpecError> {
        let Some(given) = &self.status_file else { return Ok(None) };
        check_status_file(given)?;
        Ok(Some(given.value.clone()))
    }
}

fn on_or_off(given: Option<&Given<String>>) -> Result<Option<bool>, SpecError> {
    choose(given, "on or off", |text| match text {
        "on" | "true" => Some(true),
        "off" | "false" => Some(false),
        _ => None,
    })
}

/// Reads a value that may not be there.
fn read<T>(
    given: Option<&Given<String>>,
    parse: impl Fn(&str) -> Result<T, Problem>,
) -> Result<Option<T>, SpecError> {
    given.map(|given| parse(&given.value).map_err(|problem| given.refuse(problem))).transpose()
}

fn check_memory(given: &Given<String>, host_bytes: Option<u64>) -> Result<u64, SpecError> {
    let text = given.value.clone();
    let Some(bytes) = parse_size(&text) else { return Err(given.refuse(Problem::Size { text })) };
    if bytes < MIN_MEMORY {
        return Err(given.refuse(Problem::MemoryTooSmall { text }));
    }
    if let Some(host) = host_bytes.filter(|host| bytes > *host) {
        let host_mib = (host - host % HUGE_PAGE) >> 20;
        return Err(given.refuse(Problem::MemoryOverHost { text, host_mib }));
    }
    if bytes % HUGE_PAGE != 0 {
        let nearest_mib = bytes.div_ceil(HUGE_PAGE).saturating_mul(HUGE_PAGE >> 20);
        return Err(given.refuse(Problem::MemoryUneven { text, nearest_mib }));
    }
    Ok(bytes)
}

fn check_cmdline(given: &Given<String>) -> Result<String, SpecError> {
    let text = &given.value;
    if text.len() > MAX_CMDLINE {
        return Err(given.refuse(Problem::CmdlineTooLong { length: text.len() }));
    }
    for (byte, what) in [('\0', "a NUL"), ('\n', "a line break"), ('\r', "a carriage return")] {
        if let Some(at) = text.find(byte) {
            return Err(given.refuse(Problem::CmdlineByte { what, at }));
        }
    }
    Ok(text.clone())
}

/// The CPUs this process may run on (its affinity and its cgroup's quota), at most 32.
fn cpus_of_this_process() -> u8 {
    let count = std::thread::available_parallelism().map_or(1, usize::from);
    u8::try_from(count).map_or(MAX_CPUS, |count| count.min(MAX_CPUS))
}

/// The host's `MemTotal`; unknown where /proc is not the usual one.
fn host_memory_bytes() -> Option<u64> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
#[path = "resolve_tests.rs"]
mod tests;
