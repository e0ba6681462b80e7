//! Files that are no kernel, not all of one, or too large: the sentence that is printed for each.

use super::*;

/// The sentence `kernel` is refused with.
fn refusal(kernel: &[u8]) -> String {
    let error = load_bytes(kernel).unwrap_err();
    check_sentence(&error);
    error.to_string()
}

/// A sample ELF with `bytes` at `offset`.
fn elf_with(offset: usize, bytes: &[u8]) -> Vec<u8> {
    let mut image = samples::elf(CODE, true);
    image[offset..offset + bytes.len()].copy_from_slice(bytes);
    image
}

/// A sample bzImage with `bytes` at `offset`.
fn bzimage_with(offset: usize, bytes: &[u8]) -> Vec<u8> {
    let mut image = samples::bzimage(CODE);
    image[offset..offset + bytes.len()].copy_from_slice(bytes);
    image
}

fn assert_says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{text:?} does not say {part:?}");
    }
}

#[test]
fn every_prefix_of_a_kernel_is_called_truncated_or_not_a_kernel() {
    for image in [samples::elf(CODE, true), samples::elf(CODE, false), samples::bzimage(CODE)] {
        let file = file(&image);
        let memory = memory(32 * MIB);
        for bytes in (0..image.len()).rev() {
            file.as_file().set_len(bytes as u64).unwrap();
            let error = load(&memory, &request(file.path())).err();
            // The last of the 16-byte units a bzImage counts in need not be complete.
            let padding = image.starts_with(b"\0") && image.len() - bytes < 16;
            assert!(error.is_some() || padding, "{bytes} of {} bytes were taken", image.len());
            let Some(error) = error else { continue };
            check_sentence(&error);
            if bytes >= 0x206 {
                assert!(matches!(error, BootError::Truncated { .. }), "{bytes}: {error}");
            }
        }
    }
}

#[test]
fn a_truncated_segment_is_named_with_both_sizes() {
    let image = samples::elf(CODE, true);
    let text = refusal(&image[..image.len() - 10]);
    let (needs, has) = (format!("needs {} bytes", image.len()), format!("has {}", image.len() - 10));
    assert_says(&text, &["truncated", "segment 0", &needs, &has]);
}

