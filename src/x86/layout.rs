//! The guest physical address space and the I/O ports of the machine.
//!
//! ```text
//! 0                                                  3 GiB      3.5 GiB              4 GiB
//! | RAM (up to 3 GiB)                                | PCI BARs | ECAM | IOAPIC LAPIC | RAM above 4 GiB
//! ```

/// One mebibyte.
pub const MIB: u64 = 1 << 20;
/// One gibibyte.
pub const GIB: u64 = 1 << 30;

/// RAM below 4 GiB ends here at the latest; what does not fit continues at [`HIGH_RAM_START`].
pub const LOW_RAM_MAX_END: u64 = 3 * GIB;
/// Where RAM goes on above the PCI hole.
pub const HIGH_RAM_START: u64 = 4 * GIB;

/// Global descriptor table the boot vCPU starts with, right above the BIOS data area (0x400 to 0x500).
pub const GDT_START: u64 = 0x500;
/// `hvm_start_info`, its module list and its memory map: one page.
pub const PVH_START_INFO_START: u64 = 0x6000;
/// `struct boot_params` (the "zero page") of the 64-bit Linux boot protocol: one page.
pub const BOOT_PARAMS_START: u64 = 0x7000;
/// Initial stack pointer of the 64-bit entry; no protocol asks for one, but a payload that calls a function needs it.
pub const BOOT_STACK_TOP: u64 = 0x8ff0;
/// PML4, page directory pointer table and four page directories that map the first 4 GiB one to one: six pages.
pub const PAGE_TABLES_START: u64 = 0x9000;
/// First byte after those page tables.
pub const PAGE_TABLES_END: u64 = 0xf000;
/// The kernel command line, ended by a zero byte.
pub const CMDLINE_START: u64 = 0x2_0000;
/// Longest command line in bytes, without the zero byte (`COMMAND_LINE_SIZE` of x86 Linux is 2048 with it).
pub const CMDLINE_MAX_BYTES: usize = 2047;

/// End of the conventional memory a guest may use below 1 MiB (the rest is reserved, as PC firmware leaves it).
pub const LOW_MEMORY_END: u64 = 0x9_fc00;
/// The VM generation ID: 16 bytes on a page of the reserved range between conventional memory and the ACPI tables. Not at
/// its start, because kernels look for adapter ROMs at every multiple of 2 KiB there.
pub const GENERATION_ID_START: u64 = 0xd_f040;
/// ACPI tables, reserved in the memory map.
pub const ACPI_START: u64 = 0xe_0000;
/// First byte after the ACPI tables.
pub const ACPI_END: u64 = 0x10_0000;
/// Extended memory starts here.
pub const HIGH_MEMORY_START: u64 = MIB;

/// First byte of the window PCI BARs live in.
pub const PCI_MMIO_START: u64 = LOW_RAM_MAX_END;
/// First byte after that window.
pub const PCI_MMIO_END: u64 = PCI_ECAM_START;
/// PCI Express enhanced configuration space (ECAM) of bus 0: 4 KiB per function.
pub const PCI_ECAM_START: u64 = 0xe000_0000;
/// Size of the ECAM window: one bus.
pub const PCI_ECAM_SIZE: u64 = MIB;

/// The in-kernel IOAPIC.
pub const IOAPIC_START: u64 = 0xfec0_0000;
/// Number of IOAPIC pins, and the first GSI free for MSI routes.
pub const IOAPIC_PINS: u32 = 24;
/// The local APICs.
pub const LAPIC_START: u64 = 0xfee0_0000;
/// One page kvm_intel needs for its real-mode identity map (KVM API §4.41).
pub const KVM_IDENTITY_MAP_START: u64 = 0xfffb_c000;
/// Three pages kvm_intel needs for its real-mode TSS (KVM API §4.35).
pub const KVM_TSS_START: u64 = 0xfffb_d000;

/// ACPI sleep control register (ACPI 6.5 §4.8.3.7), one byte.
pub const SLEEP_CONTROL_PORT: u16 = 0x600;
/// ACPI sleep status register, one byte.
pub const SLEEP_STATUS_PORT: u16 = 0x601;
/// ACPI reset register (ACPI 6.5 §4.8.3.6), one byte.
pub const RESET_PORT: u16 = 0x602;
/// The value the guest writes to [`RESET_PORT`].
pub const RESET_VALUE: u8 = 1;
/// The sleep type that means S5 (soft off).
pub const S5_SLEEP_TYPE: u8 = 5;

/// First port of the COM1 UART.
pub const SERIAL_PORT: u16 = 0x3f8;
/// GSI of the COM1 UART.
pub const SERIAL_GSI: u32 = 4;

/// GSI of the ACPI power button: an edge is one press.
pub const POWER_BUTTON_GSI: u32 = 5;
/// GSI that tells the guest that its generation ID has changed.
pub const GENERATION_ID_GSI: u32 = 6;

/// The pvpanic port, where the device's first implementation has it.
pub const PVPANIC_PORT: u16 = 0x505;
/// The watchdog's control register, 32 bits: [`WATCHDOG_RUN`] or [`WATCHDOG_STOP`].
pub const WATCHDOG_CONTROL_PORT: u16 = 0x620;
/// The watchdog's timeout in milliseconds, 32 bits.
pub const WATCHDOG_TIMEOUT_PORT: u16 = 0x624;
/// What is left of it in milliseconds, 32 bits; a write of any value feeds the watchdog.
pub const WATCHDOG_REMAINING_PORT: u16 = 0x628;
/// The watchdog counts down.
pub const WATCHDOG_RUN: u32 = 1;
/// It does not.
pub const WATCHDOG_STOP: u32 = 0;
/// The longest timeout: an hour.
pub const WATCHDOG_MAX_MS: u32 = 3_600_000;

/// Where a PC kernel leaves 0x1234 when it reboots "warm" (the BIOS data area's reset flag).
///
/// With `reboot=panic_warm` on its command line a Linux guest does so only when it reboots because of a panic, which
/// tells a panic from a reboot without a driver in the guest.
pub const BDA_RESET_FLAG: u64 = 0x472;
/// That value.
pub const BDA_WARM_RESET: u16 = 0x1234;
