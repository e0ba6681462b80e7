//! A port of a console: what comes in goes out again.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::error::{Doing, Error, Result};

/// `console-echo`: sends back `bytes` bytes. A virtio port without anybody at its other end reads as an end of file:
/// that is waited out, up to `patience` in a row.
pub(crate) fn echo(device: &Path, bytes: u64, patience: Duration) -> Result<()> {
    let doing = |what: &str| format!("{what} {}", device.display());
    let mut port = OpenOptions::new().read(true).write(true).open(device).doing(doing("open"))?;
    println!("listening={}", device.display());
    let mut buffer = vec![0; 64 << 10];
    let (mut echoed, mut heard) = (0, Instant::now());
    while echoed < bytes {
        let room = usize::try_from(bytes - echoed).unwrap_or(usize::MAX).min(buffer.len());
        match port.read(&mut buffer[..room]) {
            Ok(0) if heard.elapsed() > patience => {
                let text = format!("{} was silent after {echoed} of {bytes} bytes", device.display());
                return Err(Error::Mismatch(text));
            }
            Ok(0) => std::thread::sleep(Duration::from_millis(10)),
            Ok(count) => {
                port.write_all(&buffer[..count]).doing(doing("write to"))?;
                echoed += count as u64;
                heard = Instant::now();
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error).doing(doing("read")),
        }
    }
    println!("echoed bytes={echoed}");
    Ok(())
}
