//! From files to a guest that can be entered: kernel formats, boot parameters, ACPI tables, the command line.

use std::path::Path;

use vm_memory::{GuestAddress, GuestMemoryMmap};

/// What the loader needs to know.
#[derive(Debug, Clone, Copy)]
pub struct BootRequest<'a> {
    /// Kernel image: ELF `vmlinux` or bzImage.
    pub kernel: &'a Path,
    /// Initial RAM disk.
    pub initrd: Option<&'a Path>,
    /// The complete kernel command line.
    pub cmdline: &'a str,
    /// Number of vCPUs, for the MADT.
    pub cpus: u8,
    /// Whether the machine has a COM1 UART, for the DSDT.
    pub serial: bool,
}

/// Where and in which mode the boot vCPU enters the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryPoint {
    /// 32-bit protected mode without paging, `ebx` = the start info (the x86/HVM direct boot ABI).
    Pvh {
        /// First instruction.
        rip: GuestAddress,
        /// `hvm_start_info`.
        start_info: GuestAddress,
    },
    /// Long mode with identity-mapped page tables, `rsi` = boot_params (Documentation/arch/x86/boot.rst, 64-bit protocol).
    Linux64 {
        /// First instruction.
        rip: GuestAddress,
        /// `struct boot_params`.
        boot_params: GuestAddress,
        /// `CR3`.
        page_table: GuestAddress,
    },
}

/// Why a guest could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum BootError {}

/// Places kernel, initrd, command line, boot parameters and ACPI tables into `memory`.
///
/// # Errors
/// One sentence per way the files can be wrong; see [`BootError`].
pub fn load(_memory: &GuestMemoryMmap, _request: &BootRequest<'_>) -> Result<EntryPoint, BootError> {
    Ok(EntryPoint::Pvh { rip: GuestAddress(0), start_info: GuestAddress(0) })
}
