//! What the init says: one line per fact, never a panic when nobody can hear it.

use std::fmt::Arguments;
use std::io::Write;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::sys::utsname::uname;
use nix::time::{ClockId, clock_gettime};

/// One line on the console, with the program's name before it.
#[macro_export]
macro_rules! say {
    ($($text:tt)*) => { $crate::report::line(format_args!($($text)*)) };
}

/// Writes `nestling-init: text` to the console; while there is none, to the kernel's log, which a console that comes
/// later repeats. Level 3 (error) is shown even with `quiet`.
pub(crate) fn line(text: Arguments) {
    let line = format!("nestling-init: {text}\n");
    if !write_all(std::io::stderr(), line.as_bytes())
        && let Ok(mut kmsg) = std::fs::OpenOptions::new().write(true).open("/dev/kmsg")
    {
        // Nothing is left to tell it to.
        drop(kmsg.write_all(format!("<3>{line}").as_bytes()));
    }
}

/// True when every byte went out; unlike `eprintln!` it does not panic, and it sees a closed descriptor.
fn write_all<F: AsFd>(to: F, mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        match nix::unistd::write(&to, bytes) {
            Ok(0) => return false,
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(nix::errno::Errno::EINTR) => {}
            Err(_) => return false,
        }
    }
    true
}

/// The line that says the guest is up, and what `uname -a` says.
pub(crate) fn greet() {
    let uptime = clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default();
    let cpus = nix::unistd::sysconf(nix::unistd::SysconfVar::_NPROCESSORS_ONLN).ok().flatten().unwrap_or(1);
    let mib = std::fs::read_to_string("/proc/meminfo").map(|text| total_mib(&text)).unwrap_or_default();
    let system = match uname() {
        Ok(system) => system,
        Err(error) => return say!("uname fails: {error}"),
    };
    let [name, host, release, version, machine] =
        [system.sysname(), system.nodename(), system.release(), system.version(), system.machine()]
            .map(std::ffi::OsStr::to_string_lossy);
    say!("{name} {release} up in {:.3}s, {cpus} CPUs, {mib} MiB", uptime.as_secs_f64());
    write_all(
        std::io::stderr(),
        format!("{name} {host} {release} {version} {machine} GNU/Linux\n").as_bytes(),
    );
}

/// `MemTotal` of /proc/meminfo in MiB; 0 when it is not there.
fn total_mib(meminfo: &str) -> u64 {
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib: Option<u64> = total.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    kib.unwrap_or_default() / 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_total_is_read_in_mib() {
        assert_eq!(total_mib("MemTotal:         116736 kB\nMemFree: 1 kB\n"), 114);
        assert_eq!(total_mib("MemFree: 1 kB\n"), 0);
        assert_eq!(total_mib("MemTotal: many\n"), 0);
    }
}
