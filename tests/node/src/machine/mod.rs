//! The machine's power-on state, and the Bochs that runs it.
//!
//! No disk and no boot loader: kernel, initramfs and a page of boot information are placed in RAM before power-on, and
//! an option ROM takes the CPU from the BIOS straight into the kernel's PVH entry.
//!
//! ```text
//! 0x000d_0000  option ROM                    (rom)
//! 0x0010_0000  boot information, one page    (boot_info)
//! 0x0100_0000  kernel, where its ELF says    (kernel)
//! next 2 MiB   initramfs
//! top - 64 KiB the BIOS' ACPI tables
//! ```

pub(crate) mod bochs;
pub(crate) mod boot_info;
pub(crate) mod kernel;
pub(crate) mod rom;
