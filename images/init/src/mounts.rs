//! The kernel's own filesystems, where every program expects them.

use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// What is mounted, in this order: source and type, where, flags, options.
const MOUNTS: [(&str, &str, MsFlags, &str); 7] = [
    ("proc", "/proc", MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC), ""),
    ("sysfs", "/sys", MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC), ""),
    ("devtmpfs", "/dev", MsFlags::MS_NOSUID, "mode=0755"),
    ("devpts", "/dev/pts", MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC), "mode=0620,ptmxmode=0666,gid=5"),
    ("tmpfs", "/dev/shm", MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV), "mode=1777"),
    ("tmpfs", "/tmp", MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV), "mode=1777"),
    ("tmpfs", "/run", MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV), "mode=0755"),
];

/// Mounts them all; one that fails is a sentence, for the workload may well do without it.
pub(crate) fn mount_all() {
    for (kind, target, flags, options) in MOUNTS {
        if let Err(error) = std::fs::create_dir_all(target)
            && !Path::new(target).is_dir()
        {
            crate::say!("cannot make the directory {target}: {error}");
            continue;
        }
        match mount(Some(kind), target, Some(kind), flags, Some(options)) {
            // EBUSY: the kernel has mounted it already (devtmpfs on a disk's root).
            Ok(()) | Err(Errno::EBUSY) => {}
            Err(error) => crate::say!("cannot mount {kind} on {target}: {}", error.desc()),
        }
    }
    link("/proc/self/fd", "/dev/fd");
    link("/dev/fd/0", "/dev/stdin");
    link("/dev/fd/1", "/dev/stdout");
    link("/dev/fd/2", "/dev/stderr");
}

/// A link that programs expect and the kernel does not make; it may be there, or /dev may not be ours to write.
fn link(to: &str, at: &str) {
    drop(std::os::unix::fs::symlink(to, at));
}

/// Unmounts what lies on a disk, newest first; what is still in use becomes read-only, so that nothing is left dirty.
pub(crate) fn release_disks() {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    for target in on_disk(&mounts).into_iter().rev() {
        if target == "/" || umount2(target.as_str(), MntFlags::empty()).is_err() {
            let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
            if let Err(error) = mount(None::<&str>, target.as_str(), None::<&str>, flags, None::<&str>) {
                crate::say!("cannot make {target} read-only: {}", error.desc());
            }
        }
    }
}

/// The mount points of `/proc/self/mounts` whose source is a device and which can be written.
fn on_disk(mounts: &str) -> Vec<String> {
    let entries = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        let (source, target, options) = (fields.next()?, fields.next()?, fields.nth(1)?);
        let writable = options.split(',').any(|option| option == "rw");
        (source.starts_with("/dev/") && writable).then(|| target.replace("\\040", " "))
    });
    entries.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_writable_disks_are_released() {
        let mounts = "rootfs / rootfs rw 0 0\n/dev/vda /mnt/a\\040b ext4 rw,relatime 0 0\n/dev/vdb /ro ext4 ro 0 0\n\
                      tmpfs /tmp tmpfs rw 0 0\nbroken\n";

        assert_eq!(on_disk(mounts), ["/mnt/a b"]);
    }
}
