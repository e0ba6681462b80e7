//! The console: which terminal it is, and making it descriptors 0 to 2.
//!
//! A stock kernel has virtio-console as a module, so when init starts there may be no console at all and its
//! descriptors are closed. Once the modules are in, the terminal behind `/dev/console` is opened by its own name,
//! because only so can it become a workload's controlling terminal.

use std::os::fd::{AsRawFd, IntoRawFd};
use std::thread::sleep;
use std::time::Duration;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout};

use crate::cmdline::Cmdline;

/// The kernel's list of its consoles; the last one is `/dev/console`.
const ACTIVE: &str = "/sys/class/tty/console/active";

/// How often, and how long, to look for the console that the command line names: a console device with several
/// ports registers them from a work queue, some time after its module is loaded.
const LOOKS: u32 = 100;
const BETWEEN_LOOKS: Duration = Duration::from_millis(10);

/// Opens the console as standard input, output and error. To be done again whenever a session that had it as its
/// terminal has ended: that hangs the terminal up for everybody, and what is written then is lost.
pub(crate) fn take(cmdline: &Cmdline) {
    let active = wait_for(cmdline.console());
    let named = active.iter().map(|name| format!("/dev/{name}"));
    let usual = ["/dev/console", "/dev/hvc0", "/dev/ttyS0", "/dev/null"].map(String::from);
    for path in named.chain(usual) {
        // Not our controlling terminal: it is to be the workload's.
        let Ok(terminal) = open(path.as_str(), OFlag::O_RDWR | OFlag::O_NOCTTY, Mode::empty()) else {
            continue;
        };
        let duplicated = dup2_stdin(&terminal).and(dup2_stdout(&terminal)).and(dup2_stderr(&terminal));
        // With descriptors closed at the start, `terminal` is one of the three itself and has to stay open.
        if terminal.as_raw_fd() <= libc::STDERR_FILENO {
            let _kept = terminal.into_raw_fd();
        }
        match duplicated {
            Ok(()) => return,
            Err(error) => crate::say!("cannot take {path} as the console: {}", error.desc()),
        }
    }
    crate::say!("there is no console, and no /dev/null either");
}

/// The name of the terminal behind `/dev/console`; waits a while for the one that was asked for.
fn wait_for(wanted: Option<&str>) -> Option<String> {
    let mut names = active();
    for _ in 0..LOOKS {
        let there = wanted.is_none_or(|wanted| names.iter().any(|name| name == wanted));
        // A virtual terminal is always `tty0` here; an early console never shows up. Neither is worth a wait.
        if there || !wanted.is_some_and(|name| name.starts_with("hvc")) {
            break;
        }
        sleep(BETWEEN_LOOKS);
        names = active();
    }
    names.pop()
}

fn active() -> Vec<String> {
    let text = std::fs::read_to_string(ACTIVE).unwrap_or_default();
    text.split_whitespace().map(String::from).collect()
}
