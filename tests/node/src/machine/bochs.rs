//! The Bochs process: configuration, power-on, power-off.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::prctl;
use nix::sys::signal::Signal;

use super::boot_info::{ACPI_BYTES, BootInfo, HANDOFF};
use super::rom;
use crate::error::{Doing, Error, Result};
use crate::logs::Logs;
use crate::setup::Parts;

/// The instructions that make an emulated second. Bochs does a quarter to a third of this in a real one.
const INSTRUCTIONS_PER_SECOND: u32 = 400_000_000;
/// The most memory that Bochs takes from the host.
const HOST_MEMORY_LIMIT_MIB: u64 = 2048;
/// The wall clock at power-on, 2026-01-01: the same in every run, so that runs are the same.
const POWER_ON_TIME: u32 = 1_767_225_600;

/// Linux settings that save most of a boot's instructions, and make runs repeat.
const COMMAND_LINE: &str = "console=ttyS0,115200 earlyprintk=ttyS0,115200 reboot=t panic=-1 mitigations=off nokaslr quiet \
     cryptomgr.notests=1";
/// IA32_MISC_ENABLE with its fast-string bit, which Bochs leaves out.
/// (address, type, then high and low halves of: reset value, reserved bits, ignored bits)
const FAST_STRINGS: &str = "0x1a0 0  00000000 00000001  00000000 00000000  00000000 00000000\n";

/// These two cost more than the rest of the boot; later kernels need the second one.
const SKIPPED_INITCALLS: [&str; 2] = ["load_system_certificate_list", "crypto_algapi_init"];

/// A machine before power-on.
pub(crate) struct Machine<'a> {
    pub parts: &'a Parts,
    pub logs: &'a Logs,
    pub memory_mib: u64,
    /// Whether Linux may use `rep movsb` and its like.
    pub fast_strings: bool,
    /// The archive's file name in the run's directory.
    pub initramfs: &'a str,
    /// Goes behind what is needed anyway.
    pub command_line: &'a str,
}

/// A machine that runs. Dropping it cuts the power.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
}

