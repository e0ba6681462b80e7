//! `nestling run`: flags and a spec become a plan, and the agent runs it.

use std::path::PathBuf;

use clap::Args;

use super::{log, output};
use crate::agent;
use crate::agent::chain::chain;
use crate::agent::exit::Exit;
use crate::spec::config::{Config, Given, LogFormat};
use crate::spec::disk::DiskConfig;
use crate::spec::error::SpecError;
use crate::spec::net::NetConfig;
use crate::spec::plan::RunPlan;
use crate::spec::port::PortConfig;
use crate::spec::share::ShareConfig;
use crate::spec::vsock::VsockConfig;
use crate::spec::yaml;
use crate::status::clock::Clock;
use crate::status::model::EndReason;

const EXAMPLES: &str = "\
Examples:
  nestling run --kernel vmlinuz --initrd initrd.img --memory 512M --cpus 2
  nestling run --kernel vmlinux --disk /data/root.img --cmdline 'systemd.unit=rescue.target'
  nestling run --kernel vmlinux --disk path=/data/base.img,readonly=true --disk path=/data/work.img
  nestling run vm.yaml --memory 2Gi
  nestling run --kernel vmlinux --initrd nestling-initramfs.cpio -- /bin/sh -c 'uname -a; nproc'

A spec has one key per flag, with the same name:
  kernel: /boot/vmlinuz
  initrd: /boot/initrd.img
  cmdline: loglevel=7
  cpus: 2
  memory: 512M
  disk:
    - path: /data/base.img
      readonly: true

The guest's console is on stdout, Nestling's own log on stderr (filter: NESTLING_LOG=debug).
SIGTERM or SIGINT stops the machine; a second one leaves at once.
Exit codes: 0 the guest powered off, 130 or 143 stopped, 200 preflight, 201 bad input, 203 guest panic,
204 guest reset, 205 triple fault, 206 KVM error, 207 watchdog, 209 killed, 210 internal error. They tell how the VM
ended; with `--agent on` and an agent in the guest, 1 to 199 is how its command ended.";

/// Boot the VM and stay with it until it ends
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES, after_help = "See --help for examples and exit codes.")]
pub(super) struct RunArgs {
    /// A YAML spec; a flag wins over the key of the same name
    #[arg(value_name = "SPEC.yaml")]
    spec: Option<PathBuf>,

    /// Kernel image: an ELF vmlinux or a bzImage
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,

    /// Initial RAM disk, loaded as it is
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,

    /// Text appended to the kernel command line that Nestling computes (console, root, boot hints)
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    cmdline: Option<String>,

    /// The whole kernel command line, in place of what Nestling computes
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    cmdline_replace: Option<String>,

    /// vCPUs: 1 to 32, or auto for as many as this process may use [default: 1]
    #[arg(long, value_name = "N|auto", allow_negative_numbers = true)]
    cpus: Option<String>,

    /// Guest RAM, a multiple of 2 MiB from 32M up; K, M, G, T (also Mi, MiB, …) are powers of 1024, a plain number
    /// counts bytes [default: 256M]
    #[arg(long, value_name = "SIZE|auto", allow_negative_numbers = true)]
    memory: Option<String>,

    /// A disk, repeatable; the first is the guest's vda. FILE, or `path=FILE`, or `partition=LABEL:FILE[:ro]` for each
    /// partition; then `,readonly=true`, `,format=qcow2`, `,direct=true`, `,serial=S`, `,queues=N`,
    /// `,cache=writethrough`, `,io=threads`, `,bytes-per-second=50M`, … if wanted: docs/spec.md has them all
    #[arg(long, value_name = "DISK")]
    disk: Vec<String>,

