//! From files to a guest that can be entered: kernel formats, boot parameters, ACPI tables, the command line.
//!
//! [`load`] is the whole story: find out what RAM there is, place the kernel, put the initrd at the top of low RAM, and
//! write the command line, the ACPI tables and the boot parameters below 1 MiB. Every function here works on guest
//! memory that was zero before, and reads kernel and initrd straight into it.

use std::path::Path;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::x86::layout::{CMDLINE_MAX_BYTES, CMDLINE_START};
use crate::x86::{paging, registers};

pub mod acpi;
pub mod cmdline;
pub mod error;
pub mod image;
pub mod initrd;
pub mod kernel;
pub mod params;
pub mod pvh;
pub mod ram;

mod bzimage;
mod elf;
mod looks_like;

pub use crate::x86::entry::EntryPoint;
pub use error::BootError;

use initrd::Initrd;
use kernel::{Kernel, KernelKind};
use ram::Ram;

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
    /// Whether the machine has a watchdog, for the WDAT.
    pub watchdog: bool,
}

/// What the boot parameters of either protocol point to.
#[derive(Debug, Clone, Copy)]
pub struct Placed {
    /// The command line, ended by a zero byte.
    pub cmdline: GuestAddress,
    /// The initial RAM disk.
    pub initrd: Option<Initrd>,
    /// The ACPI root system description pointer.
    pub rsdp: GuestAddress,
}

/// Places kernel, initrd, command line, boot parameters and ACPI tables into `memory`, which must still be zero.
///
/// # Errors
/// One sentence per way the files can be wrong; see [`BootError`].
pub fn load(memory: &GuestMemoryMmap, request: &BootRequest<'_>) -> Result<EntryPoint, BootError> {
    let ram = Ram::of(memory)?;
    let kernel = kernel::load(memory, &ram, request.kernel)?;
    let initrd = request.initrd.map(|path| initrd::load(memory, &ram, &kernel, path)).transpose()?;
    let cmdline = write_cmdline(memory, request.cmdline, &kernel)?;
    let &BootRequest { cpus, serial, watchdog, .. } = request;
    let rsdp = acpi::write(memory, &acpi::Machine { cpus, serial, watchdog })?;
    let entry = write_parameters(memory, &ram, &kernel, Placed { cmdline, initrd, rsdp })?;
    registers::write_gdt(memory, &entry).map_err(BootError::writing("the GDT"))?;
    Ok(entry)
}

/// Writes the parameters of the protocol the kernel is entered by.
fn write_parameters(
    memory: &GuestMemoryMmap,
    ram: &Ram,
    kernel: &Kernel,
    placed: Placed,
) -> Result<EntryPoint, BootError> {
    let rip = GuestAddress(kernel.entry);
    if kernel.kind == KernelKind::Pvh {
        return Ok(EntryPoint::Pvh { rip, start_info: pvh::write(memory, ram, &placed)? });
    }
    let boot_params = params::write(memory, ram, kernel.setup_header(), &placed)?;
    let page_table = paging::write_identity_map(memory).map_err(BootError::writing("the page tables"))?;
    Ok(EntryPoint::Linux64 { rip, boot_params, page_table })
}

fn write_cmdline(
    memory: &GuestMemoryMmap,
    cmdline: &str,
    kernel: &Kernel,
) -> Result<GuestAddress, BootError> {
    let limit = kernel.cmdline_limit().min(CMDLINE_MAX_BYTES);
    if cmdline.len() > limit {
        return Err(BootError::CmdlineTooLong { bytes: cmdline.len(), limit });
    }
    if let Some(position) = cmdline.bytes().position(|byte| byte == 0) {
        return Err(BootError::CmdlineHasNul { position });
    }
    let start = GuestAddress(CMDLINE_START);
    let mut bytes = cmdline.as_bytes().to_vec();
    bytes.push(0);
    memory.write_slice(&bytes, start).map_err(BootError::writing("the command line"))?;
    Ok(start)
}

#[cfg(test)]
mod samples;
#[cfg(test)]
mod tests;
