//! PID 1 of a minimal guest: mounts the kernel's filesystems, loads modules, takes the console, runs one workload (or
//! a shell), and powers the machine off.
//!
//! PID 1 must never end, for then the kernel panics: every path through [`boot`] leads to [`power::end`], a panic
//! included, and every failure on the way is one sentence on the console.
//!
//! The standard library's own start is left out (`no_main`): it aborts when descriptors 0 to 2 are closed and there is
//! no `/dev/null` yet, which is just how a kernel without a console leaves things.
#![cfg_attr(not(test), no_main)]

mod cmdline;
mod console;
mod kmod;
mod mounts;
mod network;
mod power;
mod report;
mod workload;

use cmdline::Cmdline;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use power::End;
use workload::{Event, Workload};

/// How often a shell that ended is started again, when there is no workload.
const SHELL_RESPAWNS: u32 = 5;

/// The signals that PID 1 waits for; they stay blocked, so none is lost between two waits.
const AWAITED: [Signal; 6] =
    [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGPWR, Signal::SIGUSR1, Signal::SIGUSR2];

/// Where C's start code enters; the arguments are read through `std::env`.
#[cfg_attr(not(test), unsafe(no_mangle))]
#[cfg_attr(test, allow(dead_code))]
extern "C" fn main() -> i32 {
    if std::process::id() != 1 {
        say!("this is the init of a guest: it mounts, loads and powers off, and so runs as PID 1 only");
        return 1;
    }
    std::panic::set_hook(Box::new(|panic| {
        say!("internal error, powering off: {panic}");
        power::end(End::PowerOff);
    }));
    boot();
}

/// The whole life of the guest, in order.
fn boot() -> ! {
    let awaited = AWAITED.into_iter().collect::<SigSet>();
    if let Err(error) = sigprocmask(SigmaskHow::SIG_BLOCK, Some(&awaited), None) {
        say!("cannot block signals: {error}");
    }
    mounts::mount_all();
    let cmdline = Cmdline::read();
    kmod::load_listed();
    console::take(&cmdline);
    network::name_host(cmdline.hostname());
    network::loopback_up();
    report::greet();
    power::ctrl_alt_del_as_signal();

    let command = cmdline.workload(std::env::args_os().skip(1).collect());
    let end = if command.is_empty() { idle(&awaited, &cmdline) } else { run(&command, &awaited, &cmdline) };
    power::end(end)
}

/// Runs the workload to its end, says how it ended, and returns what to do then.
fn run(command: &[std::ffi::OsString], awaited: &SigSet, cmdline: &Cmdline) -> End {
    match Workload::start(command) {
        Ok(workload) => match workload.wait(awaited) {
            Event::Ended(outcome) => {
                console::take(cmdline);
                say!("workload {outcome}");
                cmdline.end()
            }
            Event::Told(end) => end,
        },
        Err(error) => {
            console::take(cmdline);
            say!("{error}");
            say!("workload exited with status {}", error.status());
            cmdline.end()
        }
    }
}

/// No workload: a shell if there is one, started again a few times; else wait until told to stop.
fn idle(awaited: &SigSet, cmdline: &Cmdline) -> End {
    let shell = [workload::SHELL.into()];
    for _ in 0..=SHELL_RESPAWNS {
        if !std::path::Path::new(workload::SHELL).exists() {
            say!(
                "no workload after `--` on the command line and no {}: waiting to be powered off",
                workload::SHELL
            );
            return workload::wait_until_told(awaited);
        }
        match Workload::start(&shell) {
            Ok(started) => match started.wait(awaited) {
                Event::Ended(outcome) => {
                    console::take(cmdline);
                    say!("{} {outcome}", workload::SHELL);
                }
                Event::Told(end) => return end,
            },
            Err(error) => {
                console::take(cmdline);
                say!("{error}");
            }
        }
    }
    say!("{} ended {} times: ending", workload::SHELL, SHELL_RESPAWNS + 1);
    cmdline.end()
}