    /// A named character port, repeatable: `name=NAME,path=SOCKET`. The guest has it as /dev/virtio-ports/NAME, the host
    /// as a Unix socket for one client at a time
    #[arg(long, value_name = "PORT")]
    port: Vec<String>,
    /// A directory of the host for the guest, repeatable: `tag=T,dir=D`, then `,readonly=true` and
    /// `,cache=auto|never|always` if wanted; or `tag=T,socket=S` of a virtiofsd you run. In the guest:
    /// `mount -t virtiofs T /mnt`
    #[arg(long, value_name = "SHARE")]
    share: Vec<String>,
    /// Streams between programs of the guest and of the host: `cid=N,path=FILE`. The host's connect to the Unix socket FILE
    /// and say `CONNECT <port>`; the guest reaches `FILE_<port>` as that port of cid 2. Or `cid=N,vhost=true`: the node's
    /// own AF_VSOCK, through /dev/vhost-vsock, where N is no other VM's. With a FILE, `cid=` may be left out: then it is 3
    #[arg(long, value_name = "VSOCK")]
    vsock: Option<String>,

    /// A network interface, repeatable: `tap` for a new tap, `tap=NAME` for one that is there, or `tap,fd=N` for an inherited
    /// descriptor of one; then `,mac=…`, `,mtu=N`, `,queues=N`, `,vhost=on|off` and `,rx-bytes-per-second=SIZE` (also
    /// rx-packets, tx-…) if wanted
    #[arg(long, value_name = "NET")]
    net: Vec<String>,

    /// The guest's console: virtio (hvc0) or serial (ttyS0) [default: virtio]
    #[arg(long, value_name = "KIND")]
    console: Option<String>,

    /// Listen to an agent in the guest, which tells how the workload ended: on or off [default: off]
    #[arg(long, value_name = "on|off")]
    agent: Option<String>,
    /// The guest's watchdog, which ends the VM when the guest starts it and then falls silent: on or off [default: on]
    #[arg(long, value_name = "on|off")]
    watchdog: Option<String>,
    /// The balloon, by which the host gets free guest memory back: `on` or `off`; then `,deflate-on-oom=on|off` and
    /// `,free-page-reporting=on|off` if wanted [default: on, both on]
    #[arg(long, value_name = "on|off")]
    balloon: Option<String>,

    /// Limit of the entropy device: `bytes-per-second=SIZE` [default: none]
    #[arg(long, value_name = "LIMIT")]
    rng: Option<String>,
    /// Console output that `nestling logs` and `nestling attach` can show again, 4K to 64M [default: 256K]
    #[arg(long, value_name = "SIZE")]
    console_history: Option<String>,

    /// Where to serve the status [default: /run/nestling/nestling.sock]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,

    /// Also keep the status in this file, replaced as a whole at each change of state; it stays after the end
    #[arg(long, value_name = "FILE")]
    status_file: Option<PathBuf>,

    /// Which KVM will do: hardware (VT-x or AMD-V), or any that answers on /dev/kvm [default: hardware]
    #[arg(long, value_name = "WHICH")]
    allow_backend: Option<String>,

    /// Form of the log on stderr: text or json [default: text]
    #[arg(long, value_name = "FORM")]
    log_format: Option<String>,

    /// The command the guest's init runs, handed over on the kernel command line (Nestling's own init powers off when
    /// it ends)
    #[arg(last = true, value_name = "CMD")]
    command: Vec<String>,
}

/// Runs the command.
pub(super) fn run(args: &RunArgs, clock: Clock) -> Exit {
    let mut format = args.log_format();
    let ended = plan(args, &mut format)
        .map_err(|error| agent::limits::name(EndReason::BadInput { detail: chain(&error) }))
        .and_then(|plan| agent::run::run(&plan, clock));
    ended.unwrap_or_else(|reason| {
        complain(&reason, format);
        agent::run::refuse(&reason)
    })
}

/// Says why there was no VM, in the form of the log.
fn complain(reason: &EndReason, format: LogFormat) {
    match format {
        LogFormat::Text => output::complain(&reason.to_string()),
        LogFormat::Json => {
            // A filter that is none has been refused by now, or is what is being said.
            let _ = log::start(format);
            tracing::error!(target: "nestling", "{reason}");
        }
    }
}

