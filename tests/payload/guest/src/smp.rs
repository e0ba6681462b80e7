//! The other CPUs: INIT, startup IPI (SDM Vol. 3A §9.4.4), and what they do once they are here.

use core::sync::atomic::{AtomicU32, Ordering};

use crate::{gate, interrupts, io};

const TRAMPOLINE: u64 = 0x1000;
const INIT: u32 = 0x4500;
const STARTUP: u32 = 0x4600 | (TRAMPOLINE >> 12) as u32;
const MAX_CPUS: usize = 32;

unsafe extern "C" {
    static trampoline_start: u8;
    static trampoline_end: u8;
}

/// What a CPU says about itself.
#[derive(Debug, Clone, Copy)]
pub struct Identity {
    /// CPUID leaf 1.
    pub initial: u32,
    /// CPUID leaf 0Bh.
    pub extended: u32,
    /// The local APIC's own register.
    pub local: u32,
}

static ARRIVED: AtomicU32 = AtomicU32::new(0);
static IDENTITIES: [AtomicU32; MAX_CPUS] = [const { AtomicU32::new(0) }; MAX_CPUS];
/// Added to by every CPU.
pub static COUNTER: AtomicU32 = AtomicU32::new(0);
/// What every other CPU does after it has arrived, as a function's address; 0 means to halt.
static TASK: core::sync::atomic::AtomicUsize = core::sync::atomic::AtomicUsize::new(0);

/// Reads this CPU's identity.
#[must_use]
pub fn identity() -> Identity {
    Identity {
        initial: gate::cpuid(1, 0)[1] >> 24,
        extended: gate::cpuid(0xb, 0)[3],
        local: interrupts::apic_id(),
    }
}

/// Starts APIC ids 1 to `cpus` - 1 and waits for all of them. Each then runs `task`.
pub fn start(cpus: u32, task: Option<fn(u32)>) {
    let (from, to) = (&raw const trampoline_start as u64, &raw const trampoline_end as u64);
    (0..to - from).for_each(|at| io::poke::<u8>(TRAMPOLINE + at, io::peek(from + at)));
    TASK.store(task.map_or(0, |task| task as usize), Ordering::SeqCst);
    for apic_id in 1..cpus {
        interrupts::send_ipi(apic_id, INIT);
        interrupts::send_ipi(apic_id, STARTUP);
        interrupts::send_ipi(apic_id, STARTUP);
    }
    while ARRIVED.load(Ordering::SeqCst) < cpus - 1 {
        core::hint::spin_loop();
    }
}

/// The identities of the CPUs that arrived, this one not among them, as packed by [`arrive`].
pub fn arrived() -> impl Iterator<Item = Identity> {
    let count = ARRIVED.load(Ordering::SeqCst) as usize;
    IDENTITIES.iter().take(count + 1).skip(1).map(|packed| {
        let packed = packed.load(Ordering::SeqCst);
        Identity { initial: packed >> 16, extended: packed >> 8 & 0xff, local: packed & 0xff }
    })
}

/// The life of another CPU, the `cpu`th to arrive.
pub fn arrive(cpu: u32) -> ! {
    let Identity { initial, extended, local } = identity();
    if let Some(slot) = IDENTITIES.get(cpu as usize) {
        slot.store(initial << 16 | (extended & 0xff) << 8 | local, Ordering::SeqCst);
    }
    for _ in 0..100 {
        COUNTER.fetch_add(1, Ordering::SeqCst);
    }
    ARRIVED.fetch_add(1, Ordering::SeqCst);
    let task = TASK.load(Ordering::SeqCst);
    if task != 0 {
        // SAFETY: `start` stored a function of this type.
        let task = unsafe { core::mem::transmute::<usize, fn(u32)>(task) };
        task(cpu);
    }
    gate::halt_forever()
}
