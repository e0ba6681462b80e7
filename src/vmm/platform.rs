//! The platform devices of one machine: panic port, generation ID, power button, watchdog.

use std::io;
use std::sync::Arc;

use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use super::Machine;
use super::control::Control;
use super::error::{MachineError, resource};
use super::wiring::KvmWiring;
use crate::devices::bus::Bus;
use crate::devices::platform::generation::GenerationId;
use crate::devices::platform::pvpanic::{self, PanicEvent, PvPanic};
use crate::devices::platform::watchdog::{self, Watchdog};
use crate::spec::plan::MachinePlan;
use crate::status::model::EndReason;
use crate::x86::layout::{GENERATION_ID_GSI, GENERATION_ID_START, POWER_BUTTON_GSI, PVPANIC_PORT};

/// The name the watchdog has on its bus, and so in the status.
const WATCHDOG: &str = "watchdog";

/// What somebody outside a vCPU still has to reach.
pub(super) struct Platform {
    watchdog: Option<Arc<Watchdog>>,
    generation: GenerationId,
    power_button: EventFd,
}

impl Platform {
    /// Builds them and puts those with registers on the port bus.
    pub(super) fn assemble(
        plan: &MachinePlan,
        memory: &GuestMemoryMmap,
        wiring: &KvmWiring,
        control: &Arc<Control>,
        on_panic: Box<dyn Fn(PanicEvent) + Send + Sync>,
        pio: &mut Bus,
    ) -> Result<Self, MachineError> {
        let power_button =
            wiring.pin(POWER_BUTTON_GSI).map_err(resource("the power button gets no interrupt"))?;
        let generation = wiring
            .pin(GENERATION_ID_GSI)
            .and_then(|changed| GenerationId::new(memory.clone(), GuestAddress(GENERATION_ID_START), changed))
            .map_err(resource("the VM generation ID could not be set up"))?;
        pio.add("pvpanic", PVPANIC_PORT.into(), pvpanic::PORTS, Arc::new(PvPanic::new(on_panic)))?;
        let mut platform = Self { watchdog: None, generation, power_button };
        if plan.watchdog {
            let control = Arc::clone(control);
            let watchdog = Arc::new(Watchdog::new(move |silent| {
                control.end(EndReason::Watchdog { silent_ms: silent.as_millis() as u64 });
            }));
            pio.add(WATCHDOG, watchdog::FIRST_PORT.into(), watchdog::PORTS, Arc::clone(&watchdog) as _)?;
            platform.watchdog = Some(watchdog);
        }
        Ok(platform)
    }

    /// The state of the device of that name, as the status writes it. A watchdog is active when it counts down; the
    /// others always are.
    pub(super) fn state(&self, name: &str) -> &'static str {
        let is_running = |watchdog: &Arc<Watchdog>| watchdog.is_running();
        if name == WATCHDOG && !self.watchdog.as_ref().is_some_and(is_running) {
            "inactive"
        } else {
            "active"
        }
    }

    /// What counts time stands still.
    pub(super) fn pause(&self) {
        if let Some(watchdog) = &self.watchdog {
            watchdog.pause();
        }
    }

    /// And goes on.
    pub(super) fn resume(&self) {
        if let Some(watchdog) = &self.watchdog {
            watchdog.resume();
        }
    }

    pub(super) fn shut_down(&self) {
        if let Some(watchdog) = &self.watchdog {
            watchdog.shut_down();
        }
    }
}

impl Machine {
    /// Presses the ACPI power button: a guest with a driver for it (Linux: button) tells its init, which usually switches
    /// the machine off. Nobody can tell from outside whether the guest listens.
    ///
    /// # Errors
    /// When the interrupt cannot be raised.
    pub fn press_power_button(&self) -> io::Result<()> {
        self.devices.platform.power_button.write(1)
    }

    /// Gives the machine a new generation ID and tells the guest, which reseeds its random number generator. For a machine
    /// that is not the only one with its past: before the vCPUs of a restored snapshot run.
    ///
    /// # Errors
    /// When the kernel has no random bytes, or the interrupt cannot be raised.
    pub fn renew_generation_id(&self) -> io::Result<()> {
        self.devices.platform.generation.renew()
    }
}