/// The plan, with the log started in the form that was asked for, which is put into `format`.
fn plan(args: &RunArgs, format: &mut LogFormat) -> Result<RunPlan, SpecError> {
    let spec = args.spec.as_deref().map(yaml::read).transpose()?.unwrap_or_default();
    if args.log_format.is_none() {
        *format = spec.log_format().unwrap_or_default();
    }
    let config = spec.overridden_by(args.to_config()?);
    log::start(config.log_format()?)?;
    config.resolve()
}

impl RunArgs {
    /// The form of the log as the flag says it: what goes wrong before a spec is read is told in it too.
    fn log_format(&self) -> LogFormat {
        if self.log_format.as_deref() == Some("json") { LogFormat::Json } else { LogFormat::Text }
    }

    fn to_config(&self) -> Result<Config, SpecError> {
        Ok(Config {
            kernel: given("--kernel", self.kernel.as_ref()),
            initrd: given("--initrd", self.initrd.as_ref()),
            cmdline: given("--cmdline", self.cmdline.as_ref()),
            cmdline_replace: given("--cmdline-replace", self.cmdline_replace.as_ref()),
            command: (!self.command.is_empty()).then(|| Given::by_flag("--", self.command.clone())),
            cpus: given("--cpus", self.cpus.as_ref()),
            memory: given("--memory", self.memory.as_ref()),
            disk: self.disk.iter().map(|text| disk(text)).collect::<Result<_, _>>()?,
            port: self.port.iter().map(|text| port(text)).collect::<Result<_, _>>()?,
            share: self.share.iter().map(|text| share(text)).collect::<Result<_, _>>()?,
            vsock: self.vsock.as_deref().map(vsock).transpose()?,
            net: self.net.iter().map(|text| net(text)).collect::<Result<_, _>>()?,
            console: given("--console", self.console.as_ref()),
            agent: given("--agent", self.agent.as_ref()),
            watchdog: given("--watchdog", self.watchdog.as_ref()),
            balloon: given("--balloon", self.balloon.as_ref()),
            rng: given("--rng", self.rng.as_ref()),
            console_history: given("--console-history", self.console_history.as_ref()),
            socket: given("--socket", self.socket.as_ref()),
            status_file: given("--status-file", self.status_file.as_ref()),
            allow_backend: given("--allow-backend", self.allow_backend.as_ref()),
            log_format: given("--log-format", self.log_format.as_ref()),
        })
    }
}

fn given<T: Clone>(flag: &'static str, value: Option<&T>) -> Option<Given<T>> {
    value.map(|value| Given::by_flag(flag, value.clone()))
}

fn disk(text: &str) -> Result<Given<DiskConfig>, SpecError> {
    let disk = DiskConfig::parse(text).map_err(|problem| Given::by_flag("--disk", ()).refuse(problem))?;
    Ok(Given::by_flag("--disk", disk))
}

fn port(text: &str) -> Result<Given<PortConfig>, SpecError> {
    let port = PortConfig::parse(text).map_err(|problem| Given::by_flag("--port", ()).refuse(problem))?;
    Ok(Given::by_flag("--port", port))
}

fn share(text: &str) -> Result<Given<ShareConfig>, SpecError> {
    let share = ShareConfig::parse(text).map_err(|problem| Given::by_flag("--share", ()).refuse(problem))?;
    Ok(Given::by_flag("--share", share))
}

fn vsock(text: &str) -> Result<Given<VsockConfig>, SpecError> {
    let vsock = VsockConfig::parse(text).map_err(|problem| Given::by_flag("--vsock", ()).refuse(problem))?;
    Ok(Given::by_flag("--vsock", vsock))
}

fn net(text: &str) -> Result<Given<NetConfig>, SpecError> {
    let net = NetConfig::parse(text).map_err(|problem| Given::by_flag("--net", ()).refuse(problem))?;
    Ok(Given::by_flag("--net", net))
}
