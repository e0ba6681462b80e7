//! virtio over PCI (virtio 1.2 §4.1): one PCI function with one BAR of four pages.
//!
//! | page | what | how a guest's access ends |
//! |---|---|---|
//! | 0 | common configuration, then device configuration | reads from memory, writes trap |
//! | 1 | MSI-X table and pending bits | reads from memory, writes trap |
//! | 2 | ISR status | reads trap, because they clear it; a driver with MSI-X never does |
//! | 3 | doorbells, one per queue | the kernel turns writes into eventfds |

mod config_change;
mod layout;
mod window;
mod wired;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Instant;

use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

pub use self::config_change::ConfigChange;
pub use self::layout::BAR_SIZE;
use self::layout::{
    DEVICE_CONFIG, DOORBELL_PAGE, DOORBELL_STRIDE, ISR_PAGE, MSIX_PAGE, add_virtio_capabilities, identity,
};
use self::wired::Wired;
use super::common::{self, Alarm, CommonConfig, Follow, QueueSetup};
use super::queue::{DeviceQueue, ISR_CONFIG, ISR_QUEUE, Interrupt, Queues, ring};
use super::worker::{OnFault, Workers};
use super::{Counters, F_EVENT_IDX, F_VERSION_1, Fault, Kind, Start, VirtioDevice};
use crate::devices::complaints::Complaints;
use crate::devices::eventfd;
use crate::devices::pci::config::ConfigSpace;
use crate::devices::pci::msix::{self, Msix};
use crate::devices::pci::root::PciFunction;
use crate::devices::registers::{PAGE, RegisterPages};
use crate::devices::wiring::Wiring;
use crate::status::model::DeviceFacts;

/// What a transport needs from the machine.
#[derive(Debug, Clone)]
pub struct Context {
    /// Guest RAM, where the queues are.
    pub memory: GuestMemoryMmap,
    /// Interrupts, doorbells, readable pages.
    pub wiring: Arc<dyn Wiring>,
    /// The function's configuration page.
    pub config_page: RegisterPages,
    /// Where BAR 0 starts out.
    pub bar: u32,
    /// Which readable mapping is this function's.
    pub slot: u32,
}

/// One virtio device as a PCI function.
pub struct VirtioPci {
    kind: Kind,
    device: Arc<dyn VirtioDevice>,
    counters: Counters,
    /// How often the driver rang a doorbell.
    notifications: Arc<AtomicU64>,
    memory: GuestMemoryMmap,
    wiring: Arc<dyn Wiring>,
    slot: u32,
    registers: RegisterPages,
    msix: Arc<Msix>,
    isr: Arc<AtomicU8>,
    doorbells: Vec<EventFd>,
    msix_capability: usize,
    access_capability: usize,
    alarm: Alarm,
    config_change: ConfigChange,
    complaints: Arc<Complaints>,
    /// Whether a worker runs, readable without the lock.
    active: AtomicBool,
    /// Where BAR 0 answers, or 0: every vCPU looks here on every access to the window.
    bar: AtomicU64,
    inner: Mutex<Inner>,
}

struct Inner {
    config: ConfigSpace,
    common: CommonConfig,
    workers: Option<Workers>,
    /// Where the readable pages and the doorbells are wired now.
    wired: Wired,
}

