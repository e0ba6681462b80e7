//! One life of the machine: pack, power on, listen until the program's exit code is there, power off.

use std::ffi::OsString;
use std::fs;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ChildStdout;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Usage, UsageWho, getrusage};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::time::TimeValLike;

use crate::error::{Doing, Error, Result};
use crate::job::{self, Job};
use crate::listen::Listener;
use crate::logs::Logs;
use crate::machine::bochs::{Machine, Running};
use crate::machine::kernel;
use crate::modules;
use crate::pack::Packer;
use crate::report::Report;
use crate::setup::{self, Parts};

/// What to run, and in what kind of machine.
#[derive(Debug)]
pub(crate) struct Request {
    /// Absolute path, here and there.
    pub program: PathBuf,
    pub args: Vec<OsString>,
    /// The whole environment.
    pub env: Vec<(OsString, OsString)>,
    pub files: Vec<Placed>,
    pub collect: Vec<Collect>,
    /// `NAME` or `NAME=PARAMETERS`, beyond those that are loaded anyway.
    pub modules: Vec<String>,
    pub memory_mib: u64,
    pub fast_strings: bool,
    /// Added to the kernel's command line.
    pub command_line: String,
    pub timeout: Duration,
    pub console: Option<PathBuf>,
}

/// A file or directory of the host, and where it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Placed {
    pub source: PathBuf,
    pub inside: PathBuf,
}

/// A file or directory of the node, and where it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Collect {
    pub inside: PathBuf,
    pub target: PathBuf,
}

const INITRAMFS: &str = "initramfs";
/// A node that reported its end gets this long to write the last of its console and power off.
const POWER_OFF_PATIENCE: Duration = Duration::from_secs(10);

/// Runs the program in an emulated node; its exit code.
pub(crate) fn run(request: &Request, report: &Report) -> Result<u8> {
    check_executable(&request.program)?;
    let parts = setup::ensure(report)?;
    let signals = stop_signals()?;
    let logs = Logs::create(&request.program)?;
    let outcome = live(request, &parts, &logs, &signals, report);
    if let Some(console) = &request.console {
        logs.keep_console(console)?;
    }
    match &outcome {
        Ok(0) | Err(Error::Signal(_)) => logs.discard(),
        Err(error) if !matches!(error, Error::Died { .. }) && !logs.console().exists() => logs.discard(),
        _ => {
            logs.remove_inputs();
            logs.show(matches!(outcome, Err(Error::Died { .. })), report);
        }
    }
    outcome
}

fn live(request: &Request, parts: &Parts, logs: &Logs, signals: &SignalFd, report: &Report) -> Result<u8> {
    let bytes = pack(request, parts, &logs.path(INITRAMFS))?;
    report.step(&format!("packed {:.1} MiB", bytes as f64 / f64::from(1 << 20)));
    let machine = Machine {
        parts,
        logs,
        memory_mib: request.memory_mib,
        fast_strings: request.fast_strings,
        initramfs: INITRAMFS,
        command_line: &request.command_line,
    };
    let before = children_usage()?;
    let mut running = machine.power_on()?;
    report.step(&format!("power on, {} MiB, Linux {}", request.memory_mib, parts.release));
    let mut listener = Listener::create(request, logs, report)?;
    let heard = listen(request, &mut running, &mut listener, signals, report);
    heard?;
    let status = running.power_off(POWER_OFF_PATIENCE)?;
    let code = listener.verdict(status)?;
    report.step(&format!("exit code {code}, {}", cost_since(&before)?));
    Ok(code)
}

/// What Bochs used: CPU time, and the most memory. It is the only child that has ended since `before`.
fn cost_since(before: &Usage) -> Result<String> {
    let now = children_usage()?;
    let seconds = |usage: &Usage| (usage.user_time() + usage.system_time()).num_milliseconds() as f64 / 1e3;
    let cpu = seconds(&now) - seconds(before);
    Ok(format!("Bochs used {cpu:.1} CPU-s and {} MiB", now.max_rss() >> 10))
}

fn children_usage() -> Result<Usage> {
    getrusage(UsageWho::RUSAGE_CHILDREN).doing("read resource usage")
}

