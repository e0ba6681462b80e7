//! Guest RAM as a file without a name (memfd_create(2)), which another process can map.

use std::ffi::CStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::path::Path;

use super::{Backing, HUGE_PAGE};

/// What this node offers for shared memory.
#[derive(Debug, PartialEq, Eq)]
struct Offer {
    /// 2 MiB pages that are free and not promised to anybody.
    free_pages: u64,
    /// The word of `shmem_enabled` that is in brackets.
    shmem_enabled: String,
}

/// The file and what became of it.
pub(super) struct Shared {
    pub(super) file: File,
    pub(super) backing: Backing,
}

impl Shared {
    /// A file of `bytes`: hugetlb pages if there are enough, else whatever the kernel gives a memfd.
    pub(super) fn new(bytes: u64) -> io::Result<Self> {
        let offer = Offer::read(Path::new("/sys/kernel/mm"));
        let needed = bytes.div_ceil(HUGE_PAGE as u64);
        let refused = if offer.free_pages >= needed {
            match hugetlb(bytes) {
                Ok(file) => return Ok(Self { file, backing: Backing { name: "hugetlb memfd", cost: None } }),
                Err(error) => format!("its hugetlb pages are refused ({error})"),
            }
        } else {
            format!("of the {needed} hugetlb pages it needs, {} are free", offer.free_pages)
        };
        let has_huge_pages =
            matches!(offer.shmem_enabled.as_str(), "always" | "within_size" | "advise" | "force");
        let cost = (!has_huge_pages).then(|| costly(needed, &refused, &offer.shmem_enabled));
        Ok(Self { file: memfd(c"guest-ram", bytes, 0)?, backing: Backing { name: "memfd", cost } })
    }
}

/// What 4 KiB pages cost, why RAM has no larger ones, and what mends it.
fn costly(needed: u64, refused: &str, shmem_enabled: &str) -> String {
    format!(
        "guest RAM is shared memory instead of THP-backed anonymous RAM, because a share's server has to see it, and has pages \
         of 4 KiB, whose first touches are slow: {refused}, and shmem_enabled is `{shmem_enabled}`; for 2 MiB pages set \
         vm.nr_hugepages={needed} on the node and a `hugepages-2Mi` limit in the pod, or write `advise` to \
         /sys/kernel/mm/transparent_hugepage/shmem_enabled"
    )
}

impl Offer {
    fn read(mm: &Path) -> Self {
        let text = |name: &str| fs::read_to_string(mm.join(name)).unwrap_or_default();
        let count = |name: &str| -> u64 {
            text(&format!("hugepages/hugepages-2048kB/{name}")).trim().parse().unwrap_or(0)
        };
        let choices = text("transparent_hugepage/shmem_enabled");
        let chosen = choices.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
        Self {
            free_pages: count("free_hugepages").saturating_sub(count("resv_hugepages")),
            shmem_enabled: chosen.map_or_else(|| "absent".into(), |(word, _)| word.to_owned()),
        }
    }
}

/// Takes every page now: the pod's own hugetlb limit shows only when a page is taken, and a fault has no way to say no.
fn hugetlb(bytes: u64) -> io::Result<File> {
    let file = memfd(c"guest-ram-huge", bytes, libc::MFD_HUGETLB | libc::MFD_HUGE_2MB)?;
    let len = libc::off_t::try_from(bytes).map_err(io::Error::other)?;
    // SAFETY: no memory of ours is involved.
    if unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, len) } == 0 {
        Ok(file)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// A file of this length for ever: whoever shares it cannot cut it under us.
fn memfd(name: &CStr, bytes: u64, flags: libc::c_uint) -> io::Result<File> {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING | flags;
    // SAFETY: the name is a C string.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was made just now and is nobody else's.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(bytes)?;
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: no memory of ours is involved.
    if unsafe { libc::fcntl(fd, libc::F_ADD_SEALS, seals) } == 0 {
        Ok(file)
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_node_offers_is_read_from_its_files() {
        let mm = tempfile::tempdir().unwrap();
        let pool = mm.path().join("hugepages/hugepages-2048kB");
        fs::create_dir_all(&pool).unwrap();
        fs::create_dir_all(mm.path().join("transparent_hugepage")).unwrap();
        fs::write(pool.join("free_hugepages"), "70\n").unwrap();
        fs::write(pool.join("resv_hugepages"), "6\n").unwrap();
        let choices = "always within_size advise [never] deny force\n";
        fs::write(mm.path().join("transparent_hugepage/shmem_enabled"), choices).unwrap();
        let offer = Offer::read(mm.path());
        assert_eq!(offer, Offer { free_pages: 64, shmem_enabled: "never".into() });
        let none = Offer::read(&mm.path().join("absent"));
        assert_eq!(none, Offer { free_pages: 0, shmem_enabled: "absent".into() });
    }

    #[test]
    fn what_small_pages_cost_is_one_sentence_with_the_mend() {
        let said = costly(32, "of the 32 hugetlb pages it needs, 0 are free", "never");
        assert!(said.contains("shared memory instead of THP-backed anonymous RAM"), "{said}");
        assert!(
            said.contains("0 are free, and shmem_enabled is `never`; for 2 MiB pages set vm.nr_hugepages=32"),
            "{said}"
        );
    }

    #[test]
    fn hugetlb_pages_that_are_not_there_are_refused_at_once() {
        let error = hugetlb(1 << 50).unwrap_err();
        assert!(matches!(error.raw_os_error(), Some(libc::ENOMEM | libc::ENOSPC)), "{error}");
    }
}
