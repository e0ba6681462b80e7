//! Which devices a plan means, and where they go.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Instant;

use super::control::Control;
use super::disks::Disks;
use super::error::{MachineError, resource};
use super::networks::interface;
use super::platform::Platform;
use super::shares;
use super::streams::{self, ports};
use super::vcpu::Buses;
use super::wiring::KvmWiring;
use crate::backend::console::{ConsoleHub, ConsoleInput};
use crate::backend::vsock::Inside;
use crate::devices::bus::Bus;
use crate::devices::pci::host_bridge::HostBridge;
use crate::devices::pci::root::{MAX_DEVICES, PciRoot};
use crate::devices::platform::power::{self, PowerControl, PowerRequest};
use crate::devices::platform::pvpanic::PanicEvent;
use crate::devices::platform::serial::{self, SerialInput, SerialPort};
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::balloon::{Balloon, BalloonOptions};
use crate::devices::virtio::console::Console;
use crate::devices::virtio::console::ports::Ports;
use crate::devices::virtio::net::Net;
use crate::devices::virtio::rng::Rng;
use crate::devices::virtio::transport::{BAR_SIZE, Context, VirtioPci};
use crate::devices::wiring::Wiring;
use crate::spec::plan::{BalloonPlan, ConsoleKind, MachinePlan};
use crate::status::model::{BootStage, DeviceFacts};
use crate::x86::layout::{
    PCI_ECAM_SIZE, PCI_ECAM_START, PCI_MMIO_END, PCI_MMIO_START, SERIAL_GSI, SERIAL_PORT,
};
use vm_memory::GuestMemoryMmap;

/// Where the console's bytes go and come from.
#[derive(Debug)]
pub struct ConsoleIo {
    /// The guest's output, and input from clients.
    pub hub: Arc<ConsoleHub>,
    /// More input, if there is any.
    pub input: Option<OwnedFd>,
}

impl ConsoleIo {
    /// Our stdout and stdin, with a history of `history_bytes`.
    ///
    /// # Errors
    /// When the kernel has no descriptor left.
    pub fn of_this_process(history_bytes: usize) -> io::Result<Self> {
        let hub = ConsoleHub::new(io::stdout().as_fd().try_clone_to_owned()?, history_bytes)?;
        Ok(Self { hub: Arc::new(hub), input: io::stdin().as_fd().try_clone_to_owned().ok() })
    }
}

/// The readable mapping that shows configuration space; the devices' own come after it.
const ECAM_SLOT: u32 = 0;
/// Host bridge, console, its ports, vsock, entropy, balloon: each has room kept for it.
const FIXED_DEVICES: usize = 6;
/// Bytes of stack of a thread that stops a device.
const STOP_STACK: usize = 256 << 10;

/// Every device of one machine.
pub(super) struct Devices {
    pub(super) buses: Buses,
    root: Arc<PciRoot>,
    virtio: Vec<Arc<VirtioPci>>,
    pub(super) platform: Platform,
    /// The disks, to be resized.
    pub(super) disks: Disks,
    /// The balloon, for a target.
    pub(super) balloon: Option<Arc<Balloon>>,
    /// The network interfaces, in the plan's order.
    pub(super) nets: Vec<Arc<Net>>,
    serial_input: Option<SerialInput>,
    ports: Option<Arc<Ports>>,
}

/// What the devices are built from.
pub(super) struct Parts<'a> {
    pub(super) plan: &'a MachinePlan,
    pub(super) inside: &'a Inside,
    pub(super) memory: &'a GuestMemoryMmap,
    pub(super) wiring: Arc<KvmWiring>,
    pub(super) control: Arc<Control>,
    pub(super) console: Arc<ConsoleHub>,
    pub(super) input: Option<ConsoleInput>,
    pub(super) on_panic: Box<dyn Fn(PanicEvent) + Send + Sync>,
    pub(super) on_power: Box<dyn Fn(PowerRequest) + Send + Sync>,
}

