//! What the guest says about its own beginning and end: on its console, at its power registers and its panic port, in its
//! memory.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_memory::GuestMemoryMmap;

use super::control::Control;
use super::memory::{GuestRam, RamRegion};
use super::postmortem::{self, PANIC, Postmortem};
use crate::devices::platform::power::PowerRequest;
use crate::devices::platform::pvpanic::PanicEvent;
use crate::status::model::{BootStage, EndReason};

/// Shared by the console, the power registers, the panic port and whoever tells the story.
#[derive(Debug, Clone, Default)]
pub(super) struct LastWords(Arc<Mutex<Words>>);

#[derive(Debug, Default)]
struct Words {
    on_console: Option<String>,
    in_memory: Postmortem,
    /// The kernel panicked and handed over to its crash kernel.
    crash_kernel: bool,
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
            let reset = request == PowerRequest::Reset;
            let reason = if words.lock().crash_kernel {
                // However the crash kernel ends the machine: what it ends is a panic, examined when it happened.
                words.panic()
            } else if reset && postmortem::reset_after_panic(&memory) {
                words.examine(&memory, &regions);
                words.panic()
            } else if reset {
                EndReason::Reset
            } else {
                EndReason::PowerOff
            };
            control.end(reason);
        })
    }

    /// What the panic port does: end the machine with the kernel's words, or note them when a crash kernel takes over. The
    /// guest may say it as often as it likes; its memory is searched once.
    pub(super) fn panic_listener(
        &self,
        control: Arc<Control>,
        ram: &GuestRam,
    ) -> Box<dyn Fn(PanicEvent) + Send + Sync> {
        let (words, memory, regions) = (self.clone(), ram.memory().clone(), ram.regions());
        Box::new(move |event| match event {
            PanicEvent::Panicked => {
                if !control.is_stopping() {
                    words.examine(&memory, &regions);
                    control.end(words.panic());
                }
            }
            PanicEvent::CrashLoaded => {
                if !std::mem::replace(&mut words.lock().crash_kernel, true) {
                    words.examine(&memory, &regions);
                    tracing::warn!("{}; its crash kernel goes on", words.panic());
                }
            }
        })
    }

    /// Searches guest memory for what the kernel said.
    fn examine(&self, memory: &GuestMemoryMmap, regions: &[RamRegion]) {
        let found = postmortem::examine(memory, regions);
        self.lock().in_memory = found;
    }

    /// The end by panic, in the words of the console or else of the kernel's log.
    fn panic(&self) -> EndReason {
        let words = self.lock();
        let message = words.on_console.clone().or_else(|| words.in_memory.message.clone());
        EndReason::GuestPanic { message }
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
    use std::sync::mpsc::{Receiver, channel};

    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::status::model::MachineEvent;

    #[test]
    fn the_inits_people_use_are_recognised() {
        for line in
            ["nestling-init: Linux 6.1 up in 1 s", "[    2.1] Run /init as init process", "systemd[1]: Hi"]
        {
            assert!(is_init(line), "{line}");
        }
        assert!(!is_init("[    0.1] Linux version 6.1"));
    }

    const WORDS: &str = "Kernel panic - not syncing: unit test";

    /// A guest that said [`WORDS`] in its memory, and the three things that follow from the outside.
    struct Guest {
        control: Arc<Control>,
        on_panic: Box<dyn Fn(PanicEvent) + Send + Sync>,
        on_power: Box<dyn Fn(PowerRequest) + Send + Sync>,
        events: Receiver<MachineEvent>,
    }

    fn guest() -> Guest {
        let ram = GuestRam::new(4 << 20).unwrap();
        ram.memory().write_slice(WORDS.as_bytes(), GuestAddress(0x10_0000)).unwrap();
        let (sender, events) = channel();
        let (words, control) = (LastWords::default(), Arc::new(Control::default()));
        control.listen(sender);
        Guest {
            on_panic: words.panic_listener(Arc::clone(&control), &ram),
            on_power: words.power_switch(Arc::clone(&control), &ram),
            control,
            events,
        }
    }

    fn panicked() -> MachineEvent {
        MachineEvent::Ended(EndReason::GuestPanic { message: Some(WORDS.into()) })
    }

    #[test]
    fn a_panic_told_through_the_port_is_one_end_whatever_the_guest_does_then() {
        let guest = guest();
        (guest.on_panic)(PanicEvent::Panicked);
        (guest.on_power)(PowerRequest::Reset);
        (guest.on_panic)(PanicEvent::Panicked);
        assert_eq!(guest.events.try_iter().collect::<Vec<_>>(), [panicked()]);
    }

    #[test]
    fn a_crash_kernel_goes_on_and_its_end_is_the_panics() {
        for request in [PowerRequest::Reset, PowerRequest::Off] {
            let guest = guest();
            (guest.on_panic)(PanicEvent::CrashLoaded);
            (guest.on_panic)(PanicEvent::CrashLoaded);
            assert!(!guest.control.is_stopping());
            assert_eq!(guest.events.try_iter().count(), 0);
            (guest.on_power)(request);
            assert_eq!(guest.events.try_iter().collect::<Vec<_>>(), [panicked()]);
        }
    }

    #[test]
    fn a_reset_without_a_panic_is_a_reset_whatever_is_in_memory() {
        let guest = guest();
        (guest.on_power)(PowerRequest::Reset);
        assert_eq!(guest.events.try_iter().collect::<Vec<_>>(), [MachineEvent::Ended(EndReason::Reset)]);
    }
}
