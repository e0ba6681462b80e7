//! `hvm_start_info`, what a kernel entered by the x86/HVM direct boot ABI gets in `ebx`
//! (xen/include/public/arch-x86/hvm/start_info.h).

use linux_loader::loader::elf::start_info::{
    XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::ram::Ram;
use super::{BootError, Placed};
use crate::x86::layout::PVH_START_INFO_START;

/// Version 1 is the first with a memory map, without which Linux does not boot outside of Xen.
const VERSION: u32 = 1;
const MODULES_START: u64 = PVH_START_INFO_START + 0x40;
const MAP_START: u64 = PVH_START_INFO_START + 0x80;

/// Writes the start info at [`PVH_START_INFO_START`], its module list (the initrd) and memory map right after it.
///
/// # Errors
/// When the guest has no RAM there.
pub fn write(memory: &GuestMemoryMmap, ram: &Ram, placed: &Placed) -> Result<GuestAddress, BootError> {
    let map = ram.map();
    let mut info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: VERSION,
        cmdline_paddr: placed.cmdline.0,
        rsdp_paddr: placed.rsdp.0,
        memmap_paddr: MAP_START,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    if let Some(initrd) = placed.initrd {
        info.nr_modules = 1;
        info.modlist_paddr = MODULES_START;
        let module = hvm_modlist_entry { paddr: initrd.start.0, size: initrd.bytes, ..Default::default() };
        memory
            .write_obj(module, GuestAddress(MODULES_START))
            .map_err(BootError::writing("the PVH module list"))?;
    }
    for (range, start) in map.iter().zip((MAP_START..).step_by(size_of::<hvm_memmap_table_entry>())) {
        let entry = hvm_memmap_table_entry {
            addr: range.start,
            size: range.size,
            type_: range.kind as u32,
            reserved: 0,
        };
        memory.write_obj(entry, GuestAddress(start)).map_err(BootError::writing("the PVH memory map"))?;
    }
    let start = GuestAddress(PVH_START_INFO_START);
    memory.write_obj(info, start).map_err(BootError::writing("the PVH start info"))?;
    Ok(start)
}
