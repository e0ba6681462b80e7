//! Every way a spec can be refused. Each text is one sentence: the place, the value, and what mends it.

use std::path::PathBuf;

use super::config::Origin;

/// Why a spec or a set of flags cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// One value is wrong.
    #[error("{origin}: {problem}")]
    Value {
        /// Where the value was written.
        origin: Origin,
        /// What is wrong with it.
        problem: Box<Problem>,
    },
    /// The spec is not the YAML Nestling reads.
    #[error("{}:{line}:{column}: {message}", file.display())]
    Yaml {
        /// The spec file.
        file: PathBuf,
        /// Line, from 1.
        line: u64,
        /// Column, from 1.
        column: u64,
        /// What is wrong there.
        message: String,
    },
    /// The spec file itself cannot be had.
    #[error("the spec {} cannot be read: {reason}", file.display())]
    Unreadable {
        /// The spec file.
        file: PathBuf,
        /// Why.
        reason: String,
    },
    /// Nothing says what to boot.
    #[error(
        "no kernel is given: name an ELF vmlinux or a bzImage with --kernel FILE, or with the spec key `kernel`"
    )]
    NoKernel,
}

/// What is wrong with one value.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// A word that is none of the choices.
    #[error("`{text}` is not a choice here: write {choices}")]
    Choice {
        /// What was written.
        text: String,
        /// What may be written.
        choices: &'static str,
    },
    /// A vCPU count out of range, or no number at all.
    #[error("`{text}` is not a number of vCPUs: write 1 to 32, or auto")]
    Cpus {
        /// What was written.
        text: String,
    },
    /// Not a size.
    #[error("`{text}` is not a size: write for example 256M, 1Gi or a number of bytes")]
    Size {
        /// What was written.
        text: String,
    },
    /// A history too short to be of use, or too long to be in our memory.
    #[error("{text} of console history is out of range: write 4K to 64M{}", unit_hint(text))]
    ConsoleHistory {
        /// What was written.
        text: String,
    },
    /// Less RAM than any guest boots with.
    #[error("{text} is too little memory: the least is 32M{}", unit_hint(text))]
    MemoryTooSmall {
        /// What was written.
        text: String,
    },
    /// RAM is handed out in huge pages.
    #[error("{text} of memory is not a multiple of 2 MiB: write {nearest_mib}M")]
    MemoryUneven {
        /// What was written.
        text: String,
        /// The next size that works.
        nearest_mib: u64,
    },
    /// More RAM than the host has.
    #[error("{text} of memory is more than this host has: give at most its {host_mib}M")]
    MemoryOverHost {
        /// What was written.
        text: String,
        /// The host's RAM, rounded down to what may be asked for.
        host_mib: u64,
    },
    /// A file that cannot be opened.
    #[error("the {what} {} cannot be opened: {reason}", path.display())]
    Open {
        /// `kernel`, `initrd` or `disk`.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// The error in words, with the mend.
        reason: String,
    },
    /// A path that leads to the wrong kind of thing.
    #[error("the {what} {} is {found}: give {wanted}", path.display())]
    WrongKind {
        /// `kernel`, `initrd`, `disk`, ….
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// What is there.
        found: &'static str,
        /// What should be there.
        wanted: &'static str,
    },
    /// An initrd that cannot be in RAM together with a kernel.
    #[error(
        "the initrd {} has {initrd_mib} MiB and does not fit into {memory_mib} MiB of memory: give more with --memory",
        path.display()
    )]
    InitrdTooLarge {
        /// Its path.
        path: PathBuf,
        /// Its size.
        initrd_mib: u64,
        /// The guest's RAM.
        memory_mib: u64,
    },
    /// A kernel command line that no kernel reads whole.
    #[error("the kernel command line has {length} bytes, and a kernel reads 2047: shorten it")]
    CmdlineTooLong {
        /// Its length.
        length: usize,
    },
    /// A command line with a byte that would end it early.
    #[error("the kernel command line contains {what} at byte {at}: a command line is one line of text")]
    CmdlineByte {
        /// Which byte, in words.
        what: &'static str,
        /// Where, from 0.
        at: usize,
    },
    /// A word the kernel cannot hand over.
    #[error(
        "the command's word {word:?} cannot reach the guest: the kernel command line carries no empty word, `--`, double quote or control character; use single quotes, or a script file in the guest"
    )]
    CommandWord {
        /// The word.
        word: String,
    },
    /// More words than a kernel hands to init.
    #[error(
        "the command has {words} words, and a kernel hands at most 32 to init: put them into a script in the guest"
    )]
    CommandTooLong {
        /// How many.
        words: usize,
    },
    /// Two ways to say what init runs.
    #[error(
        "a command is given and the kernel command line already has a ` -- `: what follows that is the command"
    )]
    TwoCommands,
    /// Both kinds of command line.
    #[error(
        "`cmdline` and `cmdline-replace` exclude each other: one adds to what Nestling computes, the other replaces it"
    )]
    TwoCmdlines,
    /// A disk description that cannot be read.
    #[error(
        "`{text}` does not describe a disk: {reason}; write for example path=/data/disk.img,readonly=true"
    )]
    Disk {
        /// What was written.
        text: String,
        /// What is wrong.
        reason: String,
    },
    /// Another device's description that cannot be read.
    #[error("`{text}` does not describe {what}: {reason}; write for example {example}")]
    Device {
        /// What was written.
        text: String,
        /// Which device, with its article.
        what: &'static str,
        /// What is wrong.
        reason: String,
        /// A value that is right.
        example: &'static str,
    },
    /// A value of a disk that cannot be.
    #[error("the disk{disk}: {reason}")]
    DiskValue {
        /// Its path or its partitions, after a space.
        disk: String,
        /// What is wrong, with the mend.
        reason: String,
    },
    /// A value of a port that cannot be.
    #[error("the port{port}: {reason}")]
    PortValue {
        /// Its name, after a space.
        port: String,
        /// What is wrong, with the mend.
        reason: String,
    },
    /// A port description that cannot be read.
    #[error(
        "`{text}` does not describe a port: {reason}; write for example name=agent,path=/run/nestling/agent.sock"
    )]
    Port {
        /// What was written.
        text: String,
        /// What is wrong.
        reason: String,
    },
    /// A share that cannot be.
    #[error("the share{share}: {reason}; write for example tag=data,dir=/srv/data")]
    Share {
        /// Its tag, after a space.
        share: String,
        /// What is wrong.
        reason: String,
    },
    /// A vsock description that cannot be read.
    #[error(
        "`{text}` does not describe a vsock device: {reason}; write for example cid=3,path=/run/nestling/vm.vsock"
    )]
    Vsock {
        /// What was written.
        text: String,
        /// What is wrong.
        reason: String,
    },
    /// A vsock device that cannot be.
    #[error("the vsock device {reason}")]
    VsockValue {
        /// What is wrong, with the mend.
        reason: String,
    },
    /// A number that a vsock device cannot have.
    #[error("`{text}` is not {what}: write {least} to {most}")]
    VsockNumber {
        /// What was written.
        text: String,
        /// What it should be.
        what: &'static str,
        /// The least that may be written.
        least: u32,
        /// The most.
        most: u32,
    },
    /// A vsock path that leaves no room for a port behind it.
    #[error(
        "the vsock path {} has {length} bytes, and at most 96 leave room for `_<port>` behind it: choose a shorter one",
        path.display()
    )]
    VsockPathTooLong {
        /// The path.
        path: PathBuf,
        /// Its length.
        length: usize,
    },
    /// A description of a network interface that cannot be read.
    #[error(
        "`{text}` does not describe a network interface: {reason}; write for example tap=tap0,mac=02:00:00:00:00:01"
    )]
    Net {
        /// What was written.
        text: String,
        /// What is wrong.
        reason: String,
    },
    /// A network interface that cannot be had.
    #[error("{reason}")]
    NetValue {
        /// What is wrong, and its mend.
        reason: String,
    },
    /// A disk without a single sector.
    #[error("the disk {} has {bytes} bytes and no whole sector: make it larger, for example `truncate -s 1G {}`", path.display(), path.display())]
    DiskEmpty {
        /// Its path.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// A socket path that the kernel has no room for.
    #[error("the socket path {} has {length} bytes, and a Unix socket's path has at most 107: choose a shorter one", path.display())]
    SocketTooLong {
        /// The path.
        path: PathBuf,
        /// Its length.
        length: usize,
    },
    /// A status file that cannot be written where it is wanted.
    #[error("the status file {} cannot be written: {reason}", path.display())]
    StatusFile {
        /// The path.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

/// What to tell who wrote `256` and meant megabytes; who wrote a unit knows.
fn unit_hint(text: &str) -> &'static str {
    if text.trim().bytes().all(|byte| byte.is_ascii_digit()) && text.trim() != "0" {
        " (a number without a unit counts bytes)"
    } else {
        ""
    }
}
