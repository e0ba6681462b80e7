//! bzImage: the compressed kernel distributions install as `vmlinuz` (Documentation/arch/x86/boot.rst).

use linux_loader::loader::bootparam::{XLF_KERNEL_64, setup_header};
use vm_memory::{ByteValued, GuestAddress, GuestMemoryMmap};

use super::BootError;
use super::image::ImageFile;
use super::kernel::{Kernel, KernelKind, check_place};
use super::ram::Ram;
use crate::x86::layout::{HIGH_MEMORY_START, MIB};

/// Offset of the setup header in the file.
const HEADER_OFFSET: usize = 0x1f1;
/// "HdrS" at offset 0x202.
const HEADER_MAGIC: [u8; 4] = *b"HdrS";
const HEADER_MAGIC_OFFSET: usize = 0x202;
/// The second byte of the jump at 0x200 says where the header ends, counted from 0x202.
const HEADER_END_OFFSET: usize = 0x201;
/// First protocol with `xloadflags`, which tell that there is a 64-bit entry point: 2.12, Linux 3.8.
const OLDEST_PROTOCOL: u16 = 0x20c;
const SECTOR_BYTES: u64 = 512;
/// Offset of the 64-bit entry point from the load address.
const ENTRY_64_OFFSET: u64 = 0x200;
/// Where a kernel goes that prefers no address.
const DEFAULT_LOAD_ADDRESS: u64 = 16 * MIB;

/// Whether the first bytes of a file are those of a bzImage.
pub(super) fn is_bzimage(head: &[u8]) -> bool {
    head.get(HEADER_MAGIC_OFFSET..HEADER_MAGIC_OFFSET + 4) == Some(&HEADER_MAGIC)
}

/// Loads the protected-mode part of a bzImage.
pub(super) fn load(memory: &GuestMemoryMmap, ram: &Ram, file: &mut ImageFile) -> Result<Kernel, BootError> {
    let header = read_header(file)?;
    let (offset, bytes) = payload(file, &header)?;
    let preferred = header.pref_address;
    let start = if preferred >= HIGH_MEMORY_START { preferred } else { DEFAULT_LOAD_ADDRESS };
    let occupied = bytes.max(u64::from(header.init_size));
    let end = check_place(ram, file.path(), "the unpacking area", start, occupied)?;
    file.read_into(offset, bytes, memory, GuestAddress(start))?;
    Ok(Kernel { kind: KernelKind::BzImage(header), entry: start + ENTRY_64_OFFSET, end })
}

/// Reads the setup header and checks that this kernel can be entered in 64-bit mode.
fn read_header(file: &ImageFile) -> Result<setup_header, BootError> {
    let mut header = setup_header::default();
    let needs = (HEADER_OFFSET + size_of::<setup_header>()) as u64;
    if file.bytes() < needs {
        return Err(truncated(file, "the setup header", needs));
    }
    file.read_at(HEADER_OFFSET as u64, header.as_mut_slice())?;
    let mut end_offset = [0];
    file.read_at(HEADER_END_OFFSET as u64, &mut end_offset)?;
    forget_past_end(&mut header, HEADER_MAGIC_OFFSET + usize::from(end_offset[0]));

    let unsupported = |problem| Err(BootError::Unsupported { path: file.path().to_owned(), problem });
    let version = header.version;
    if version < OLDEST_PROTOCOL {
        let (major, minor) = (version >> 8, version & 0xff);
        return unsupported(format!(
            "its boot protocol is {major}.{minor:02}, and 2.12 is the oldest with a 64-bit entry; use Linux 3.8 or later"
        ));
    }
    let xloadflags = header.xloadflags;
    if xloadflags & XLF_KERNEL_64 == 0 {
        return unsupported("it is a 32-bit kernel; use an x86-64 one".to_owned());
    }
    Ok(header)
}

/// Zeroes what lies past the end the header states for itself: it is code, not fields (boot.rst, 64-bit protocol).
fn forget_past_end(header: &mut setup_header, end: usize) {
    let fields = end.saturating_sub(HEADER_OFFSET);
    if let Some(rest) = header.as_mut_slice().get_mut(fields..) {
        rest.fill(0);
    }
}

/// Offset and size in bytes of the protected-mode code in the file.
fn payload(file: &ImageFile, header: &setup_header) -> Result<(u64, u64), BootError> {
    // Zero means four, for reasons of 1991 (boot.rst, setup_sects).
    let sectors = if header.setup_sects == 0 { 4 } else { u64::from(header.setup_sects) };
    let offset = (sectors + 1) * SECTOR_BYTES;
    // `syssize` counts units of 16 bytes, the last of which may be incomplete.
    let announced = u64::from(header.syssize) * 16;
    let least = offset + announced.saturating_sub(15).max(ENTRY_64_OFFSET + 1);
    if file.bytes() < least {
        return Err(truncated(file, "the compressed kernel", least));
    }
    // What follows the announced size (a signature for secure boot) is not for the kernel.
    let available = file.bytes() - offset;
    let bytes = if announced == 0 { available } else { available.min(announced) };
    Ok((offset, bytes))
}

fn truncated(file: &ImageFile, part: &str, needs: u64) -> BootError {
    BootError::Truncated { path: file.path().to_owned(), part: part.to_owned(), needs, has: file.bytes() }
}
