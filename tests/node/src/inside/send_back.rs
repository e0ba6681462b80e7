//! Sends files of the node to the host.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::port_e9::PortE9;
use crate::error::{Doing, Result};
use crate::job::FileHeader;
use crate::wire::{self, Kind};

/// Sends a file, or all regular files below a directory.
pub(super) fn send(request: usize, path: &Path, port: &mut PortE9) -> Result<()> {
    send_below(request, path, Path::new(""), port)
}

fn send_below(request: usize, path: &Path, below: &Path, port: &mut PortE9) -> Result<()> {
    let about = fs::metadata(path).on("collect", path)?;
    if about.is_file() {
        return send_file(request, path, below, port);
    }
    for entry in fs::read_dir(path).on("collect", path)? {
        let entry = entry.on("collect", path)?;
        let kind = entry.file_type().on("collect", path)?;
        if kind.is_file() || kind.is_dir() {
            send_below(request, &entry.path(), &below.join(entry.file_name()), port)?;
        }
    }
    Ok(())
}

fn send_file(request: usize, path: &Path, below: &Path, port: &mut PortE9) -> Result<()> {
    let mut file = File::open(path).on("collect", path)?;
    let mode = file.metadata().on("collect", path)?.permissions().mode() & 0o777;
    let header = FileHeader { request, below: below.to_owned(), mode };
    port.send(Kind::FileBegin, &serde_json::to_vec(&header).doing("describe a file")?);
    let mut buffer = vec![0; wire::MAX_PAYLOAD];
    loop {
        match file.read(&mut buffer).on("collect", path)? {
            0 => return Ok(()),
            length => port.send(Kind::FileData, &buffer[..length]),
        }
    }
}
