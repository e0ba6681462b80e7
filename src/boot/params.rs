//! `struct boot_params`, the "zero page" of the 64-bit boot protocol
//! (Documentation/arch/x86/boot.rst and zero-page.rst).

use linux_loader::loader::bootparam::{LOADED_HIGH, boot_e820_entry, boot_params, setup_header};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::ram::Ram;
use super::{BootError, Placed};
use crate::x86::layout::{BOOT_PARAMS_START, CMDLINE_MAX_BYTES};

const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = u32::from_le_bytes(*b"HdrS");
/// What an ELF kernel, which has no setup header, is told it was loaded by: protocol 2.15.
const PROTOCOL: u16 = 0x20f;
/// A boot loader without an assigned number.
const LOADER_UNDEFINED: u8 = 0xff;
const KERNEL_ALIGNMENT: u32 = 16 << 20;

/// Writes boot_params at [`BOOT_PARAMS_START`], starting from the `header` in the kernel file (all zero for an ELF one).
///
/// # Errors
/// When the guest has no RAM there.
pub fn write(
    memory: &GuestMemoryMmap,
    ram: &Ram,
    header: setup_header,
    placed: &Placed,
) -> Result<GuestAddress, BootError> {
    let mut params = boot_params { hdr: complete(header), ..Default::default() };
    params.acpi_rsdp_addr = placed.rsdp.0;
    (params.hdr.cmd_line_ptr, params.ext_cmd_line_ptr) = split(placed.cmdline.0);
    if let Some(initrd) = placed.initrd {
        (params.hdr.ramdisk_image, params.ext_ramdisk_image) = split(initrd.start.0);
        (params.hdr.ramdisk_size, params.ext_ramdisk_size) = split(initrd.bytes);
    }
    let map = ram.map();
    for (slot, range) in params.e820_table.iter_mut().zip(&map) {
        *slot = boot_e820_entry { addr: range.start, size: range.size, r#type: range.kind as u32 };
    }
    params.e820_entries = map.len().min(params.e820_table.len()) as u8;
    let start = GuestAddress(BOOT_PARAMS_START);
    memory.write_obj(params, start).map_err(BootError::writing("boot_params"))?;
    Ok(start)
}

/// Fills in the header fields a boot loader must, and all of them for a kernel that has no header.
fn complete(mut header: setup_header) -> setup_header {
    if header.header != HEADER_MAGIC {
        header.boot_flag = BOOT_FLAG;
        header.header = HEADER_MAGIC;
        header.version = PROTOCOL;
        header.kernel_alignment = KERNEL_ALIGNMENT;
        header.cmdline_size = CMDLINE_MAX_BYTES as u32;
    }
    header.type_of_loader = LOADER_UNDEFINED;
    header.loadflags |= LOADED_HIGH;
    // A linked list of further data, which this loader passes none of; the file's value is not ours to trust.
    header.setup_data = 0;
    header
}

/// The low and high half of a number whose high half has a field of its own.
fn split(value: u64) -> (u32, u32) {
    (value as u32, (value >> 32) as u32)
}