impl VirtioPci {
    /// Puts `device` behind a PCI function.
    ///
    /// # Errors
    /// When its interrupts, doorbells or register pages cannot be had.
    pub fn new(device: Arc<dyn VirtioDevice>, context: Context) -> io::Result<Arc<Self>> {
        let Context { memory, wiring, config_page, bar, slot } = context;
        let (kind, queue_sizes) = (device.kind(), device.queue_sizes());
        let registers = RegisterPages::new(ISR_PAGE)?;
        registers.write(DEVICE_CONFIG, &device.config());
        let vectors = (queue_sizes.len() as u16).saturating_add(1);
        let msix = Arc::new(Msix::new(registers.slice(MSIX_PAGE, 1), vectors, Arc::clone(&wiring))?);
        let features = device.features() | device.ring_features() | F_VERSION_1;
        let common = CommonConfig::new(registers.slice(0, 1), features, &queue_sizes, msix.len());
        let doorbells = queue_sizes
            .iter()
            .map(|_| EventFd::new(libc::EFD_NONBLOCK))
            .collect::<io::Result<Vec<EventFd>>>()?;

        let mut config = ConfigSpace::new(config_page, identity(kind));
        config.set_bar(bar, BAR_SIZE);
        let access_capability = add_virtio_capabilities(&mut config, queue_sizes.len());
        let (body, writable) = msix.capability(MSIX_PAGE as u32);
        let msix_capability = config.add_capability(msix::CAPABILITY_ID, &body, &writable);

        let inner = Inner { config, common, workers: None, wired: Wired::default() };
        let (alarm, isr) = (inner.common.alarm().clone(), Arc::new(AtomicU8::new(0)));
        let (shown, vectors) = (registers.clone(), Arc::clone(&msix));
        let config_change = ConfigChange::new(&device, shown, alarm.clone(), Arc::clone(&isr), vectors);
        Ok(Arc::new(Self {
            kind,
            counters: device.counters(),
            device,
            notifications: Arc::default(),
            memory,
            wiring,
            slot,
            registers,
            msix,
            isr,
            doorbells,
            msix_capability,
            access_capability,
            alarm,
            config_change,
            complaints: Arc::default(),
            active: AtomicBool::new(false),
            bar: AtomicU64::new(0),
            inner: Mutex::new(inner),
        }))
    }

    /// Stops the workers for good; what the device held back is written out.
    pub fn shut_down(&self) {
        self.reset(&mut self.lock());
    }

    /// Asks the workers to finish what they have begun and to rest. The vCPUs rest already: nobody resets the device meanwhile.
    pub fn pause(&self) {
        if let Some(workers) = &self.lock().workers {
            workers.pause();
        }
    }

    /// Waits until the workers rest, or until `deadline`; whether they do.
    #[must_use]
    pub fn wait_for_rest(&self, deadline: Instant) -> bool {
        self.lock().workers.as_ref().is_none_or(|workers| workers.wait_for_rest(deadline))
    }

    /// Lets the workers go on.
    pub fn resume(&self) {
        if let Some(workers) = &self.lock().workers {
            workers.resume();
        }
    }

    /// Tells the driver that the device's configuration structure has changed.
    pub fn announce_config_change(&self) {
        self.config_change.announce();
    }

    /// Whether a vCPU is at its registers in this moment: for long, only while it waits for a worker.
    #[must_use]
    pub fn is_held(&self) -> bool {
        matches!(self.inner.try_lock(), Err(TryLockError::WouldBlock))
    }

