//! A few instructions in a real VM: the only proof that guest mode works.
//!
//! The guest is one page in flat 32-bit protected mode without paging: the state every KVM backend runs, be it
//! `kvm_intel` with or without `unrestricted_guest`, `kvm_amd`, or one without hardware virtualization. It adds two
//! numbers, puts the sum through its own memory and writes it to an I/O port; the sum must arrive as KVM_EXIT_IO.

use std::os::unix::thread::JoinHandleExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kvm_bindings::{kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use serde::{Deserialize, Serialize};

/// How long the guest may take. It needs microseconds; a nested node under load needs milliseconds.
pub const LIMIT: Duration = Duration::from_secs(10);

/// How long a guest that would not stop is asked to, before its thread is left behind.
const PATIENCE: Duration = Duration::from_secs(1);

const PAGE_BYTES: usize = 4096;
/// Where the page is in the guest: not at 0, so that a stray null pointer would be noticed.
const GUEST_BASE: u64 = 0x1000;
/// Right after the identity map page that KVM puts at 0xfffb_c000 (KVM API, KVM_SET_TSS_ADDR: three pages under
/// 4 GiB that nothing else uses).
const TSS_ADDRESS: usize = 0xfffb_d000;
const PORT: u8 = 0x80;
const FIRST: u8 = 0x29;
const SECOND: u8 = 0x53;
/// What the guest must report.
const SUM: u8 = FIRST + SECOND;

/// `mov al, FIRST; add al, SECOND; mov [0x1800], al; xor eax, eax; mov al, [0x1800]; out PORT, al; hlt`
const CODE: [u8; 19] = [
    0xb0, FIRST, 0x04, SECOND, 0xa2, 0x00, 0x18, 0x00, 0x00, 0x31, 0xc0, 0xa0, 0x00, 0x18, 0x00, 0x00, 0xe6,
    PORT, 0xf4,
];

/// How the test guest fared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
pub enum GuestMode {
    /// The computed value arrived: guest mode works.
    Ran {
        /// What the guest computed.
        value: u8,
    },
    /// The guest ran but reported something else.
    WrongValue {
        /// What arrived.
        value: u8,
        /// What should have arrived.
        expected: u8,
    },
    /// An ioctl on the way into the guest failed.
    CallFailed {
        /// Which one, for example `KVM_CREATE_VM`.
        call: String,
        /// Its error number.
        errno: i32,
    },
    /// KVM_EXIT_FAIL_ENTRY: the CPU refused to enter guest mode.
    EntryRefused {
        /// `hardware_entry_failure_reason`, which is the VMX exit reason or the SVM exit code.
        reason: u64,
    },
    /// KVM_EXIT_INTERNAL_ERROR: KVM could not go on.
    InternalError {
        /// Its sub-error (KVM API §5, `kvm_run.internal.suberror`).
        suberror: u32,
    },
    /// An exit that these instructions cannot cause.
    UnexpectedExit {
        /// Which one.
        exit: String,
    },
    /// Nothing came back in time.
    Hung {
        /// How long was waited.
        seconds: u64,
    },
}

/// Runs the test guest on `/dev/kvm`, on a thread of its own, for at most [`LIMIT`].
#[must_use]
pub fn probe() -> GuestMode {
    run_code(&CODE, LIMIT)
}

/// Runs `code`, which must fit into a page, and waits for at most `limit`.
fn run_code(code: &'static [u8], limit: Duration) -> GuestMode {
    let stop = Arc::new(AtomicBool::new(false));
    let stop_seen = Arc::clone(&stop);
    let (sender, receiver) = mpsc::channel();
    let run = move || {
        let outcome = run_guest(code, &stop_seen).unwrap_or_else(|failure| failure);
        // Nobody listens once the limit has passed; then the outcome does not matter either.
        let _ = sender.send(outcome);
    };
    let thread = match std::thread::Builder::new().name("preflight-vcpu".to_owned()).spawn(run) {
        Ok(thread) => thread,
        Err(error) => {
            return GuestMode::CallFailed {
                call: "clone (a thread for the vCPU)".to_owned(),
                errno: error.raw_os_error().unwrap_or(libc::EAGAIN),
            };
        }
    };
    match receiver.recv_timeout(limit) {
        Ok(outcome) => outcome,
        Err(RecvTimeoutError::Disconnected) => GuestMode::UnexpectedExit { exit: "no answer".to_owned() },
        Err(RecvTimeoutError::Timeout) => {
            stop.store(true, Ordering::SeqCst);
            call_back(&thread);
            GuestMode::Hung { seconds: limit.as_secs() }
        }
    }
}

/// Gets a thread out of KVM_RUN with a signal, again and again because one may come just before the ioctl.
fn call_back(thread: &JoinHandle<()>) {
    extern "C" fn ignore(_: libc::c_int) {}
    let signal = libc::SIGRTMIN() + 7;
    let handler = nix::sys::signal::SaFlags::empty();
    let Ok(previous) = install(signal, ignore as *const () as usize, handler.bits()) else { return };
    let started = Instant::now();
    while !thread.is_finished() && started.elapsed() < PATIENCE {
        // SAFETY: the JoinHandle is neither joined nor dropped yet, so the pthread_t is valid.
        unsafe { libc::pthread_kill(thread.as_pthread_t(), signal) };
        std::thread::sleep(Duration::from_millis(20));
    }
    if thread.is_finished() {
        let _ = install(signal, previous.sa_sigaction, previous.sa_flags);
    }
}

/// sigaction(2) for a signal nix has no name for; returns what was there before.
fn install(signal: libc::c_int, handler: usize, flags: libc::c_int) -> Result<libc::sigaction, ()> {
    // SAFETY: an all-zero sigaction is a valid one: default action, empty mask, no flags.
    let mut new: libc::sigaction = unsafe { std::mem::zeroed() };
    let mut old = new;
    new.sa_sigaction = handler;
    new.sa_flags = flags;
    // SAFETY: both point to live sigaction structures; the handler is a function that does nothing, or the one
    // that was installed before.
    match unsafe { libc::sigaction(signal, &raw const new, &raw mut old) } {
        0 => Ok(old),
        _ => Err(()),
    }
}

/// One page of guest RAM.
#[repr(C, align(4096))]
struct GuestPage([u8; PAGE_BYTES]);

/// The failure of one ioctl, by name.
fn failed(call: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> GuestMode {
    move |error| GuestMode::CallFailed { call: call.to_owned(), errno: error.errno() }
}

/// Makes the machine and runs it. Failing on the way is an outcome like any other.
fn run_guest(code: &[u8], stop: &AtomicBool) -> Result<GuestMode, GuestMode> {
    let mut page = Box::new(GuestPage([0; PAGE_BYTES]));
    for (byte, instruction) in page.0.iter_mut().zip(code) {
        *byte = *instruction;
    }
    let kvm = Kvm::new().map_err(failed("open /dev/kvm"))?;
    let vm = kvm.create_vm().map_err(failed("KVM_CREATE_VM"))?;
    // Both as a real machine does them: the three pages for real mode, and the interrupt controllers in the kernel.
    vm.set_tss_address(TSS_ADDRESS).map_err(failed("KVM_SET_TSS_ADDR"))?;
    vm.create_irq_chip().map_err(failed("KVM_CREATE_IRQCHIP"))?;
    map(&vm, &mut page)?;
    let mut vcpu = vm.create_vcpu(0).map_err(failed("KVM_CREATE_VCPU"))?;
    set_state(&vcpu)?;
    let outcome = run_vcpu(&mut vcpu, stop);
    // The page must outlive the VM that maps it.
    drop((vcpu, vm, page));
    Ok(outcome)
}

fn map(vm: &VmFd, page: &mut GuestPage) -> Result<(), GuestMode> {
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: GUEST_BASE,
        memory_size: PAGE_BYTES as u64,
        userspace_addr: page.0.as_mut_ptr() as u64,
    };
    // SAFETY: the region is exactly one live, page-aligned page, and `run_guest` drops it after the VM.
    unsafe { vm.set_user_memory_region(region) }.map_err(failed("KVM_SET_USER_MEMORY_REGION"))
}

/// Flat 32-bit protected mode, paging off (SDM Vol. 3, "Switching to Protected Mode"), starting at the code.
fn set_state(vcpu: &VcpuFd) -> Result<(), GuestMode> {
    let mut sregs = vcpu.get_sregs().map_err(failed("KVM_GET_SREGS"))?;
    let flat = |selector, type_| kvm_segment {
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    sregs.cs = flat(0x08, 0xb);
    let data = flat(0x10, 0x3);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment { limit: 0x67, selector: 0x18, type_: 0xb, present: 1, ..Default::default() };
    sregs.ldt = kvm_segment { unusable: 1, ..Default::default() };
    sregs.cr0 = 0x21; // PE and NE
    sregs.cr4 = 0;
    sregs.efer = 0;
    vcpu.set_sregs(&sregs).map_err(failed("KVM_SET_SREGS"))?;
    let mut regs = vcpu.get_regs().map_err(failed("KVM_GET_REGS"))?;
    regs.rip = GUEST_BASE;
    regs.rflags = 2;
    vcpu.set_regs(&regs).map_err(failed("KVM_SET_REGS"))
}

fn run_vcpu(vcpu: &mut VcpuFd, stop: &AtomicBool) -> GuestMode {
    loop {
        let outcome = match vcpu.run() {
            Ok(VcpuExit::IoOut(port, [value])) if port == u16::from(PORT) => judge(*value),
            Ok(VcpuExit::FailEntry(reason, _)) => GuestMode::EntryRefused { reason },
            Ok(VcpuExit::InternalError) => GuestMode::InternalError { suberror: suberror(vcpu) },
            Ok(VcpuExit::Intr) => GuestMode::CallFailed { call: "KVM_RUN".to_owned(), errno: libc::EINTR },
            Ok(exit) => GuestMode::UnexpectedExit { exit: format!("{exit:?}") },
            Err(error) => failed("KVM_RUN")(error),
        };
        let interrupted = matches!(&outcome, GuestMode::CallFailed { errno, .. } if [libc::EINTR, libc::EAGAIN].contains(errno));
        if !interrupted || stop.load(Ordering::SeqCst) {
            return outcome;
        }
    }
}

fn judge(value: u8) -> GuestMode {
    if value == SUM { GuestMode::Ran { value } } else { GuestMode::WrongValue { value, expected: SUM } }
}

/// The sub-error of the exit that just happened.
fn suberror(vcpu: &mut VcpuFd) -> u32 {
    let run = vcpu.get_kvm_run();
    // SAFETY: the exit reason was KVM_EXIT_INTERNAL_ERROR, so `internal` is the valid member of the union.
    unsafe { run.__bindgen_anon_1.internal.suberror }
}

#[cfg(test)]
mod tests {
    //! These need a `/dev/kvm` of any backend, and say so when there is none.

    use super::*;

    #[test]
    fn the_sum_arrives() {
        assert_eq!(probe(), GuestMode::Ran { value: SUM });
    }

    #[test]
    fn a_wrong_sum_is_noticed() {
        // mov al, 1; out PORT, al
        assert_eq!(
            run_code(&[0xb0, 1, 0xe6, PORT], LIMIT),
            GuestMode::WrongValue { value: 1, expected: SUM }
        );
    }

    #[test]
    fn a_guest_that_loops_for_ever_is_given_up() {
        let before = Instant::now();
        // jmp $
        assert_eq!(run_code(&[0xeb, 0xfe], Duration::from_millis(300)), GuestMode::Hung { seconds: 0 });
        assert!(before.elapsed() < Duration::from_millis(300) + PATIENCE, "the vCPU thread came back");
    }

    #[test]
    fn a_guest_that_crashes_is_named() {
        // ud2 without an interrupt table: a triple fault, or an error of KVM's emulator.
        let outcome = run_code(&[0x0f, 0x0b], LIMIT);
        let named = matches!(outcome, GuestMode::UnexpectedExit { .. } | GuestMode::InternalError { .. });
        assert!(named, "{outcome:?}");
    }
}