#[test]
fn things_that_are_not_kernels_are_called_by_their_name() {
    let mut arm64 = vec![0; 4096];
    arm64[..2].copy_from_slice(b"MZ");
    arm64[56..60].copy_from_slice(b"ARM\x64");
    let mut boot_sector = vec![0; 4096];
    boot_sector[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    let cases: [(&[u8], &str); 12] = [
        (b"\x1f\x8b\x08\0", "gzip-compressed; unpack it first"),
        (b"\x28\xb5\x2f\xfd....", "zstd-compressed; unpack it first"),
        (b"#!/bin/sh\nexit 0\n", "a script"),
        (b"QFI\xfb\0\0\0\x03", "a qcow2 disk image; give it with --disk"),
        (b"070701000", "a cpio archive; give it with --initrd"),
        (b"MZ\x90\0", "a PE file"),
        (b"hello, world\n", "a text file"),
        (&arm64, "an arm64 kernel image"),
        (&boot_sector, "a disk image with a boot sector"),
        (&[0; 100], "begins with zeros"),
        (b"\x01\x02\x03\x04\x05\x06\x07\x08", "begins with the bytes 01 02 03 04 05 06 07 08"),
        (b"\x7f", "something unknown"),
    ];
    for (bytes, says) in cases {
        assert_says(&refusal(bytes), &["is not an x86-64 kernel image", says]);
    }
    assert_says(&refusal(b""), &["is empty"]);
}

#[test]
fn elf_files_of_other_kinds_are_called_by_their_name() {
    assert_says(&refusal(&elf_with(4, &[1])), &["a 32-bit ELF file"]);
    assert_says(&refusal(&elf_with(5, &[2])), &["a big-endian ELF file"]);
    assert_says(&refusal(&elf_with(16, &[1])), &["an object file or a kernel module"]);
    assert_says(&refusal(&elf_with(16, &[4])), &["a core dump"]);
    assert_says(&refusal(&elf_with(18, &[183])), &["an arm64 ELF file"]);
    assert_says(&refusal(&elf_with(18, &[3])), &["machine number 3"]);
    assert_says(&refusal(&elf_with(64, &[3])), &["wants a dynamic loader"]);
    assert_says(&refusal(&elf_with(64, &[6])), &["no segment to load"]);
    assert_says(&refusal(&elf_with(56, &[0xff, 0xff])), &["65535 program headers"]);
}

#[test]
fn segments_without_a_place_are_named_with_what_would_help() {
    let address = 64 + 24;
    let below = refusal(&elf_with(address, &0x4000u64.to_le_bytes()));
    assert_says(&below, &["segment 0", "0x4000", "below 1 MiB"]);
    let above = refusal(&elf_with(address, &(40 * MIB).to_le_bytes()));
    assert_says(&above, &["segment 0", "0x2800000", "ends at 0x2000000", "at least 42 MiB"]);
    let never = refusal(&elf_with(address, &(5 * GIB).to_le_bytes()));
    assert_says(&never, &["where no guest has RAM", "0xc0000000"]);
    let wrapping = refusal(&elf_with(64 + 40, &u64::MAX.to_le_bytes()));
    assert_says(&wrapping, &["segment 0", "where no guest has RAM"]);
    let inside_out = refusal(&elf_with(64 + 40, &1u64.to_le_bytes()));
    assert_says(&inside_out, &["64 bytes in the file, 1 in memory"]);
}

#[test]
fn an_entry_point_outside_of_the_kernel_is_refused() {
    let mut image = samples::elf(CODE, false);
    image[24..32].copy_from_slice(&0x200_0000u64.to_le_bytes());
    assert_says(&refusal(&image), &["entry point 0x2000000 lies outside"]);
}

#[test]
fn bzimages_that_cannot_be_entered_in_64_bit_mode_are_refused() {
    assert_says(&refusal(&bzimage_with(0x206, &[0x04, 0x02])), &["boot protocol is 2.04", "Linux 3.8"]);
    assert_says(&refusal(&bzimage_with(0x236, &[0, 0])), &["a 32-bit kernel"]);
    assert_says(
        &refusal(&bzimage_with(0x260, &(60u32 << 20).to_le_bytes())),
        &["unpacking area", "at least 76 MiB"],
    );
    assert_says(&refusal(&bzimage_with(0x1f4, &[0xff; 4])), &["truncated", "the compressed kernel"]);
}

#[test]
fn a_bzimage_that_prefers_no_address_goes_to_16_mib() {
    let entry = load_bytes(&bzimage_with(0x258, &[0; 8])).unwrap();
    assert!(matches!(entry, EntryPoint::Linux64 { rip: GuestAddress(0x100_0200), .. }));
}

#[test]
fn what_is_not_a_file_is_not_opened() {
    let directory = tempfile::tempdir().unwrap();
    let refusal = |path: &Path| load(&memory(32 * MIB), &request(path)).unwrap_err().to_string();
    assert_says(&refusal(directory.path()), &["is a directory, not a file"]);
    assert_says(&refusal(&directory.path().join("none")), &["cannot open the kernel", "none"]);
    let pipe = directory.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert_says(&refusal(&pipe), &["is a pipe, not a file"]);
}

/// The sentence an initrd of `bytes` is refused with, in a guest of 32 MiB.
fn initrd_refusal(kernel: &[u8], bytes: u64) -> String {
    let (kernel, initrd) = (file(kernel), file(b""));
    initrd.as_file().set_len(bytes).unwrap();
    let request = BootRequest { initrd: Some(initrd.path()), ..request(kernel.path()) };
    load(&memory(32 * MIB), &request).unwrap_err().to_string()
}

#[test]
fn an_initrd_that_does_not_fit_is_told_how_much_memory_would_do() {
    let text = initrd_refusal(&samples::elf(CODE, true), 20 * MIB);
    let free = 16 * MIB - CODE.len() as u64 - samples::EXTRA_BYTES;
    assert_says(&text, &["20971520 bytes", &format!("{free} bytes are free"), "at least 38 MiB"]);
    let hopeless = initrd_refusal(&samples::bzimage(CODE), 10 * GIB);
    assert_says(&hopeless, &["no amount of memory"]);
    assert_says(&initrd_refusal(&samples::elf(CODE, true), 0), &["the initrd", "is empty"]);
}

#[test]
fn an_initrd_may_fill_the_memory_up_to_the_end_of_the_kernel() {
    let kernel = file(&samples::elf(CODE, true));
    let initrd = file(b"");
    let kernel_end = samples::LOAD_ADDRESS + CODE.len() as u64 + samples::EXTRA_BYTES;
    initrd.as_file().set_len(32 * MIB - kernel_end.next_multiple_of(4096)).unwrap();
    let request = BootRequest { initrd: Some(initrd.path()), ..request(kernel.path()) };
    assert!(load(&memory(32 * MIB), &request).is_ok());
    initrd.as_file().set_len(32 * MIB - kernel_end.next_multiple_of(4096) + 1).unwrap();
    assert!(load(&memory(32 * MIB), &request).is_err());
}

#[test]
fn command_lines_the_kernel_would_cut_are_refused() {
    let kernel = file(&bzimage_with(0x238, &255u32.to_le_bytes()));
    let (fits, long) = ("x".repeat(255), "x".repeat(256));
    let memory = memory(32 * MIB);
    assert!(load(&memory, &BootRequest { cmdline: &fits, ..request(kernel.path()) }).is_ok());
    let text =
        load(&memory, &BootRequest { cmdline: &long, ..request(kernel.path()) }).unwrap_err().to_string();
    assert_says(&text, &["256 bytes", "takes 255"]);
    let text =
        load(&memory, &BootRequest { cmdline: "a\0b", ..request(kernel.path()) }).unwrap_err().to_string();
    assert_says(&text, &["zero byte at position 1"]);
}

#[test]
fn a_guest_without_memory_for_the_boot_tables_is_told_so() {
    let memory = memory(MIB);
    let error = load(&memory, &request(Path::new("/"))).unwrap_err();
    assert_says(&error.to_string(), &["1048576 bytes of RAM", "at least 2 MiB"]);
}
