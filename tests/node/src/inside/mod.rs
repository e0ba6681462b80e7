//! The machine from within: PID 1 mounts, loads `kvm_intel`, runs the program, tells the host everything.

mod mounts;
mod port_e9;
mod program;
mod send_back;
mod vtx;

use std::error::Error as _;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use nix::sys::reboot::{RebootMode, reboot};

use crate::error::{Doing, Error, Result};
use crate::job::{self, Job, Module};
use crate::wire::Kind;
use port_e9::PortE9;

/// From the first instruction in user space to power-off.
pub(crate) fn live() -> ! {
    let end = PortE9::open().doing("open Bochs' debug port").and_then(|mut port| {
        let end = life(&mut port);
        drain_console();
        match &end {
            Ok(code) => port.send(Kind::Exit, &code.to_le_bytes()),
            Err(error) => {
                send_kernel_log(&mut port);
                port.send(Kind::Failure, sentence(error).as_bytes());
            }
        }
        end
    });
    if let Err(error) = end {
        // Standard error is the serial console.
        eprintln!("nestling-node: {}", sentence(&error));
        drain_console();
    }
    // The kernel panics if this fails, which ends the machine as well.
    let _ = reboot(RebootMode::RB_POWER_OFF);
    std::process::exit(1);
}

fn life(port: &mut PortE9) -> Result<i32> {
    mounts::mount_all()?;
    let job = Path::new(job::JOB);
    let job: Job = serde_json::from_slice(&fs::read(job).on("read", job)?).on("understand", job)?;
    if !Path::new(job::LAST).exists() {
        return Err(Error::Unfit(
            "the files do not fit into half of the node's memory: raise --memory or pack fewer",
        ));
    }
    mounts::bring_loopback_up()?;
    port.stage("user space");
    for module in &job.modules {
        load(module)?;
    }
    port.stage(&vtx::describe()?);
    fs::create_dir_all(&job.directory).on("create", &job.directory)?;
    port.stage(&format!("running {}", job.program.display()));
    let code = program::run(&job, port)?;
    port.stage(&format!("program ended with exit code {code}"));
    if code != 0 {
        send_kernel_log(port);
    }
    for (index, path) in job.collect.iter().enumerate() {
        send_back::send(index, path, port)?;
    }
    Ok(code)
}

fn load(module: &Module) -> Result<()> {
    let path = Path::new(job::MODULES).join(&module.file);
    let file = File::open(&path).on("open", &path)?;
    let parameters = std::ffi::CString::new(module.parameters.as_str()).doing("pass module parameters")?;
    nix::kmod::finit_module(&file, &parameters, nix::kmod::ModuleInitFlags::empty()).on("load", &path)
}

/// Everything in the kernel's ring buffer, quiet or not.
fn send_kernel_log(port: &mut PortE9) {
    const READ_ALL: libc::c_int = 3;
    let mut log = vec![0u8; 1 << 20];
    // SAFETY: the kernel writes at most the given number of bytes into the buffer.
    let length = unsafe { libc::klogctl(READ_ALL, log.as_mut_ptr().cast(), log.len() as libc::c_int) };
    log.truncate(usize::try_from(length).unwrap_or(0));
    port.send(Kind::KernelLog, &log);
}

/// The UART still holds the last lines: waits until they are out.
fn drain_console() {
    const ONE_FIFO: Duration = Duration::from_millis(5);
    if let Ok(console) = File::options().write(true).open("/dev/ttyS0") {
        // SAFETY: an open file descriptor is all it needs.
        unsafe { libc::tcdrain(console.as_raw_fd()) };
        std::thread::sleep(ONE_FIFO);
    }
}

fn sentence(error: &Error) -> String {
    error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}