    /// What it is, with what is behind it.
    #[must_use]
    pub fn describe(&self) -> String {
        match self.device.backend() {
            Some(backend) => format!("{} {backend}", self.kind.name),
            None => self.kind.name.to_owned(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(&self, inner: &mut Inner) {
        match self.start_workers(&inner.common) {
            Ok(workers) => {
                inner.workers = Some(workers);
                self.active.store(true, Ordering::Relaxed);
            }
            Err(fault) => {
                self.device.stop();
                self.on_fault()(fault);
            }
        }
    }

    fn start_workers(&self, common: &CommonConfig) -> Result<Workers, Fault> {
        let mut queues = self.collect_queues(common)?;
        let lanes = self.device.start(Start {
            features: common.accepted(),
            memory: &self.memory,
            queues: &mut queues,
            config: self.config_change.clone(),
        })?;
        Workers::spawn(self.kind.name, lanes, queues, &self.notifications, self.on_fault())
            .map_err(Fault::Host)
    }

    /// What happens when the device cannot go on. A worker calls it, so it takes no lock a vCPU may hold.
    fn on_fault(&self) -> OnFault {
        let (name, complaints) = (self.kind.name, Arc::clone(&self.complaints));
        let (alarm, isr, msix) = (self.alarm.clone(), Arc::clone(&self.isr), Arc::clone(&self.msix));
        Box::new(move |fault| {
            if complaints.may_speak() {
                tracing::warn!(device = name, %fault, "the device stopped and waits to be reset");
            }
            let vector = alarm.raise();
            isr.fetch_or(ISR_CONFIG, Ordering::Relaxed);
            msix.signal(vector);
        })
    }

    fn reset(&self, inner: &mut Inner) {
        if let Some(workers) = inner.workers.take() {
            workers.stop();
            self.device.stop();
        }
        self.active.store(false, Ordering::Relaxed);
        for doorbell in &self.doorbells {
            let _ = eventfd::take(doorbell);
        }
        self.isr.store(0, Ordering::Relaxed);
        self.msix.forget_pending();
        inner.common.reset();
        // What the last driver wrote there is gone.
        self.config_change.show();
    }

    fn collect_queues(&self, common: &CommonConfig) -> Result<Queues, Fault> {
        let event_idx = common.accepted() & F_EVENT_IDX != 0;
        let collect = |(setup, doorbell): (&QueueSetup, &EventFd)| {
            if !setup.enabled {
                return Ok(None);
            }
            let queue = ring(setup, event_idx, &self.memory)?;
            let interrupt = Interrupt {
                msix: Arc::clone(&self.msix),
                vector: setup.vector,
                isr: Arc::clone(&self.isr),
                cause: ISR_QUEUE,
            };
            let doorbell = doorbell.try_clone().map_err(Fault::Host)?;
            DeviceQueue::new(queue, self.memory.clone(), interrupt, doorbell).map(Some)
        };
        common.queues().iter().zip(&self.doorbells).map(collect).collect::<Result<_, _>>().map(Queues)
    }

    fn read_bar(&self, offset: usize, data: &mut [u8], isr: impl FnOnce(&AtomicU8) -> u8) {
        match offset / PAGE {
            ISR_PAGE => {
                data.fill(0);
                if let Some(first) = data.first_mut().filter(|_| offset.is_multiple_of(PAGE)) {
                    *first = isr(&self.isr);
                }
            }
            DOORBELL_PAGE => data.fill(0),
            _ => self.registers.read(offset, data),
        }
    }

    fn write_bar(&self, inner: &mut Inner, offset: usize, data: &[u8]) {
        let (page, register) = (offset / PAGE, offset % PAGE);
        match page {
            0 if register < common::LENGTH => match inner.common.write(register, data) {
                Follow::Nothing => return,
                Follow::Start => self.start(inner),
                Follow::Reset => self.reset(inner),
            },
            0 if register >= DEVICE_CONFIG => {
                self.device.write_config(register.saturating_sub(DEVICE_CONFIG), data);
                return self.config_change.show();
            }
            MSIX_PAGE => self.msix.write_table(register, data),
            DOORBELL_PAGE => {
                if let Some(doorbell) = self.doorbells.get(register / DOORBELL_STRIDE) {
                    let _ = eventfd::ring(doorbell);
                }
            }
            _ => {}
        }
        self.rewire(inner);
    }
}

impl PciFunction for VirtioPci {
    fn config_write(&self, offset: usize, data: &[u8]) {
        let mut inner = self.lock();
        inner.config.write(offset, data);
        let written = offset..offset.saturating_add(data.len());
        let touches =
            |start: usize, len: usize| written.start < start.saturating_add(len) && start < written.end;
        if touches(self.msix_capability, 12) {
            self.msix.set_control(inner.config.page().u16(self.msix_capability.saturating_add(2)));
        }
        if touches(self.access_capability, 20) {
            self.serve_access_window(&mut inner, written);
        }
        self.rewire(&mut inner);
    }

    fn bar(&self) -> Option<(u64, u64)> {
        let base = self.bar.load(Ordering::Relaxed);
        (base != 0).then_some((base, u64::from(BAR_SIZE)))
    }

    fn bar_read(&self, offset: u64, data: &mut [u8]) {
        self.read_bar(offset as usize, data, |isr| isr.swap(0, Ordering::Relaxed));
    }

    fn bar_write(&self, offset: u64, data: &[u8]) {
        self.write_bar(&mut self.lock(), offset as usize, data);
    }

    fn facts(&self) -> DeviceFacts {
        let state = match (self.alarm.is_raised(), self.active.load(Ordering::Relaxed)) {
            (true, _) => "needs-reset",
            (false, true) => "active",
            (false, false) => "inactive",
        };
        let mut counters = (self.counters)();
        counters.insert("interrupts".into(), self.msix.signals());
        counters.insert("notifications".into(), self.notifications.load(Ordering::Relaxed));
        DeviceFacts {
            kind: self.kind.name.into(),
            backend: self.device.backend(),
            state: state.into(),
            counters,
            ..DeviceFacts::default()
        }
    }
}

#[cfg(test)]
mod tests;