impl Devices {
    /// Builds the plan's devices and puts them on the buses.
    pub(super) fn assemble(parts: Parts<'_>) -> Result<Self, MachineError> {
        let Parts { plan, inside, memory, wiring, control, console, mut input, on_panic, on_power } = parts;
        let mut pio = Bus::default();
        pio.add("power", power::FIRST_PORT.into(), power::PORTS, Arc::new(PowerControl::new(on_power)))?;
        let platform = Platform::assemble(plan, memory, &wiring, &control, on_panic, &mut pio)?;

        let mut devices: Vec<Arc<dyn VirtioDevice>> = Vec::new();
        let mut serial_input = None;
        match plan.console {
            ConsoleKind::Virtio => devices.push(Arc::new(Console::new(Arc::clone(&console), input.take()))),
            ConsoleKind::Serial => {
                let interrupt = wiring.pin(SERIAL_GSI).map_err(resource("the UART gets no interrupt"))?;
                let port = Arc::new(SerialPort::new(Arc::clone(&console), interrupt));
                pio.add("serial", SERIAL_PORT.into(), serial::PORTS, Arc::clone(&port) as _)?;
                let input = SerialInput::spawn(port, console, input.take());
                serial_input = Some(input.map_err(resource("the console has no input thread"))?);
            }
        }
        let limit = MAX_DEVICES - FIXED_DEVICES;
        let asked = plan.disks.len() + plan.nets.len() + plan.shares.len();
        if asked > limit {
            return Err(MachineError::TooManyDevices { asked, limit });
        }
        let disks = Disks::open(&plan.disks, plan.cpus)?;
        devices.extend(disks.devices());
        let open = |net| interface(net, plan.cpus, memory).map(Arc::new);
        let nets: Vec<Arc<Net>> = plan.nets.iter().map(open).collect::<Result<_, _>>()?;
        devices.extend(nets.iter().map(|net| Arc::clone(net) as _));
        let ports = ports(&plan.ports)?;
        devices.extend(ports.iter().map(|ports| Arc::clone(ports) as _));
        for share in &plan.shares {
            devices.push(Arc::new(shares::open(share)?));
        }
        devices.extend(streams::vsock(plan, inside, memory)?);
        let rng = Rng::new(plan.rng.bytes_per_second);
        devices.push(Arc::new(rng.map_err(resource("the entropy device has no timer"))?));
        let balloon = plan.balloon.map(|balloon| new_balloon(balloon, memory)).transpose()?;
        devices.extend(balloon.iter().map(|balloon| Arc::clone(balloon) as _));

        let reach_kernel = move || control.reach(BootStage::Kernel);
        let plugged = plug(devices, memory, &wiring, reach_kernel);
        let (root, virtio) = plugged.map_err(resource("a PCI device could not be set up"))?;
        let mut mmio = Bus::default();
        mmio.add("pci-window", PCI_MMIO_START, PCI_MMIO_END - PCI_MMIO_START, root.window(PCI_MMIO_START))?;
        mmio.add("pci-ecam", PCI_ECAM_START, PCI_ECAM_SIZE, root.ecam())?;
        let buses = Buses { pio: Arc::new(pio), mmio: Arc::new(mmio) };
        Ok(Self { buses, root, virtio, disks, nets, platform, balloon, serial_input, ports })
    }

    /// Facts of the PCI functions in bus order, then of the platform devices that trapped.
    pub(super) fn facts(&self) -> Vec<DeviceFacts> {
        let platform = self.buses.pio.trap_counts().into_iter().map(|trap| DeviceFacts {
            kind: trap.name.into(),
            address: if trap.base == 0 { "port any".into() } else { format!("port {:#x}", trap.base) },
            state: self.platform.state(trap.name).into(),
            trapped_reads: trap.reads,
            trapped_writes: trap.writes,
            ..DeviceFacts::default()
        });
        self.root.facts().into_iter().chain(platform).collect()
    }

