//! One vCPU: its initial state, and the thread that runs it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use kvm_bindings::{CpuId, KVM_MP_STATE_RUNNABLE, Msrs, kvm_mp_state, kvm_run};
use kvm_ioctls::{VcpuExit, VcpuFd};

use super::control::Control;
use super::error::{MachineError, kvm};
use super::exits::{ExitCounters, ExitReason};
use crate::boot::EntryPoint;
use crate::devices::bus::Bus;
use crate::status::model::{BootStage, EndReason};
use crate::x86::{cpuid, msrs, registers};

/// The two address spaces a vCPU's exits go to.
#[derive(Clone)]
pub(super) struct Buses {
    pub(super) pio: Arc<Bus>,
    pub(super) mmio: Arc<Bus>,
}

/// A vCPU that is not running yet.
pub(super) struct Vcpu {
    fd: VcpuFd,
    id: u8,
    buses: Buses,
    control: Arc<Control>,
    exits: Arc<ExitCounters>,
}

/// What follows an exit.
enum Next {
    Run,
    End(EndReason),
}

impl Vcpu {
    pub(super) fn new(fd: VcpuFd, id: u8, buses: Buses, control: Arc<Control>) -> Self {
        Self { fd, id, buses, control, exits: Arc::default() }
    }

    /// Sets CPUID, and the registers of a CPU after reset.
    pub(super) fn set_up(
        &self,
        supported: &CpuId,
        facts: &cpuid::VcpuFacts,
        entry: Option<&EntryPoint>,
    ) -> Result<(), MachineError> {
        let table = cpuid::for_vcpu(supported.as_slice(), facts);
        let table =
            CpuId::from_entries(&table).map_err(|_| invalid("the CPUID table has too many entries"))?;
        self.fd.set_cpuid2(&table).map_err(kvm("KVM refuses the CPUID table"))?;
        self.set_msrs()?;
        self.fd.set_fpu(&registers::fpu()).map_err(kvm("KVM refuses the initial FPU state"))?;
        match entry {
            Some(entry) => self.set_entry(entry),
            // The others wait for the boot vCPU's INIT and SIPI, which KVM handles.
            None => Ok(()),
        }
    }

    fn set_msrs(&self) -> Result<(), MachineError> {
        for msr in msrs::initial() {
            let one = Msrs::from_entries(&[msr.to_kvm()]).map_err(|_| invalid("too many MSRs"))?;
            let set = self.fd.set_msrs(&one).map_err(kvm("KVM refuses to set MSRs"))?;
            if set != 1 && msr.required {
                return Err(invalid("KVM refuses an MSR every guest needs"));
            }
        }
        Ok(())
    }

