//! Names the files people give as a kernel by mistake, and says what to do with each.

/// How much of a file [`describe`] looks at.
pub(super) const HEAD_BYTES: usize = 0x300;

const USE_VMLINUX: &str = "use an x86-64 vmlinux or bzImage";
const UNPACK: &str = "unpack it first";
const NOT_A_DISK: &str = "give it with --disk, and a vmlinux or bzImage with --kernel";

/// First bytes, what they mean, and the mend.
const MAGICS: &[(&[u8], &str, &str)] = &[
    (b"\x1f\x8b", "gzip-compressed", UNPACK),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed", UNPACK),
    (b"\xfd7zXZ\0", "xz-compressed", UNPACK),
    (b"\x04\x22\x4d\x18", "lz4-compressed", UNPACK),
    (b"\x02\x21\x4c\x18", "lz4-compressed", UNPACK),
    (b"BZh", "bzip2-compressed", UNPACK),
    (b"\x89LZO", "lzop-compressed", UNPACK),
    (b"\x5d\0\0", "lzma-compressed", UNPACK),
    (b"070701", "a cpio archive", "give it with --initrd, and a vmlinux or bzImage with --kernel"),
    (b"QFI\xfb", "a qcow2 disk image", NOT_A_DISK),
    (b"hsqs", "a squashfs image", NOT_A_DISK),
    (b"KDMV", "a VMDK disk image", NOT_A_DISK),
    (b"#!", "a script", USE_VMLINUX),
    (b"!<arch>\n", "a Debian package or a static library", "unpack it and use the vmlinuz in it"),
    (b"\xed\xab\xee\xdb", "an RPM package", "unpack it and use the vmlinuz in it"),
    (b"PK\x03\x04", "a zip archive", UNPACK),
    (b"\x27\x05\x19\x56", "a U-Boot uImage", USE_VMLINUX),
    (b"\xd0\x0d\xfe\xed", "a device tree or FIT image", USE_VMLINUX),
    (b"\xca\xfe\xba\xbe", "a Mach-O or Java file", USE_VMLINUX),
    (b"version https://git-lfs", "a Git LFS pointer", "fetch the real file with git lfs pull"),
];

/// What a file that is neither bzImage nor ELF looks like by its first bytes, and what to do about it.
pub(super) fn describe(head: &[u8; HEAD_BYTES]) -> (String, &'static str) {
    if let Some((_, is, mend)) = MAGICS.iter().find(|(magic, ..)| head.starts_with(magic)) {
        return ((*is).to_owned(), mend);
    }
    // arm64 and RISC-V images may begin like a PE file ("MZ"), so look at their own magic first
    // (Documentation/arch/arm64/booting.rst, Documentation/arch/riscv/boot-image-header.rst).
    if &head[56..60] == b"ARM\x64" {
        return ("an arm64 kernel image".to_owned(), USE_VMLINUX);
    }
    if &head[56..60] == b"RSC\x05" {
        return ("a RISC-V kernel image".to_owned(), USE_VMLINUX);
    }
    if head.starts_with(b"MZ") {
        let mend = "take the bzImage out of it (objcopy -O binary -j .linux for a unified kernel image)";
        return ("a PE file: a UEFI program, a unified kernel image or a Windows program".to_owned(), mend);
    }
    if head[0x1fe..0x200] == [0x55, 0xaa] {
        return ("a disk image with a boot sector".to_owned(), NOT_A_DISK);
    }
    if head.iter().all(|byte| *byte == 0) {
        return ("a file that begins with zeros".to_owned(), "copy or build it again");
    }
    if head
        .iter()
        .take_while(|byte| **byte != 0)
        .all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace())
    {
        return ("a text file".to_owned(), USE_VMLINUX);
    }
    let first: Vec<String> = head[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    (format!("something unknown that begins with the bytes {}", first.join(" ")), USE_VMLINUX)
}
