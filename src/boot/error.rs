//! Why a guest could not be loaded.

use std::io;
use std::path::PathBuf;

use vm_memory::GuestMemoryError;

/// Why a guest could not be loaded. The text is one sentence with the path or number and the mend.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The file cannot be opened.
    #[error("cannot open the {what} {path}: give the path of a file this process may read", path = path.display())]
    Open {
        /// "kernel" or "initrd".
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The path names something that is not a regular file.
    #[error("the {what} {path} is {is}, not a file: give the path of the image itself", path = path.display())]
    NotAFile {
        /// "kernel" or "initrd".
        what: &'static str,
        /// The path.
        path: PathBuf,
        /// What it is instead.
        is: &'static str,
    },
    /// The file is empty.
    #[error("the {what} {path} is empty: copy or build it again", path = path.display())]
    Empty {
        /// "kernel" or "initrd".
        what: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// Reading failed half-way.
    #[error(
        "cannot read {bytes} bytes at offset {offset} of the {what} {path}: check the disk it is on, and that nothing changes it meanwhile",
        path = path.display()
    )]
    Read {
        /// "kernel" or "initrd".
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Offset in the file.
        offset: u64,
        /// Number of bytes wanted.
        bytes: u64,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The file is some other thing than a kernel for this machine.
    #[error("{path} is not an x86-64 kernel image: it is {looks_like}; {mend}", path = path.display())]
    NotAKernel {
        /// The file.
        path: PathBuf,
        /// What its first bytes say it is.
        looks_like: String,
        /// What to do.
        mend: &'static str,
    },
    /// The file ends before what its headers announce.
    #[error("the kernel {path} is truncated: {part} needs {needs} bytes, the file has {has}; copy or build it again", path = path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// What does not fit into the file.
        part: String,
        /// Bytes the file must have.
        needs: u64,
        /// Bytes the file has.
        has: u64,
    },
    /// The headers contradict themselves.
    #[error("the kernel {path} is damaged: {problem}; copy or build it again", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong in it.
        problem: String,
    },
    /// The kernel cannot be entered by any protocol offered here.
    #[error("the kernel {path} cannot be booted: {problem}", path = path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What it lacks, and what to use instead.
        problem: String,
    },
    /// A part of the kernel belongs where the boot tables are.
    #[error(
        "{part} of the kernel {path} belongs at {start:#x}, below 1 MiB where the boot tables are: link it at 1 MiB or above",
        path = path.display()
    )]
    BelowOneMib {
        /// The file.
        path: PathBuf,
        /// Which part.
        part: String,
        /// Guest physical address.
        start: u64,
    },
    /// A part of the kernel belongs where this guest has no RAM.
    #[error(
        "{part} of the kernel {path} belongs at {start:#x} to {end:#x}, but the guest's RAM there ends at {ram_end:#x}: give it at least {needs_mib} MiB of memory",
        path = path.display()
    )]
    OutsideRam {
        /// The file.
        path: PathBuf,
        /// Which part.
        part: String,
        /// First guest physical address.
        start: u64,
        /// First address after it.
        end: u64,
        /// Where RAM ends.
        ram_end: u64,
        /// Memory that would do, in MiB.
        needs_mib: u64,
    },
    /// A part of the kernel belongs where no guest has RAM.
    #[error(
        "{part} of the kernel {path} belongs at {start:#x} to {end:#x}, where no guest has RAM (it must end below {limit:#x}): link it lower",
        path = path.display()
    )]
    NeverRam {
        /// The file.
        path: PathBuf,
        /// Which part.
        part: String,
        /// First guest physical address.
        start: u64,
        /// First address after it.
        end: u64,
        /// End of low RAM of the largest guest.
        limit: u64,
    },
    /// The initrd does not fit beside the kernel.
    #[error(
        "the initrd {path} of {bytes} bytes does not fit beside the kernel: {free} bytes are free between {from:#x} and {to:#x}; {mend}",
        path = path.display()
    )]
    InitrdTooLarge {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        bytes: u64,
        /// Bytes that were free for it.
        free: u64,
        /// Where the kernel ends.
        from: u64,
        /// Where the space for an initrd ends.
        to: u64,
        /// What to do.
        mend: String,
    },
    /// The command line is longer than the kernel takes.
    #[error("the kernel command line has {bytes} bytes, this kernel takes {limit}: shorten it")]
    CmdlineTooLong {
        /// Its length in bytes.
        bytes: usize,
        /// The most the kernel takes.
        limit: usize,
    },
    /// The command line would end early.
    #[error("the kernel command line has a zero byte at position {position}, where it would end: remove it")]
    CmdlineHasNul {
        /// Position of the byte.
        position: usize,
    },
    /// The guest has too little RAM for the boot tables.
    #[error(
        "the guest has {ram_bytes} bytes of RAM at address 0, too little to boot in: give it at least 2 MiB"
    )]
    TooLittleRam {
        /// RAM that starts at guest physical address 0, in bytes.
        ram_bytes: u64,
    },
    /// The number of vCPUs cannot be described.
    #[error("{cpus} vCPUs cannot be described to the guest: use 1 to {limit}")]
    BadCpuCount {
        /// The number asked for.
        cpus: u8,
        /// The most that can be had.
        limit: u8,
    },
    /// The ACPI tables do not fit into their place.
    #[error("the ACPI tables take {bytes} bytes, {limit} are set aside for them: use fewer vCPUs")]
    AcpiTooLarge {
        /// Their size in bytes.
        bytes: u64,
        /// The room there is.
        limit: u64,
    },
    /// Guest memory cannot be written where it was found to be.
    #[error("cannot write {what} into guest memory")]
    GuestMemory {
        /// What was being written.
        what: &'static str,
        /// Why.
        source: GuestMemoryError,
    },
}

impl BootError {
    /// For `map_err` around a write of `what` into guest memory.
    pub(crate) fn writing(what: &'static str) -> impl FnOnce(GuestMemoryError) -> Self {
        move |source| Self::GuestMemory { what, source }
    }
}
