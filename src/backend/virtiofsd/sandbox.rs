//! How far virtiofsd can lock itself in, here.

use std::fs;

/// virtiofsd's `--sandbox`: whatever of the host the guest reaches through a bug in it is inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sandbox {
    /// Mount, process and network namespaces of its own, the shared directory as root.
    Namespace,
    /// The shared directory as root.
    Chroot,
    /// What the container gives.
    None,
}

/// Capability numbers (capabilities(7)).
const CAP_SYS_CHROOT: u64 = 1 << 18;
const CAP_SYS_ADMIN: u64 = 1 << 21;

impl Sandbox {
    /// The strongest one that this process may make: a privileged pod has namespaces, a pod's root user has chroot. A root
    /// directory that is the kernel's own rootfs (an initramfs) cannot be pivoted away.
    #[must_use]
    pub fn possible_here() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        Self::possible(&status, &mounts)
    }

    /// The next one to try where virtiofsd fails to make this one, for that reason: a seccomp profile or AppArmor can forbid
    /// what a capability allows.
    #[must_use]
    pub fn instead(self, last_words: &str) -> Option<Self> {
        let weaker = match self {
            Self::Namespace => Self::Chroot,
            Self::Chroot => Self::None,
            Self::None => return None,
        };
        last_words.contains("sandbox").then_some(weaker)
    }

    fn possible(status: &str, mounts: &str) -> Self {
        let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
        let capabilities = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
        let root = mounts
            .lines()
            .map(|line| line.split(' ').collect::<Vec<_>>())
            .rfind(|mount| mount.get(1) == Some(&"/"));
        let is_rootfs = root.is_some_and(|mount| mount.get(2) == Some(&"rootfs"));
        let has = |capability: u64| capabilities & capability != 0;
        if has(CAP_SYS_ADMIN) && !is_rootfs {
            Self::Namespace
        } else if has(CAP_SYS_CHROOT) {
            Self::Chroot
        } else {
            Self::None
        }
    }

    /// Its name for virtiofsd.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Namespace => "namespace",
            Self::Chroot => "chroot",
            Self::None => "none",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_strongest_sandbox_that_is_possible_is_chosen() {
        let pod = "overlay / overlay rw 0 0\nproc /proc proc rw 0 0\n";
        let initramfs = "rootfs / rootfs rw 0 0\nproc /proc proc rw 0 0\n";
        for (capabilities, mounts, expected) in [
            ("000001ffffffffff", pod, Sandbox::Namespace),
            ("000001ffffffffff", initramfs, Sandbox::Chroot),
            ("00000000a80425fb", pod, Sandbox::Chroot),
            ("0000000000000000", pod, Sandbox::None),
            ("garbage", "", Sandbox::None),
        ] {
            let status = format!("Name:\tnestling\nCapEff:\t{capabilities}\n");
            assert_eq!(Sandbox::possible(&status, mounts), expected, "{capabilities} {mounts}");
        }
    }

    #[test]
    fn a_sandbox_that_is_forbidden_is_followed_by_a_weaker_one_and_other_failures_by_none() {
        let forbidden = "Error entering sandbox: Unshare(Os { code: 1, kind: PermissionDenied })";
        assert_eq!(Sandbox::Namespace.instead(forbidden), Some(Sandbox::Chroot));
        assert_eq!(Sandbox::Chroot.instead(forbidden), Some(Sandbox::None));
        assert_eq!(Sandbox::None.instead(forbidden), None);
        let in_another_order = format!("{forbidden}; thread 'main' panicked; called `Result::unwrap()`");
        assert_eq!(Sandbox::Namespace.instead(&in_another_order), Some(Sandbox::Chroot));
        assert_eq!(Sandbox::Namespace.instead("no such directory"), None);
    }
}
