//! The machine: memory, vCPU threads, interrupts, and their assembly. Knows KVM; knows nothing of pods.
//!
//! [`Machine::new`] tells the whole boot story; the rooms beside it are its paragraphs.

mod assembly;
mod control;
mod disks;
mod error;
pub mod exits;
mod facts;
mod hypervisor;
mod kick;
mod last_words;
pub mod memory;
mod networks;
mod pausing;
mod platform;
mod postmortem;
mod shares;
mod stats;
mod streams;
mod vcpu;
mod wiring;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;

pub use assembly::ConsoleIo;
pub use error::MachineError;
pub use pausing::Stuck;

use self::assembly::{Devices, Parts};
use self::control::Control;
use self::error::{kvm, resource};
use self::exits::ExitCounters;
use self::hypervisor::Hypervisor;
use self::kick::Kicker;
use self::last_words::LastWords;
use self::memory::GuestRam;
use self::stats::ExitStatistic;
use self::vcpu::Vcpu;
use self::wiring::KvmWiring;
use crate::backend::console::{ConsoleHub, ConsoleInput};
use crate::backend::vsock::Inside;
use crate::boot::cmdline::{self, CmdlineFacts};
use crate::boot::{self, BootRequest, EntryPoint};
use crate::spec::plan::{ConsoleKind, MachinePlan};
use crate::status::model::{MachineEvent, MachineFacts, MemoryFacts, VcpuFacts};
use crate::status::operation::{Operation, Refusal};
use crate::x86::cpuid;

/// One virtual machine.
///
/// Fields are dropped in order: the threads' handles, then the devices and the VM, then the RAM they use.
pub struct Machine {
    vcpus: Vec<VcpuSlot>,
    devices: Devices,
    control: Arc<Control>,
    console: Arc<ConsoleHub>,
    last_words: LastWords,
    ram: GuestRam,
    /// How the stop went, once there was one.
    stopped: Option<Result<(), Stuck>>,
}

/// A vCPU: waiting, running, or gone.
struct VcpuSlot {
    waiting: Option<Vcpu>,
    thread: Option<JoinHandle<()>>,
    kicker: Kicker,
    exits: Arc<ExitCounters>,
    statistic: Option<ExitStatistic>,
}

impl Machine {
    /// Builds the machine: RAM, kernel, tables, devices, vCPUs. Nothing runs yet. This process reaches programs of the guest
    /// by `inside`.
    ///
    /// # Errors
    /// Anything in the plan that cannot be had here: see [`MachineError`].
    pub fn new(plan: &MachinePlan, console_io: ConsoleIo, inside: &Inside) -> Result<Self, MachineError> {
        let mib = plan.memory_bytes >> 20;
        let ram = reserve_ram(plan).map_err(|source| MachineError::Memory { mib, source })?;
        let (entry, hypervisor) = load_beside_kvm(plan, &ram)?;
        if usize::from(plan.cpus) > hypervisor.max_vcpus() {
            return Err(MachineError::TooManyVcpus { asked: plan.cpus, limit: hypervisor.max_vcpus() });
        }

        let control = Arc::new(Control::default());
        let last_words = LastWords::default();
        let ConsoleIo { hub: console, input } = console_io;
        console.watch_lines(last_words.line_watcher(Arc::clone(&control)));
        let devices = Devices::assemble(Parts {
            plan,
            inside,
            memory: ram.memory(),
            wiring: Arc::new(KvmWiring::new(Arc::clone(&hypervisor.vm))),
            control: Arc::clone(&control),
            console: Arc::clone(&console),
            on_panic: last_words.panic_listener(Arc::clone(&control), &ram),
            input: input.and_then(ConsoleInput::new),
            on_power: last_words.power_switch(Arc::clone(&control), &ram),
        })?;
        let vcpus = create_vcpus(&hypervisor, plan.cpus, &entry, &devices, &control)?;
        if plan.needs_shared_memory() {
            tell_backing(&ram);
        }
        Ok(Self { vcpus, devices, control, console, last_words, ram, stopped: None })
    }

    /// Starts every vCPU. Events arrive on `events` from the machine's own threads, each at most once.
    ///
    /// # Errors
    /// When a thread cannot be created.
    pub fn start(&mut self, events: Sender<MachineEvent>) -> Result<(), MachineError> {
        kick::install_signal_handler()
            .map_err(resource("the signal that stops vCPUs cannot be installed"))?;
        self.control.listen(events);
        for (id, slot) in self.vcpus.iter_mut().enumerate() {
            let Some(vcpu) = slot.waiting.take() else { continue };
            self.control.wake_up();
            let thread = std::thread::Builder::new().name(format!("vcpu-{id}")).spawn(move || vcpu.run());
            slot.thread = Some(thread.map_err(|error| {
                self.control.fall_asleep();
                resource("a vCPU has no thread")(error)
            })?);
        }
        Ok(())
    }

    /// What the machine looks like now. Cheap enough for a request, not for a loop.
    #[must_use]
    pub fn facts(&self) -> MachineFacts {
        let (mut exits, paused) = (BTreeMap::new(), self.control.is_pausing());
        let vcpus: Vec<VcpuFacts> =
            self.vcpus.iter().enumerate().map(|(id, slot)| slot.facts(id as u8, paused)).collect();
        for (reason, count) in vcpus.iter().flat_map(|vcpu| &vcpu.exits) {
            *exits.entry(reason.clone()).or_insert(0) += count;
        }
        MachineFacts {
            exits_total: exits.values().sum(),
            vcpus,
            memory: MemoryFacts {
                balloon: self.devices.balloon.as_ref().map(|balloon| balloon.facts()),
                ..facts::memory(&self.ram)
            },
            devices: self.devices.facts(),
            exits,
        }
    }

