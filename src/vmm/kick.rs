//! Getting a vCPU thread out of KVM_RUN without a race.
//!
//! A signal alone can arrive just before KVM_RUN and be lost. `immediate_exit` in the shared `kvm_run` page (KVM API §5)
//! closes the gap: it is set first, then the signal is sent, so KVM_RUN returns either way.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Once;
use std::thread::JoinHandle;

use kvm_bindings::kvm_run;
use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

const PAGE: usize = 4096;

/// A second mapping of a vCPU's `kvm_run` page, so that kicking it depends on no other thread's mapping.
#[derive(Debug)]
pub(super) struct Kicker {
    page: *mut u8,
}

// SAFETY: the page is shared memory that only takes one byte store from here.
unsafe impl Send for Kicker {}
// SAFETY: as above.
unsafe impl Sync for Kicker {}

impl Kicker {
    /// Maps the page of `vcpu`.
    pub(super) fn new(vcpu: &VcpuFd) -> io::Result<Self> {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new shared mapping of the first page of the vCPU's descriptor, which is at least one page long.
        let page =
            unsafe { libc::mmap(std::ptr::null_mut(), PAGE, prot, libc::MAP_SHARED, vcpu.as_raw_fd(), 0) };
        if page == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { page: page.cast() })
    }

    /// Makes the vCPU's current or next KVM_RUN return.
    pub(super) fn kick(&self, thread: &JoinHandle<()>) {
        let immediate_exit = self.page.wrapping_add(std::mem::offset_of!(kvm_run, immediate_exit));
        // SAFETY: the byte lies in the page mapped by `new`.
        unsafe { immediate_exit.write_volatile(1) };
        // A thread that has ended needs no signal.
        let _ = thread.kill(SIGRTMIN());
    }
}

impl Drop for Kicker {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, used by nobody else.
        unsafe { libc::munmap(self.page.cast(), PAGE) };
    }
}

/// Gives the kick signal a handler that does nothing, so that it interrupts KVM_RUN and nothing more.
pub(super) fn install_signal_handler() -> io::Result<()> {
    extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    static ONCE: Once = Once::new();
    let mut result = Ok(());
    ONCE.call_once(|| result = register_signal_handler(SIGRTMIN(), nothing));
    result.map_err(io::Error::from)
}