    /// Lets every worker finish what it has begun and rest. The vCPUs rest already. The error names those that do not rest at
    /// `deadline`.
    pub(super) fn pause(&self, deadline: Instant) -> Result<(), Vec<String>> {
        self.platform.pause();
        // All of them first: what one has begun ends while another is waited for.
        self.virtio.iter().for_each(|function| function.pause());
        let awake = self.virtio.iter().filter(|function| !function.wait_for_rest(deadline));
        let awake: Vec<String> = awake.map(|function| function.describe()).collect();
        if awake.is_empty() { Ok(()) } else { Err(awake) }
    }

    /// The devices that a vCPU is at.
    pub(super) fn held(&self) -> Vec<String> {
        let held = self.virtio.iter().filter(|function| function.is_held());
        held.map(|function| function.describe()).collect()
    }

    /// Lets every worker go on.
    pub(super) fn resume(&self) {
        self.virtio.iter().for_each(|function| function.resume());
        self.platform.resume();
    }

    /// Stops every worker; disks are flushed. The error names the devices that have not stopped at `deadline`.
    pub(super) fn shut_down(&mut self, deadline: Instant) -> Result<(), Vec<String>> {
        let stuck = self.stop_functions(deadline);
        self.platform.shut_down();
        if let Some(input) = self.serial_input.take() {
            input.stop();
        }
        if let Some(ports) = self.ports.take() {
            ports.close();
        }
        if stuck.is_empty() { Ok(()) } else { Err(stuck) }
    }

    /// Each on a thread of its own: a disk that is stuck must not keep another from being flushed.
    fn stop_functions(&self, deadline: Instant) -> Vec<String> {
        let (done, ended) = mpsc::channel();
        for (index, function) in self.virtio.iter().enumerate() {
            let (tell, stopping) = (done.clone(), Arc::clone(function));
            let stop = move || {
                stopping.shut_down();
                // The device is ours alone again when we hear of it.
                drop(stopping);
                let _ = tell.send(index);
            };
            let thread = thread::Builder::new().name("device-stop".into()).stack_size(STOP_STACK).spawn(stop);
            if thread.is_err() {
                function.shut_down();
                let _ = done.send(index);
            }
        }
        drop(done);
        let mut left: BTreeMap<usize, &Arc<VirtioPci>> = self.virtio.iter().enumerate().collect();
        while let Ok(index) = ended.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            left.remove(&index);
        }
        left.values().map(|function| function.describe()).collect()
    }
}

fn new_balloon(plan: BalloonPlan, memory: &GuestMemoryMmap) -> Result<Arc<Balloon>, MachineError> {
    let BalloonPlan { deflate_on_oom, free_page_reporting } = plan;
    let options = BalloonOptions { deflate_on_oom, free_page_reporting };
    Balloon::new(options, memory).map(Arc::new).map_err(resource("the balloon cannot be set up"))
}

/// Builds bus 0 with the host bridge and one function per device.
fn plug(
    devices: Vec<Arc<dyn VirtioDevice>>,
    memory: &GuestMemoryMmap,
    wiring: &Arc<KvmWiring>,
    on_configured: impl Fn() + Send + Sync + 'static,
) -> io::Result<(Arc<PciRoot>, Vec<Arc<VirtioPci>>)> {
    let root = Arc::new(PciRoot::new(devices.len() + 1, on_configured)?);
    root.plug(0, Arc::new(HostBridge::new(root.config_page(0))));
    let mut virtio = Vec::new();
    for (index, device) in devices.into_iter().enumerate() {
        let number = index + 1;
        let context = Context {
            memory: memory.clone(),
            wiring: Arc::clone(wiring) as Arc<dyn Wiring>,
            config_page: root.config_page(number),
            bar: PCI_MMIO_START as u32 + index as u32 * BAR_SIZE,
            slot: ECAM_SLOT + number as u32,
        };
        let function = VirtioPci::new(device, context)?;
        root.plug(number, Arc::clone(&function) as _);
        virtio.push(function);
    }
    if let Err(error) = wiring.map_readable(ECAM_SLOT, Some(PCI_ECAM_START), root.config_pages()) {
        tracing::debug!(%error, "configuration space reads will exit");
    }
    Ok((root, virtio))
}