    /// The last lines of the guest's console, newest last, control characters removed. When the guest panicked before it
    /// had a console, these are the last lines of its kernel's log.
    #[must_use]
    pub fn console_tail(&self) -> Vec<String> {
        let tail = self.console.tail();
        if tail.is_empty() { self.last_words.kernel_log() } else { tail }
    }

    /// Does what a client asked for.
    ///
    /// # Errors
    /// When the machine has nothing that the operation is about, or the value is not one for it.
    pub fn carry_out(&mut self, operation: &Operation) -> Result<(), Refusal> {
        match operation {
            Operation::Pause => self.pause().map_err(|stuck| Refusal::Failed(stuck.to_string()))?,
            Operation::Resume => self.resume(),
            Operation::SetMemory { target_bytes } => self.set_memory(*target_bytes)?,
            Operation::SetLink { interface, up } => networks::set_link(&self.devices.nets, interface, *up)?,
            Operation::ResizeDisk { disk, size_bytes } => self.devices.disks.resize(disk, *size_bytes)?,
        }
        Ok(())
    }

    /// Sets how much of its RAM the guest should do with.
    fn set_memory(&self, target_bytes: u64) -> Result<(), Refusal> {
        let none = "the machine has no balloon: it was started with `--balloon off`";
        let balloon = self.devices.balloon.as_ref().ok_or_else(|| Refusal::Cannot(none.to_owned()))?;
        let before = balloon.set_target(target_bytes).map_err(|error| Refusal::Bad(error.to_string()))?;
        tracing::info!(before_bytes = before, now_bytes = target_bytes, "the guest's memory target was set");
        Ok(())
    }
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Machine").field("vcpus", &self.vcpus.len()).finish_non_exhaustive()
    }
}

impl VcpuSlot {
    fn facts(&self, id: u8, paused: bool) -> VcpuFacts {
        let alive = self.thread.as_ref().is_some_and(|thread| !thread.is_finished());
        let state = match (alive, paused) {
            (true, false) => "running",
            (true, true) => "paused",
            (false, _) => "stopped",
        };
        VcpuFacts {
            id,
            state: state.into(),
            exits: self.exits.by_name(),
            last_exit: self.exits.last(),
            kvm_exits_total: self.statistic.as_ref().and_then(ExitStatistic::read),
        }
    }
}

/// RAM of our own, unless a device needs memory that another process can map.
fn reserve_ram(plan: &MachinePlan) -> std::io::Result<GuestRam> {
    if !plan.needs_shared_memory() {
        return GuestRam::new(plan.memory_bytes);
    }
    GuestRam::shared(plan.memory_bytes)
}

/// Says what shared RAM costs, once everything that was asked for is there.
fn tell_backing(ram: &GuestRam) {
    let backing = ram.backing();
    match &backing.cost {
        None => tracing::info!("guest RAM is a {}, because a share's server has to see it", backing.name),
        Some(cost) => tracing::warn!("{cost}"),
    }
}

/// Loads the guest's images while KVM makes the VM: KVM_CREATE_VM sleeps for milliseconds (on kernels before 6.14 it waits
/// for a grace period of RCU), and reading a kernel takes as long.
fn load_beside_kvm(plan: &MachinePlan, ram: &GuestRam) -> Result<(EntryPoint, Hypervisor), MachineError> {
    std::thread::scope(|threads| {
        let creating = std::thread::Builder::new()
            .name("create-vm".into())
            .spawn_scoped(threads, || Hypervisor::new(ram))
            .map_err(resource("there is no thread to create the VM"))?;
        let entry = load(plan, ram);
        let hypervisor = creating.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        // The user's mistake comes before KVM's refusal.
        Ok((entry?, hypervisor?))
    })
}

/// Puts kernel, initrd, command line and tables into RAM.
fn load(plan: &MachinePlan, ram: &GuestRam) -> Result<EntryPoint, MachineError> {
    let facts = CmdlineFacts {
        console: plan.console,
        has_initrd: plan.initrd.is_some(),
        first_disk_readonly: plan.disks.first().map(|disk| disk.readonly),
    };
    let cmdline = cmdline::compute(&facts, &plan.cmdline)?;
    let request = BootRequest {
        kernel: &plan.kernel,
        initrd: plan.initrd.as_deref(),
        cmdline: &cmdline,
        cpus: plan.cpus,
        serial: plan.console == ConsoleKind::Serial,
        watchdog: plan.watchdog,
    };
    Ok(boot::load(ram.memory(), &request)?)
}

fn create_vcpus(
    hypervisor: &Hypervisor,
    count: u8,
    entry: &EntryPoint,
    devices: &Devices,
    control: &Arc<Control>,
) -> Result<Vec<VcpuSlot>, MachineError> {
    let supported = hypervisor.supported_cpuid()?;
    let mut slots = Vec::with_capacity(count.into());
    for id in 0..count {
        let fd = hypervisor.vm.create_vcpu(id.into()).map_err(kvm("KVM cannot create a vCPU"))?;
        let facts = cpuid::VcpuFacts {
            id,
            cpus: count,
            tsc_deadline: hypervisor.has_tsc_deadline(),
            tsc_khz: fd.get_tsc_khz().ok(),
            quirks: Hypervisor::quirks(),
        };
        let vcpu = Vcpu::new(fd, id, devices.buses.clone(), Arc::clone(control));
        vcpu.set_up(&supported, &facts, (id == 0).then_some(entry))?;
        slots.push(VcpuSlot {
            kicker: Kicker::new(vcpu.fd()).map_err(resource("a vCPU's shared page cannot be mapped"))?,
            exits: vcpu.exits(),
            statistic: ExitStatistic::of(vcpu.fd()),
            waiting: Some(vcpu),
            thread: None,
        });
    }
    Ok(slots)
}