/// Reads records until the last one, the machine's end, a signal, or the time limit.
fn listen(
    request: &Request,
    running: &mut Running,
    listener: &mut Listener<'_>,
    signals: &SignalFd,
    report: &Report,
) -> Result<()> {
    const HEARTBEAT: Duration = Duration::from_secs(20);
    let Some(mut output) = running.take_output() else { return Ok(()) };
    let started = report.elapsed();
    let mut spoke = started;
    let mut buffer = vec![0; 256 << 10];
    while !listener.finished() {
        let ready = wait(&output, signals)?;
        let now = report.elapsed();
        if ready.output {
            let length = output.read(&mut buffer).doing("read from Bochs")?;
            if length == 0 {
                return Ok(());
            }
            listener.take(&buffer[..length])?;
            spoke = now;
        }
        if let Some(number) = ready.signal {
            return Err(Error::Signal(number));
        }
        if now - started > request.timeout {
            return Err(Error::Timeout(request.timeout.as_secs()));
        }
        if now - spoke > HEARTBEAT {
            spoke = now;
            let cpu = running.cpu_time().map_or(0.0, |time| time.as_secs_f64());
            report.step(&format!(
                "still running, no output for {} s, Bochs at {cpu:.0} CPU-s",
                HEARTBEAT.as_secs()
            ));
        }
    }
    Ok(())
}

struct Ready {
    output: bool,
    signal: Option<i32>,
}

fn wait(output: &ChildStdout, signals: &SignalFd) -> Result<Ready> {
    let mut fds =
        [PollFd::new(output.as_fd(), PollFlags::POLLIN), PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
    match poll(&mut fds, PollTimeout::from(1000u16)) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(errno) => return Err(errno).doing("wait for Bochs"),
    }
    let signal = signals.read_signal().doing("read a signal")?;
    Ok(Ready { output: fds[0].any().unwrap_or(false), signal: signal.map(|info| info.ssi_signo as i32) })
}

/// From here on Ctrl-C and SIGTERM are read, not suffered, so that Bochs is stopped and files are removed.
fn stop_signals() -> Result<SignalFd> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block().doing("block signals")?;
    SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC).doing("watch for signals")
}

fn check_executable(program: &Path) -> Result<()> {
    const ENOUGH_FOR_HEADERS: u64 = 64 << 10;
    let file = fs::File::open(program).on("open", program)?;
    let mut head = Vec::new();
    file.take(ENOUGH_FOR_HEADERS).read_to_end(&mut head).on("read", program)?;
    match kernel::wants_loader(&head) {
        None => Err(Error::NotExecutable(program.to_owned())),
        Some(true) => Err(Error::NotStatic(program.to_owned())),
        Some(false) => Ok(()),
    }
}

/// Writes the initramfs; its size.
fn pack(request: &Request, parts: &Parts, archive: &Path) -> Result<u64> {
    let own = std::env::current_exe().doing("find this executable")?;
    let modules = modules::resolve(parts, &request.modules)?;
    let job = Job {
        program: request.program.clone(),
        args: request.args.clone(),
        env: request.env.clone(),
        directory: std::env::current_dir().doing("find the working directory")?,
        modules: modules.clone(),
        collect: request.collect.iter().map(|c| c.inside.clone()).collect(),
    };
    let mut packer = Packer::create(archive)?;
    packer.console()?;
    packer.add_init(&own)?;
    packer.directory(Path::new("/tmp"))?;
    let text = serde_json::to_vec(&job).doing("describe the job")?;
    packer.add_bytes(Path::new(job::JOB), 0o600, &text)?;
    for module in &modules {
        packer.add_module(&parts.module(&module.file), &Path::new(job::MODULES).join(&module.file))?;
    }
    packer.add(&request.program, &request.program)?;
    for file in &request.files {
        packer.add(&file.source, &file.inside)?;
    }
    packer.add_bytes(Path::new(job::LAST), 0o600, b"")?;
    packer.finish()?;
    Ok(fs::metadata(archive).on("read", archive)?.len())
}
