//! A watchdog that is fed for a while, and then no more (kernel Documentation: watchdog-api.rst).

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::mem::ManuallyDrop;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use crate::error::{Doing, Result};

/// `struct watchdog_info` of linux/watchdog.h.
#[repr(C)]
#[derive(Default)]
struct Info {
    options: u32,
    firmware_version: u32,
    identity: [u8; 32],
}

nix::ioctl_read!(get_support, b'W', 0, Info);
nix::ioctl_readwrite!(set_timeout, b'W', 6, libc::c_int);
nix::ioctl_read!(get_timeout, b'W', 7, libc::c_int);

/// `watchdog`: opens it, sets its timeout (seconds), pets it `pets` times. Then it is closed in order (`magic`), or left
/// open with nobody to pet it until the machine is gone.
pub(crate) fn watch(
    device: &Path,
    timeout: Option<i32>,
    pets: u32,
    interval: Duration,
    magic: bool,
) -> Result<()> {
    let doing = |what: &str| format!("{what} {}", device.display());
    let mut file = OpenOptions::new().write(true).open(device).doing(doing("open"))?;
    println!("opened device={} identity={:?}", device.display(), identity(&file).doing(doing("ask"))?);
    if let Some(seconds) = timeout {
        let mut seconds = seconds;
        // SAFETY: the kernel reads and writes one integer, which lives during the call.
        unsafe { set_timeout(file.as_raw_fd(), &raw mut seconds) }.doing(doing("set the timeout of"))?;
    }
    let mut seconds = 0;
    // SAFETY: the kernel writes one integer, which lives during the call.
    unsafe { get_timeout(file.as_raw_fd(), &raw mut seconds) }.doing(doing("read the timeout of"))?;
    println!("timeout={seconds}");
    for pet in 1..=pets {
        file.write_all(b"\0").doing(doing("pet"))?;
        println!("pet={pet}");
        std::thread::sleep(interval);
    }
    if magic {
        file.write_all(b"V").doing(doing("close"))?;
        println!("closed=magic");
        return Ok(());
    }
    println!("petting=stopped");
    // Open for as long as we live: what remains is up to the watchdog.
    let _open = ManuallyDrop::new(file);
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}

fn identity(file: &File) -> nix::Result<String> {
    let mut info = Info::default();
    // SAFETY: the kernel writes one `Info`, which lives during the call.
    unsafe { get_support(file.as_raw_fd(), &raw mut info) }?;
    let name = info.identity.split(|byte| *byte == 0).next().unwrap_or_default();
    Ok(String::from_utf8_lossy(name).into_owned())
}