impl Machine<'_> {
    /// Writes the power-on state into the run's directory and starts Bochs there.
    pub(crate) fn power_on(&self) -> Result<Running> {
        let path = self.logs.path(self.initramfs);
        let initramfs_bytes = fs::metadata(&path).on("read", &path)?.len();
        let initramfs = self.parts.kernel.end.next_multiple_of(2 << 20);
        self.check_size(initramfs + initramfs_bytes)?;
        let info = BootInfo {
            entry: self.parts.kernel.entry,
            memory_bytes: self.memory_mib << 20,
            initramfs,
            initramfs_bytes,
            command_line: &self.command_line(),
        };
        self.write("rom", &rom::image())?;
        self.write("boot-info", &info.page()?)?;
        self.write("msrs", if self.fast_strings { FAST_STRINGS } else { "" }.as_bytes())?;
        self.write("bochsrc", self.configuration(initramfs).as_bytes())?;
        self.link("kernel", &self.parts.kernel_image())?;
        self.link("bios", &self.parts.machine.join("BIOS-bochs-latest"))?;
        self.link("vgabios", &self.parts.machine.join("vgabios.bin"))?;
        self.start()
    }

    fn start(&self) -> Result<Running> {
        let errors = self.logs.path("bochs.stderr");
        let errors = File::create(&errors).on("create", &errors)?;
        let mut bochs = Command::new(&self.parts.bochs);
        bochs.args(["-q", "-f", "bochsrc"]).current_dir(self.logs.directory());
        bochs.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors).process_group(0);
        // SAFETY: between fork and exec this makes one system call and touches no memory of the parent.
        unsafe {
            bochs.pre_exec(|| Ok(prctl::set_pdeathsig(Signal::SIGKILL)?));
        }
        let child = bochs.spawn().on("start", &self.parts.bochs)?;
        Ok(Running { child })
    }

    fn check_size(&self, end: u64) -> Result<()> {
        // Linux needs room to unpack the archive into, and the BIOS' tables are on top.
        let needed_mib = (end + ACPI_BYTES).div_ceil(1 << 20);
        if needed_mib > self.memory_mib {
            return Err(Error::TooLarge { needed_mib, memory_mib: self.memory_mib });
        }
        Ok(())
    }

    fn command_line(&self) -> String {
        let old = ["5.", "6.1."].iter().any(|version| self.parts.release.starts_with(version));
        let skipped = if old { &SKIPPED_INITCALLS[..] } else { &SKIPPED_INITCALLS[..1] };
        format!("{COMMAND_LINE} initcall_blacklist={} {}", skipped.join(","), self.command_line)
    }

    fn configuration(&self, initramfs: u64) -> String {
        let mut text = String::new();
        let mut line = |setting: std::fmt::Arguments<'_>| {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{setting}");
        };
        line(format_args!("config_interface: textconfig"));
        line(format_args!("display_library: nogui"));
        // More than the host's share goes to a file, should the node ever touch so much.
        line(format_args!(
            "memory: guest={}, host={}",
            self.memory_mib,
            self.memory_mib.min(HOST_MEMORY_LIMIT_MIB)
        ));
        line(format_args!("romimage: file=bios"));
        line(format_args!("vgaromimage: file=vgabios"));
        line(format_args!("optromimage1: file=rom, address={:#x}", rom::ADDRESS));
        line(format_args!("optramimage1: file=boot-info, address={HANDOFF:#x}"));
        line(format_args!("optramimage2: file=kernel, address={:#x}", self.parts.kernel.load));
        line(format_args!("optramimage3: file={}, address={initramfs:#x}", self.initramfs));
        // Haswell is the newest model whose time stamp counter agrees with the clock, and the VT-x that clouds ask for.
        line(format_args!(
            "cpu: model=corei7_haswell_4770, count=1, ips={INSTRUCTIONS_PER_SECOND}, reset_on_triple_fault=0, \
             ignore_bad_msrs=1, msrs=msrs"
        ));
        line(format_args!("clock: sync=none, time0={POWER_ON_TIME}"));
        line(format_args!("pci: enabled=1, chipset=i440fx"));
        line(format_args!("com1: enabled=1, mode=file, dev=console.log"));
        line(format_args!("port_e9_hack: enabled=1"));
        line(format_args!("mouse: enabled=0"));
        line(format_args!("log: bochs.log"));
        line(format_args!("panic: action=fatal"));
        for level in ["error", "info", "debug"] {
            line(format_args!("{level}: action=ignore"));
        }
        text
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.logs.path(name);
        fs::write(&path, bytes).on("write", &path)
    }

    fn link(&self, name: &str, target: &Path) -> Result<()> {
        let path = self.logs.path(name);
        symlink(target, &path).on("link", &path)
    }
}

impl Running {
    /// The stream of records, to be had once.
    pub(crate) fn take_output(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// Waits for a machine that is powering itself off; cuts the power if it does not within `patience`.
    pub(crate) fn power_off(&mut self, patience: Duration) -> Result<ExitStatus> {
        let end = std::time::Instant::now() + patience;
        while std::time::Instant::now() < end {
            if let Some(status) = self.child.try_wait().doing("wait for Bochs")? {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.child.kill().doing("stop Bochs")?;
        self.child.wait().doing("wait for Bochs")
    }

    /// The CPU time it has used so far.
    pub(crate) fn cpu_time(&self) -> Option<Duration> {
        const USER_TICK: Duration = Duration::from_millis(10);
        const FIELDS_TO_UTIME: usize = 11;
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).ok()?;
        let (_, after_name) = stat.rsplit_once(')')?;
        let mut fields = after_name.split_ascii_whitespace().skip(FIELDS_TO_UTIME);
        let (user, system): (u32, u32) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        Some(USER_TICK * (user + system))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may be gone already: then there is nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
