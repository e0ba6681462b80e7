//! The registers a guest is entered with, and the GDT they refer to.
//!
//! Application processors need none of this: KVM leaves them waiting for the INIT and SIPI the guest sends.

use kvm_bindings::{kvm_dtable, kvm_fpu, kvm_regs, kvm_segment, kvm_sregs};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::entry::EntryPoint;
use super::layout::{BOOT_STACK_TOP, GDT_START};

/// Selectors both protocols can use; the 64-bit one prescribes them (`__BOOT_CS`, `__BOOT_DS`: boot.rst).
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const TASK_SELECTOR: u16 = 0x20;
/// Null, unused, code, data, and a task segment that takes two slots in long mode.
const GDT_ENTRIES: usize = 6;

/// Segment types (SDM Vol. 3A §3.4.5.1, §3.5).
const CODE_EXECUTE_READ_ACCESSED: u8 = 0xb;
const DATA_READ_WRITE_ACCESSED: u8 = 0x3;
const TASK_BUSY: u8 = 0xb;

/// CR0 (SDM Vol. 3A §2.5).
const CR0_PROTECTED: u64 = 1;
const CR0_EXTENSION_TYPE: u64 = 1 << 4;
const CR0_PAGING: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
/// IA32_EFER (SDM Vol. 3A §2.2.1): long mode enabled, long mode active.
const EFER_LONG_MODE: u64 = (1 << 8) | (1 << 10);
/// The one bit of EFLAGS that is always set; interrupts are off.
const EFLAGS_RESERVED: u64 = 2;

/// The general and special registers of the boot vCPU.
///
/// `sregs` is what `KVM_GET_SREGS` returned for the new vCPU: whatever no boot protocol defines (APIC base, CR8, LDT)
/// stays as KVM made it.
///
/// - PVH (x86/HVM direct boot ABI): protected mode, paging off, flat 4 GiB code and data, a busy 32-bit TSS with limit
///   0x67, EFLAGS 2, `ebx` = start info.
/// - 64-bit boot protocol (boot.rst): long mode, 64-bit code segment, `rsi` = boot_params, interrupts off.
#[must_use]
pub fn initial(entry: &EntryPoint, mut sregs: kvm_sregs) -> (kvm_regs, kvm_sregs) {
    let mut regs = kvm_regs { rflags: EFLAGS_RESERVED, ..Default::default() };
    let long_mode = match *entry {
        EntryPoint::Pvh { rip, start_info } => {
            regs.rip = rip.0;
            regs.rbx = start_info.0;
            sregs.cr0 = CR0_PROTECTED | CR0_EXTENSION_TYPE;
            sregs.cr3 = 0;
            sregs.cr4 = 0;
            sregs.efer = 0;
            false
        }
        EntryPoint::Linux64 { rip, boot_params, page_table } => {
            regs.rip = rip.0;
            regs.rsi = boot_params.0;
            regs.rsp = BOOT_STACK_TOP;
            regs.rbp = BOOT_STACK_TOP;
            sregs.cr0 = CR0_PROTECTED | CR0_EXTENSION_TYPE | CR0_PAGING;
            sregs.cr3 = page_table.0;
            sregs.cr4 = CR4_PAE;
            sregs.efer = EFER_LONG_MODE;
            true
        }
    };
    set_segments(&mut sregs, long_mode);
    (regs, sregs)
}

/// The x87 and SSE state at reset as software expects it: all exceptions masked (SDM Vol. 1 §8.1.5, §11.6.4).
#[must_use]
pub fn fpu() -> kvm_fpu {
    kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..Default::default() }
}

/// Writes the GDT the selectors of [`initial`] refer to, at [`GDT_START`].
///
/// # Errors
/// When the guest has no RAM there.
pub fn write_gdt(memory: &GuestMemoryMmap, entry: &EntryPoint) -> Result<(), vm_memory::GuestMemoryError> {
    let long_mode = matches!(entry, EntryPoint::Linux64 { .. });
    let bytes: Vec<u8> = gdt(long_mode).iter().flat_map(|entry| entry.to_le_bytes()).collect();
    memory.write_slice(&bytes, GuestAddress(GDT_START))
}

fn gdt(long_mode: bool) -> [u64; GDT_ENTRIES] {
    [0, 0, descriptor(&code_segment(long_mode)), descriptor(&data_segment()), descriptor(&task_segment()), 0]
}

fn set_segments(sregs: &mut kvm_sregs, long_mode: bool) {
    sregs.cs = code_segment(long_mode);
    let data = data_segment();
    sregs.ds = data;
    sregs.es = data;
    sregs.fs = data;
    sregs.gs = data;
    sregs.ss = data;
    sregs.tr = task_segment();
    sregs.gdt = kvm_dtable { base: GDT_START, limit: (GDT_ENTRIES * 8 - 1) as u16, padding: [0; 3] };
    // No protocol defines an IDT: with an empty one a fault before the guest installs its own ends as a triple fault,
    // which is reported, instead of jumping to wherever address 0 points.
    sregs.idt = kvm_dtable { base: 0, limit: 0, padding: [0; 3] };
}