    fn set_entry(&self, entry: &EntryPoint) -> Result<(), MachineError> {
        let sregs = self.fd.get_sregs().map_err(kvm("KVM does not tell a vCPU's segment registers"))?;
        let (regs, sregs) = registers::initial(entry, sregs);
        self.fd.set_sregs(&sregs).map_err(kvm("KVM refuses the initial segment registers"))?;
        self.fd.set_regs(&regs).map_err(kvm("KVM refuses the initial registers"))?;
        let runnable = kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE };
        self.fd.set_mp_state(runnable).map_err(kvm("KVM cannot make the boot vCPU runnable"))
    }

    /// The descriptor, to be kicked and measured through.
    pub(super) fn fd(&self) -> &VcpuFd {
        &self.fd
    }

    /// The exit counters, which outlive the thread.
    pub(super) fn exits(&self) -> Arc<ExitCounters> {
        Arc::clone(&self.exits)
    }

    /// The thread's whole life: runs the guest until the machine ends.
    pub(super) fn run(mut self) {
        if self.id == 0 {
            self.control.reach(BootStage::Entered);
        }
        while !self.control.is_stopping() {
            if self.control.is_pausing() {
                self.rest();
                continue;
            }
            if let Next::End(reason) = self.step() {
                self.control.end(reason);
            }
        }
        self.control.fall_asleep();
    }

    /// Waits outside the guest while the machine is paused.
    fn rest(&mut self) {
        self.control.rest();
        self.forget_kick();
        // The guest's lockup detectors see the time that passed (KVM API §4.72). A guest without kvmclock has none to tell.
        let _ = self.fd.kvmclock_ctrl();
    }

    /// The kick that brought us here has done its work. One that comes from now on is not lost: `run` looks again at what it
    /// is for before it enters the guest.
    fn forget_kick(&mut self) {
        self.fd.set_kvm_immediate_exit(0);
        // That look must not overtake the store.
        fence(Ordering::SeqCst);
    }

    /// Enters the guest once and handles the exit.
    fn step(&mut self) -> Next {
        let count = |reason| self.exits.count(reason, 0);
        let run: *const kvm_run = self.fd.get_kvm_run();
        match self.fd.run() {
            Ok(VcpuExit::IoIn(port, data)) => {
                self.exits.count(ExitReason::IoIn, port.into());
                data.chunks_mut(io_width(run)).for_each(|unit| self.buses.pio.read(port.into(), unit));
            }
            Ok(VcpuExit::IoOut(port, data)) => {
                self.exits.count(ExitReason::IoOut, port.into());
                data.chunks(io_width(run)).for_each(|unit| self.buses.pio.write(port.into(), unit));
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                self.exits.count(ExitReason::MmioRead, address);
                self.buses.mmio.read(address, data);
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                self.exits.count(ExitReason::MmioWrite, address);
                self.buses.mmio.write(address, data);
            }
            Ok(VcpuExit::Intr) => {
                count(ExitReason::Interrupted);
                self.forget_kick();
            }
            Ok(VcpuExit::Hlt) => count(ExitReason::Halt),
            Ok(VcpuExit::Shutdown) => {
                count(ExitReason::Shutdown);
                return Next::End(EndReason::TripleFault);
            }
            Ok(VcpuExit::FailEntry(reason, cpu)) => {
                count(ExitReason::FailEntry);
                return self.kvm_error(&format!(
                    "KVM_EXIT_FAIL_ENTRY: the CPU refused to enter the guest (hardware reason {reason:#x}, host CPU {cpu})"
                ));
            }
            Ok(VcpuExit::InternalError) => {
                count(ExitReason::InternalError);
                let detail = self.internal_error();
                return self.kvm_error(&detail);
            }
            Ok(VcpuExit::SystemEvent(kind, _)) => {
                count(ExitReason::SystemEvent);
                return self.kvm_error(&format!(
                    "KVM_EXIT_SYSTEM_EVENT: type {kind}, which no x86 guest should cause"
                ));
            }
            Ok(other) => {
                count(ExitReason::Other);
                let detail = format!("{}: nothing in this machine asks KVM for that exit", name(&other));
                return self.kvm_error(&detail);
            }
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                count(ExitReason::Interrupted);
                // It may be of a pause that was given up.
                self.forget_kick();
            }
            Err(error) => return self.kvm_error(&format!("KVM_RUN failed: {}", io::Error::from(error))),
        }
        Next::Run
    }

    fn kvm_error(&self, what: &str) -> Next {
        let at = self.fd.get_regs().map_or_else(|_| String::new(), |regs| format!(" at rip {:#x}", regs.rip));
        Next::End(EndReason::KvmError { detail: format!("vCPU {}: {what}{at}", self.id) })
    }

    /// KVM_EXIT_INTERNAL_ERROR in words (KVM API §5, `internal`).
    fn internal_error(&mut self) -> String {
        let run = self.fd.get_kvm_run();
        // SAFETY: after KVM_EXIT_INTERNAL_ERROR `internal` is the member of the union KVM has filled.
        let suberror = unsafe { run.__bindgen_anon_1.internal.suberror };
        let means = match suberror {
            kvm_bindings::KVM_INTERNAL_ERROR_EMULATION => "KVM cannot emulate the guest's instruction",
            kvm_bindings::KVM_INTERNAL_ERROR_SIMUL_EX => "two exceptions at once could not be delivered",
            kvm_bindings::KVM_INTERNAL_ERROR_DELIVERY_EV => "an event could not be delivered",
            kvm_bindings::KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON => {
                "the CPU exited for a reason KVM does not know"
            }
            _ => "of an unknown kind",
        };
        format!("KVM_EXIT_INTERNAL_ERROR: {means} (suberror {suberror})")
    }
}

/// Bytes of one port access: a string instruction makes many of them in one exit (KVM API §5, `io`).
fn io_width(run: *const kvm_run) -> usize {
    // SAFETY: `run` points to the mapped kvm_run of this vCPU; only its own KVM_RUN writes there.
    let exit = unsafe { &(*run).__bindgen_anon_1 };
    // SAFETY: after KVM_EXIT_IO `io` is the member of the union KVM has filled.
    let width = unsafe { exit.io.size };
    usize::from(width.max(1))
}

/// The exits that only an enabled capability, another architecture or a debugger causes, by KVM's names.
fn name(exit: &VcpuExit<'_>) -> String {
    let name = match exit {
        VcpuExit::Unknown => "KVM_EXIT_UNKNOWN",
        VcpuExit::Exception => "KVM_EXIT_EXCEPTION",
        VcpuExit::Hypercall(_) => "KVM_EXIT_HYPERCALL",
        VcpuExit::Debug(_) => "KVM_EXIT_DEBUG",
        VcpuExit::IrqWindowOpen => "KVM_EXIT_IRQ_WINDOW_OPEN",
        VcpuExit::SetTpr => "KVM_EXIT_SET_TPR",
        VcpuExit::TprAccess => "KVM_EXIT_TPR_ACCESS",
        VcpuExit::Nmi => "KVM_EXIT_NMI",
        VcpuExit::Watchdog => "KVM_EXIT_WATCHDOG",
        VcpuExit::IoapicEoi(_) => "KVM_EXIT_IOAPIC_EOI",
        VcpuExit::Hyperv => "KVM_EXIT_HYPERV",
        VcpuExit::X86Rdmsr(_) => "KVM_EXIT_X86_RDMSR",
        VcpuExit::X86Wrmsr(_) => "KVM_EXIT_X86_WRMSR",
        VcpuExit::MemoryFault { gpa, .. } => return format!("KVM_EXIT_MEMORY_FAULT at {gpa:#x}"),
        VcpuExit::Unsupported(reason) => return format!("KVM exit reason {reason}"),
        _ => "an exit of another architecture",
    };
    name.to_owned()
}

fn invalid(doing: &'static str) -> MachineError {
    MachineError::Kvm { doing, source: kvm_ioctls::Error::new(libc::EINVAL) }
}
