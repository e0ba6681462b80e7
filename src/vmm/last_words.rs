//! What the guest says about its own beginning and end: on its console, at its power registers, in its memory.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::control::Control;
use super::memory::GuestRam;
use super::postmortem::{self, PANIC, Postmortem};
use crate::devices::platform::power::PowerRequest;
use crate::status::model::{BootStage, EndReason};

/// Shared by the console, the power registers and whoever tells the story.
#[derive(Debug, Clone, Default)]
pub(super) struct LastWords(Arc<Mutex<Words>>);

#[derive(Debug, Default)]
struct Words {
    on_console: Option<String>,
    in_memory: Postmortem,
}

impl LastWords {
    /// Watches the console for the lines that mean something to us.
    pub(super) fn line_watcher(&self, control: Arc<Control>) -> impl Fn(&str) + Send + Sync + 'static {
        let words = self.clone();
        move |line| {
            if is_init(line) {
                control.reach(BootStage::Init);
            }
            if let Some(at) = line.find(PANIC) {
                words.lock().on_console = line.get(at..).map(str::to_owned);
            }
        }
    }

    /// What the power registers do: end the machine, and find out why it was reset.
    pub(super) fn power_switch(
        &self,
        control: Arc<Control>,
        ram: &GuestRam,
    ) -> Box<dyn Fn(PowerRequest) + Send + Sync> {
        let (words, memory, regions) = (self.clone(), ram.memory().clone(), ram.regions());
        Box::new(move |request| {
            let reason = match request {
                PowerRequest::Off => EndReason::PowerOff,
                PowerRequest::Reset if postmortem::reset_after_panic(&memory) => {
                    let mut words = words.lock();
                    words.in_memory = postmortem::examine(&memory, &regions);
                    let message = words.on_console.clone().or_else(|| words.in_memory.message.clone());
                    EndReason::GuestPanic { message }
                }
                PowerRequest::Reset => EndReason::Reset,
            };
            control.end(reason);
        })
    }

    /// The last lines of the kernel's log, if it panicked.
    pub(super) fn kernel_log(&self) -> Vec<String> {
        self.lock().in_memory.log.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Words> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a console line says that the guest's init runs: our own, systemd, OpenRC, BusyBox, or the kernel itself.
fn is_init(line: &str) -> bool {
    const SIGNS: [&str; 5] =
        ["nestling-init:", "systemd[1]:", "OpenRC ", "init started: BusyBox", "as init process"];
    SIGNS.iter().any(|sign| line.contains(sign))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_inits_people_use_are_recognised() {
        for line in
            ["nestling-init: Linux 6.1 up in 1 s", "[    2.1] Run /init as init process", "systemd[1]: Hi"]
        {
            assert!(is_init(line), "{line}");
        }
        assert!(!is_init("[    0.1] Linux version 6.1"));
    }
}
