//! Signals of this process: blocked everywhere, and taken by one thread.

use std::sync::mpsc::Sender;

use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, signal, sigprocmask};

use crate::agent::Happening;
use crate::children;
use crate::power::End;

/// The signals that are waited for; they stay blocked, so none is lost between two waits.
const AWAITED: [Signal; 6] =
    [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGPWR, Signal::SIGUSR1, Signal::SIGUSR2];

/// Blocks them, for this thread and all that it starts; a peer that hangs up is an error of a write, not a signal.
pub(crate) fn block() {
    let awaited = AWAITED.into_iter().collect::<SigSet>();
    if let Err(error) = sigprocmask(SigmaskHow::SIG_BLOCK, Some(&awaited), None) {
        crate::say!("cannot block signals: {error}");
    }
    // SAFETY: to ignore a signal is no function of ours.
    if let Err(error) = unsafe { signal(Signal::SIGPIPE, SigHandler::SigIgn) } {
        crate::say!("cannot ignore SIGPIPE: {error}");
    }
}

/// Takes them from now on: children that end are reaped, orders are passed on.
pub(crate) fn watch(happenings: Sender<Happening>) -> std::io::Result<()> {
    let work = move || {
        let awaited = AWAITED.into_iter().collect::<SigSet>();
        loop {
            children::reap();
            if let Some(end) = awaited.wait().ok().and_then(order)
                && happenings.send(Happening::Told(end)).is_err()
            {
                crate::say!("a signal came too late, all is ending");
            }
        }
    };
    std::thread::Builder::new().name("signals".into()).stack_size(64 << 10).spawn(work).map(drop)
}

/// What a signal orders, as busybox's init understands it, save SIGTERM, which stops the machine as it stops a container.
fn order(signal: Signal) -> Option<End> {
    match signal {
        Signal::SIGTERM | Signal::SIGPWR | Signal::SIGINT | Signal::SIGUSR2 => Some(End::PowerOff),
        Signal::SIGUSR1 => Some(End::Halt),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_those_of_an_init() {
        assert_eq!(order(Signal::SIGCHLD), None);
        assert_eq!(order(Signal::SIGTERM), Some(End::PowerOff));
        assert_eq!(order(Signal::SIGUSR1), Some(End::Halt));
    }
}
