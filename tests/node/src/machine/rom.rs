//! The option ROM: real mode → flat protected mode → the kernel's PVH entry.
//!
//! The BIOS calls an option ROM at its fourth byte. By then it has set up PCI and written its ACPI tables, which is all
//! that Linux needs from it, so this code never returns.

use super::boot_info::HANDOFF;

/// Where Bochs maps the ROM.
pub(crate) const ADDRESS: u32 = 0xd_0000;
const SIZE: usize = 512;

// Only differences of labels are used, so that the code means the same wherever the linker puts it.
std::arch::global_asm!(
    ".pushsection .rodata.nestling_rom, \"a\"",
    ".globl nestling_rom, nestling_rom_end",
    "nestling_rom:",
    ".code16",
    "    .byte 0x55, 0xaa, {blocks}", // the signature, and the size in 512-byte blocks
    "    cli",
    "    cld",
    "    inb $0x92, %al", // fast A20 gate
    "    orb $2, %al",
    "    outb %al, $0x92",
    "    movw %cs, %ax",
    "    movw %ax, %ds",
    "    lgdtl (1f - nestling_rom)",
    "    movl %cr0, %eax",
    "    orb $1, %al",
    "    movl %eax, %cr0",
    "    .byte 0x66, 0xea", // ljmpl $8, $2f
    "    .long {address} + (2f - nestling_rom)",
    "    .word 8",
    ".code32",
    "2:  movw $16, %ax",
    "    movw %ax, %ds",
    "    movw %ax, %es",
    "    movw %ax, %fs",
    "    movw %ax, %gs",
    "    movw %ax, %ss",
    "    movl {handoff}, %ebx",     // PVH: EBX points at hvm_start_info,
    "    jmp *({handoff} + 4)",     // paging is off, segments are flat, interrupts are off
    ".balign 8",
    "3:  .quad 0",
    "    .quad 0x00cf9b000000ffff", // 8: code, 4 GiB
    "    .quad 0x00cf93000000ffff", // 16: data, 4 GiB
    "1:  .word 1b - 3b - 1",
    "    .long {address} + (3b - nestling_rom)",
    "nestling_rom_end:",
    ".code64",
    ".popsection",
    blocks = const SIZE / 512,
    address = const ADDRESS,
    handoff = const HANDOFF,
    options(att_syntax)
);

unsafe extern "C" {
    safe static nestling_rom: u8;
    safe static nestling_rom_end: u8;
}

/// The ROM's bytes with their checksum.
pub(crate) fn image() -> Vec<u8> {
    let length = (&raw const nestling_rom_end).addr() - (&raw const nestling_rom).addr();
    // SAFETY: the assembly above puts both labels around one read-only run of bytes.
    let code = unsafe { std::slice::from_raw_parts(&raw const nestling_rom, length) };
    let mut rom = code.to_vec();
    rom.resize(SIZE, 0);
    rom[SIZE - 1] = rom.iter().fold(0, |sum: u8, byte| sum.wrapping_sub(*byte));
    rom
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rom_is_one_a_bios_accepts() {
        let rom = image();
        assert_eq!(rom.len(), SIZE);
        assert_eq!(rom[..3], [0x55, 0xaa, 1]);
        assert_eq!(rom.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
    }

    #[test]
    fn the_machine_code_is_what_the_listing_says() {
        let rom = image();
        let pop = |at: usize| u32::from_le_bytes(rom[at..at + 4].try_into().unwrap());
        assert_eq!(rom[3..5], [0xfa, 0xfc]); // cli, cld
        assert_eq!(rom[15..18], [0x66, 0x0f, 0x01]); // lgdtl
        let far_jump = rom.windows(2).position(|pair| pair == [0x66, 0xea]).unwrap();
        let target = (pop(far_jump + 2) - ADDRESS) as usize;
        assert_eq!(target, far_jump + 8); // right behind itself, selector 8
        assert_eq!(rom[far_jump + 6..far_jump + 8], [8, 0]);
        assert_eq!(rom[target..target + 4], [0x66, 0xb8, 16, 0]); // movw $16, %ax
        let gdt = rom.windows(8).position(|q| q == 0x00cf_9b00_0000_ffff_u64.to_le_bytes()).unwrap() - 8;
        assert_eq!(rom[gdt + 24..gdt + 26], [23, 0]); // limit
        assert_eq!(pop(gdt + 26), ADDRESS + gdt as u32);
    }
}
