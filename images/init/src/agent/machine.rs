//! What is the machine's and not a process': clock, host name, random numbers.

use std::time::Duration;

use nestling_protocol::{Failure, FailureKind};
use nix::errno::Errno;
use nix::time::{ClockId, clock_gettime, clock_settime};

use super::Options;

/// How far the clock may be off.
const TOLERANCE: Duration = Duration::from_secs(1);

/// Seed beyond this many bytes does not count.
const MOST_ENTROPY: usize = 4096;

/// `_IOW('R', 0x03, int[2])` (linux/random.h).
const RNDADDENTROPY: libc::Ioctl = 0x4008_5203;

/// Sets the clock if it is off by more than a second.
pub(super) fn set_time(options: &Options, unix_ns: u64) -> Result<(), Failure> {
    let now = clock_gettime(ClockId::CLOCK_REALTIME).map(Duration::from).unwrap_or_default();
    let wanted = Duration::from_nanos(unix_ns);
    if now.abs_diff(wanted) <= TOLERANCE {
        return Ok(());
    }
    ours(options, "clock")?;
    clock_settime(ClockId::CLOCK_REALTIME, wanted.into()).map_err(|error| failed("set the clock", error))
}

/// Sets the host name.
pub(super) fn set_hostname(options: &Options, name: &str) -> Result<(), Failure> {
    ours(options, "host name")?;
    nix::unistd::sethostname(name).map_err(|error| failed("set the host name", error))
}

/// Feeds the kernel's random number generator, and has the bytes credited as random.
pub(super) fn add_entropy(options: &Options, bytes: &[u8]) -> Result<(), Failure> {
    ours(options, "random number generator")?;
    let Some(bytes) = bytes.get(..bytes.len().min(MOST_ENTROPY)).filter(|bytes| !bytes.is_empty()) else {
        return Ok(());
    };
    // rand_pool_info: how many bits count, how many bytes follow, and those.
    let pool_info =
        [u32::try_from(bytes.len() * 8), u32::try_from(bytes.len())].map(Result::unwrap_or_default);
    let words =
        bytes.chunks(4).map(|chunk| chunk.iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte)));
    let request: Vec<u32> = pool_info.into_iter().chain(words).collect();
    let random = std::fs::File::open("/dev/urandom")
        .map_err(|error| Failure::new(FailureKind::Failed, format!("cannot open /dev/urandom: {error}")))?;
    // SAFETY: the kernel reads the two numbers, and as many bytes after them as the second says: `request` has them.
    let result =
        unsafe { libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&random), RNDADDENTROPY, request.as_ptr()) };
    Errno::result(result).map(drop).map_err(|error| failed("seed the random number generator", error))
}

/// The kernel's own word: `/proc/sys/kernel/NAME`, or nothing.
pub(super) fn kernel_says(name: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/sys/kernel/{name}")).unwrap_or_default();
    text.trim().chars().take(256).collect()
}

fn ours(options: &Options, what: &str) -> Result<(), Failure> {
    let refusal = || {
        Failure::new(
            FailureKind::Unsupported,
            format!("the {what} is not this agent's: it shares its host's machine"),
        )
    };
    options.owns_machine.then_some(()).ok_or_else(refusal)
}

fn failed(doing: &str, error: Errno) -> Failure {
    let kind = if error == Errno::EPERM { FailureKind::Denied } else { FailureKind::Failed };
    Failure::new(kind, format!("cannot {doing}: {}", error.desc()))
}