fn code_segment(long_mode: bool) -> kvm_segment {
    kvm_segment {
        selector: CODE_SELECTOR,
        type_: CODE_EXECUTE_READ_ACCESSED,
        l: u8::from(long_mode),
        db: u8::from(!long_mode),
        ..data_segment()
    }
}

fn data_segment() -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector: DATA_SELECTOR,
        type_: DATA_READ_WRITE_ACCESSED,
        present: 1,
        dpl: 0,
        db: 1,
        s: 1,
        l: 0,
        g: 1,
        ..Default::default()
    }
}

/// VM entry insists on a busy TSS in both modes (SDM Vol. 3C §26.3.1.2).
fn task_segment() -> kvm_segment {
    kvm_segment { limit: 0x67, selector: TASK_SELECTOR, type_: TASK_BUSY, present: 1, ..Default::default() }
}

/// Packs a segment into a descriptor (SDM Vol. 3A figure 3-8).
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = u64::from(if segment.g == 1 { segment.limit >> 12 } else { segment.limit });
    let base = segment.base;
    let access = u64::from(segment.type_ | (segment.s << 4) | (segment.dpl << 5) | (segment.present << 7));
    let flags = u64::from(segment.avl | (segment.l << 1) | (segment.db << 2) | (segment.g << 3));
    (limit & 0xffff)
        | ((base & 0xff_ffff) << 16)
        | (access << 40)
        | (((limit >> 16) & 0xf) << 48)
        | (flags << 52)
        | (((base >> 24) & 0xff) << 56)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PVH: EntryPoint =
        EntryPoint::Pvh { rip: GuestAddress(0x10_0000), start_info: GuestAddress(0x6000) };
    const LINUX64: EntryPoint = EntryPoint::Linux64 {
        rip: GuestAddress(0x100_0200),
        boot_params: GuestAddress(0x7000),
        page_table: GuestAddress(0x9000),
    };

    #[test]
    fn pvh_enters_protected_mode_without_paging() {
        let (regs, sregs) = initial(&PVH, kvm_sregs { efer: 0x500, cr4: 0x20, ..Default::default() });
        assert_eq!((regs.rip, regs.rbx, regs.rflags), (0x10_0000, 0x6000, 2));
        assert_eq!((sregs.cr0 & (1 << 31 | 1), sregs.cr4, sregs.efer), (1, 0, 0));
        assert_eq!((sregs.cs.db, sregs.cs.l, sregs.cs.limit, sregs.cs.g), (1, 0, 0xffff_ffff, 1));
        assert_eq!((sregs.tr.type_, sregs.tr.limit, sregs.tr.s), (0xb, 0x67, 0));
    }

    #[test]
    fn linux64_enters_long_mode_with_the_prescribed_selectors() {
        let (regs, sregs) = initial(&LINUX64, kvm_sregs::default());
        assert_eq!((regs.rip, regs.rsi, regs.rflags), (0x100_0200, 0x7000, 2));
        assert_eq!(sregs.cr3, 0x9000);
        assert_eq!((sregs.cr0, sregs.cr4, sregs.efer), (0x8000_0011, 0x20, 0x500));
        assert_eq!((sregs.cs.selector, sregs.ds.selector, sregs.ss.selector), (0x10, 0x18, 0x18));
        assert_eq!((sregs.cs.db, sregs.cs.l), (0, 1));
    }

    #[test]
    fn what_kvm_chose_and_no_protocol_defines_is_kept() {
        let from_kvm = kvm_sregs { apic_base: 0xfee0_0900, cr8: 3, ..Default::default() };
        let (_, sregs) = initial(&PVH, from_kvm);
        assert_eq!((sregs.apic_base, sregs.cr8), (0xfee0_0900, 3));
    }

    #[test]
    fn descriptors_have_their_textbook_values() {
        let protected = gdt(false);
        assert_eq!(protected[usize::from(CODE_SELECTOR) / 8], 0x00cf_9b00_0000_ffff);
        assert_eq!(protected[usize::from(DATA_SELECTOR) / 8], 0x00cf_9300_0000_ffff);
        assert_eq!(protected[usize::from(TASK_SELECTOR) / 8], 0x0000_8b00_0000_0067);
        assert_eq!(gdt(true)[usize::from(CODE_SELECTOR) / 8], 0x00af_9b00_0000_ffff);
    }

    #[test]
    fn the_gdt_lands_between_the_bios_data_area_and_the_start_info() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        write_gdt(&memory, &LINUX64).unwrap();
        let (_, sregs) = initial(&LINUX64, kvm_sregs::default());
        let code: u64 = memory.read_obj(GuestAddress(sregs.gdt.base + 0x10)).unwrap();
        assert_eq!(code, 0x00af_9b00_0000_ffff);
        assert!(sregs.gdt.base >= 0x500 && sregs.gdt.base + u64::from(sregs.gdt.limit) < 0x6000);
    }
}
