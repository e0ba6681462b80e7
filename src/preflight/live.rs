//! The machine this process runs on.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::stat::{major, minor};
use nix::unistd::{Pid, getegid, geteuid, getgroups};

use super::guest_mode::{self, GuestMode};
use super::host::{CpuidLeaves, Device, DeviceNode, Host, Identity, KvmAnswers, NodeKind};
use super::kvm_api::CAPABILITIES;

/// Enough for the `/proc/cpuinfo` of a thousand CPUs.
const LONGEST_FILE_BYTES: u64 = 4 << 20;

/// The machine this process runs on.
#[derive(Debug, Clone, Copy, Default)]
pub struct LiveHost;

impl Host for LiveHost {
    fn read(&self, path: &str) -> Result<Vec<u8>, Errno> {
        let mut content = Vec::new();
        File::open(path)
            .and_then(|file| file.take(LONGEST_FILE_BYTES).read_to_end(&mut content))
            .map_err(errno)?;
        Ok(content)
    }

    fn list(&self, dir: &str, prefix: &str) -> Result<Vec<String>, Errno> {
        let entries = std::fs::read_dir(dir).map_err(errno)?;
        let mut names: Vec<String> = entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| name.starts_with(prefix))
            .collect();
        names.sort();
        Ok(names)
    }

    fn device(&self, path: &str) -> Device {
        let node = match std::fs::metadata(path) {
            Ok(metadata) => device_node(&metadata),
            Err(error) => return Device::Absent { errno: errno(error) as i32 },
        };
        if node.kind != NodeKind::Char {
            return Device::Refused { node, errno: 0 };
        }
        let opened = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(path);
        match opened {
            Ok(_) => Device::Opened { node },
            Err(error) => Device::Refused { node, errno: errno(error) as i32 },
        }
    }

    fn cpuid(&self) -> Vec<CpuidLeaves> {
        // On a thread of its own, because it moves from CPU to CPU.
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().spawn_scoped(scope, cpuid_of_all_cpus);
            thread.ok().and_then(|thread| thread.join().ok()).unwrap_or_default()
        })
    }

    fn identity(&self) -> Identity {
        let groups = getgroups().unwrap_or_default().iter().map(|gid| gid.as_raw()).collect();
        Identity { uid: geteuid().as_raw(), gid: getegid().as_raw(), groups }
    }

    fn has_env(&self, name: &str) -> bool {
        std::env::var_os(name).is_some()
    }

    fn kvm(&self) -> KvmAnswers {
        match kvm_ioctls::Kvm::new() {
            Ok(kvm) => KvmAnswers {
                api_version: kvm.get_api_version(),
                capabilities: CAPABILITIES
                    .iter()
                    .map(|c| (c.name.to_owned(), kvm.check_extension_raw(c.number.into())))
                    .collect(),
                guest_mode: guest_mode::probe(),
            },
            Err(error) => KvmAnswers {
                api_version: -error.errno(),
                capabilities: BTreeMap::new(),
                guest_mode: GuestMode::CallFailed { call: "open /dev/kvm".to_owned(), errno: error.errno() },
            },
        }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "the shape map_err wants")]
fn errno(error: io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

fn device_node(metadata: &std::fs::Metadata) -> DeviceNode {
    let file_type = metadata.file_type();
    let kind = match () {
        () if file_type.is_char_device() => NodeKind::Char,
        () if file_type.is_block_device() => NodeKind::Block,
        () if file_type.is_dir() => NodeKind::Directory,
        () if file_type.is_file() => NodeKind::File,
        () => NodeKind::Other,
    };
    DeviceNode {
        kind,
        major: major(metadata.rdev()),
        minor: minor(metadata.rdev()),
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
    }
}

/// Visits every CPU this thread may run on; if it may not move, the one it is on.
fn cpuid_of_all_cpus() -> Vec<CpuidLeaves> {
    let this_thread = Pid::from_raw(0);
    let allowed = sched_getaffinity(this_thread).unwrap_or_default();
    let visit = |cpu| {
        let mut only = CpuSet::new();
        only.set(cpu).ok()?;
        sched_setaffinity(this_thread, &only).ok()?;
        Some(cpuid_here())
    };
    let visited: Vec<CpuidLeaves> =
        (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap_or(false)).filter_map(visit).collect();
    if visited.is_empty() { vec![cpuid_here()] } else { visited }
}

fn cpuid_here() -> CpuidLeaves {
    let mut leaves = CpuidLeaves::default();
    for leaf in CpuidLeaves::WANTED {
        // Leaves beyond the highest one answer with another leaf's data (SDM Vol. 2, CPUID), so ask first.
        let range = leaf & 0xf000_0000;
        let highest = cpuid(range);
        if (range..=highest[0].max(range)).contains(&leaf) {
            leaves.insert(leaf, cpuid(leaf));
        }
    }
    leaves
}

fn cpuid(leaf: u32) -> [u32; 4] {
    // SAFETY: every x86-64 CPU has the CPUID instruction; it changes nothing but the four result registers.
    #[allow(unused_unsafe, reason = "safe to call since Rust 1.94, unsafe before")]
    let result = unsafe { std::arch::x86_64::__cpuid(leaf) };
    [result.eax, result.ebx, result.ecx, result.edx]
}
