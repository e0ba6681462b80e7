//! KVM's own statistics of a vCPU (KVM API §4.134, KVM_GET_STATS_FD): every VM exit, those KVM handled itself included.

use std::fs::File;
use std::os::fd::FromRawFd;
use std::os::unix::fs::FileExt;

use kvm_ioctls::VcpuFd;
use vmm_sys_util::ioctl::ioctl;
use vmm_sys_util::ioctl_io_nr;

ioctl_io_nr!(KVM_GET_STATS_FD, kvm_bindings::KVMIO, 0xce);

/// Longest name and most statistics taken seriously.
const MAX_NAME: usize = 256;
const MAX_STATISTICS: usize = 1024;
/// Bytes of a descriptor before its name.
const DESCRIPTOR: usize = 16;

/// Where one vCPU's exit count is.
#[derive(Debug)]
pub(super) struct ExitStatistic {
    file: File,
    offset: u64,
}

impl ExitStatistic {
    /// Finds the statistic; `None` where this KVM has none (before Linux 5.15).
    pub(super) fn of(vcpu: &VcpuFd) -> Option<Self> {
        // SAFETY: the ioctl takes no argument and returns a new descriptor or an error.
        let fd = unsafe { ioctl(vcpu, KVM_GET_STATS_FD()) };
        if fd < 0 {
            return None;
        }
        // SAFETY: the descriptor is new and nobody else's.
        let file = unsafe { File::from_raw_fd(fd) };
        let offset = find(&file, b"exits")?;
        Some(Self { file, offset })
    }

    /// VM exits so far.
    pub(super) fn read(&self) -> Option<u64> {
        let mut value = [0; 8];
        self.file.read_exact_at(&mut value, self.offset).ok()?;
        Some(u64::from_ne_bytes(value))
    }
}

/// Offset of the statistic called `name` in the file: header, then descriptors, then data.
fn find(file: &File, name: &[u8]) -> Option<u64> {
    let mut header = [0; 24];
    file.read_exact_at(&mut header, 0).ok()?;
    let field = |bytes: &[u8], at: usize| {
        bytes.get(at..at + 4).and_then(|field| field.try_into().ok()).map(u32::from_ne_bytes)
    };
    let name_size = field(&header, 4)? as usize;
    let count = field(&header, 8)? as usize;
    let (descriptors, data) = (field(&header, 16)?, field(&header, 20)?);
    if name_size > MAX_NAME || count > MAX_STATISTICS {
        return None;
    }
    let mut table = vec![0; count * (DESCRIPTOR + name_size)];
    file.read_exact_at(&mut table, descriptors.into()).ok()?;
    table.chunks(DESCRIPTOR + name_size).find_map(|descriptor| {
        let found = descriptor.get(DESCRIPTOR..)?.split(|&byte| byte == 0).next()?;
        let offset = field(descriptor, 8)?;
        (found == name).then(|| u64::from(data) + u64::from(offset))
    })
}
