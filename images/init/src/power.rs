//! The end: everybody is told, the disks are left clean, the machine stops.

use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::reboot::{RebootMode, reboot, set_cad_enabled};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::children::{self, Left};

/// How long processes may take between SIGTERM and SIGKILL.
pub(crate) const GRACE: Duration = Duration::from_secs(2);

/// How the machine stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    PowerOff,
    Reboot,
    Halt,
}

/// Ctrl-Alt-Del comes to us as SIGINT instead of resetting the machine at once.
pub(crate) fn ctrl_alt_del_as_signal() {
    if let Err(error) = set_cad_enabled(false) {
        crate::say!("cannot have Ctrl-Alt-Del as a signal: {}", error.desc());
    }
}

impl From<End> for nestling_protocol::End {
    fn from(end: End) -> Self {
        match end {
            End::PowerOff => Self::PowerOff,
            End::Reboot => Self::Reboot,
            End::Halt => Self::Halt,
        }
    }
}

/// Stops everybody, leaves the disks clean, stops the machine.
pub(crate) fn end(how: End) -> ! {
    stop_processes(GRACE);
    leave_disks_clean();
    stop_machine(how)
}

/// Nothing is left unwritten, and nothing mounted that could be dirty.
pub(crate) fn leave_disks_clean() {
    nix::unistd::sync();
    crate::mounts::release_disks();
}

/// Stops the machine. Never returns: should the kernel refuse, it sleeps for ever, for PID 1 must not end.
pub(crate) fn stop_machine(how: End) -> ! {
    let mode = match how {
        End::PowerOff => RebootMode::RB_POWER_OFF,
        End::Reboot => RebootMode::RB_AUTOBOOT,
        End::Halt => RebootMode::RB_HALT_SYSTEM,
    };
    let Err(refusal) = reboot(mode);
    crate::say!("the kernel refuses to stop the machine: {}", refusal.desc());
    loop {
        sleep(Duration::from_secs(3600));
    }
}

/// SIGTERM to all, a while to end, SIGKILL to the rest. As PID 1 only: elsewhere, "all" is the whole system.
pub(crate) fn stop_processes(grace: Duration) {
    let everyone = Pid::from_raw(-1);
    for (signal, patience) in [(Signal::SIGTERM, grace), (Signal::SIGKILL, GRACE)] {
        // ESRCH: nobody is left. A stopped process has to be woken to see the signal.
        if kill(everyone, signal).is_err() {
            return;
        }
        let _nobody_left = kill(everyone, Signal::SIGCONT);
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            if children::reap() == Left::None {
                return;
            }
            sleep(Duration::from_millis(5));
        }
    }
}
