//! Where and in which mode a guest is entered.

use vm_memory::GuestAddress;

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
