//! The host's end of the wire: passes the program's output on, files away what was collected, keeps the verdict.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use crate::error::{Doing, Error, Result};
use crate::job::FileHeader;
use crate::logs::Logs;
use crate::report::Report;
use crate::run::Request;
use crate::wire::{Decoder, Item, Kind};

/// Takes the stream of records of one run.
pub(crate) struct Listener<'a> {
    report: &'a Report,
    request: &'a Request,
    logs: &'a Logs,
    decoder: Decoder,
    /// All that the program wrote.
    output: File,
    /// What Bochs itself wrote.
    stray: File,
    collected: Option<(File, PathBuf)>,
    end: Option<End>,
}

enum End {
    Exit(i32),
    Failure(String),
}

impl<'a> Listener<'a> {
    pub(crate) fn create(request: &'a Request, logs: &'a Logs, report: &'a Report) -> Result<Self> {
        let create = |name| {
            let path = logs.path(name);
            File::create(&path).on("create", &path)
        };
        Ok(Self {
            report,
            request,
            logs,
            decoder: Decoder::default(),
            output: create("output.log")?,
            stray: create("bochs.stdout")?,
            collected: None,
            end: None,
        })
    }

    /// Whether the last record has arrived.
    pub(crate) fn finished(&self) -> bool {
        self.end.is_some()
    }

    /// Bytes from Bochs' standard output.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> Result<()> {
        self.decoder.push(bytes);
        while let Some(item) = self.decoder.next() {
            match item {
                Item::Stray(bytes) => self.stray.write_all(&bytes).doing("write Bochs' output down")?,
                Item::Record(kind, payload) => self.record(kind, &payload)?,
            }
        }
        Ok(())
    }

    fn record(&mut self, kind: Kind, payload: &[u8]) -> Result<()> {
        match kind {
            Kind::Stage => self.stage(payload),
            Kind::Stdout => {
                pass_on(&mut io::stdout(), payload);
                self.output.write_all(payload).doing("write the program's output down")?;
            }
            Kind::Stderr => {
                pass_on(&mut io::stderr(), payload);
                self.output.write_all(payload).doing("write the program's output down")?;
            }
            Kind::FileBegin => self.collected = Some(self.begin_file(payload)?),
            Kind::FileData => {
                if let Some((file, path)) = &mut self.collected {
                    file.write_all(payload).on("write", path)?;
                }
            }
            Kind::KernelLog => {
                let path = self.logs.kernel();
                let log = OpenOptions::new().create(true).append(true).open(&path);
                log.and_then(|mut log| log.write_all(payload)).on("write", &path)?;
            }
            Kind::Exit => {
                let code = payload.try_into().map_or(i32::MAX, i32::from_le_bytes);
                self.end = Some(End::Exit(code));
            }
            Kind::Failure => self.end = Some(End::Failure(String::from_utf8_lossy(payload).into_owned())),
        }
        Ok(())
    }

    fn stage(&self, payload: &[u8]) {
        // A node that speaks has been read in.
        self.logs.remove_inputs();
        if let Some((uptime, text)) = payload.split_first_chunk() {
            let uptime = Duration::from_nanos(u64::from_le_bytes(*uptime));
            self.report.stage(&String::from_utf8_lossy(text), uptime);
        }
    }

    /// Opens the file that a header announces.
    fn begin_file(&self, header: &[u8]) -> Result<(File, PathBuf)> {
        let header: FileHeader = serde_json::from_slice(header).doing("understand the node")?;
        let request = self.request.collect.get(header.request);
        let path = request
            .and_then(|request| target(&request.target, &header.below))
            .ok_or_else(|| Error::Inside(format!("sent the file {}, unasked", header.below.display())))?;
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).on("create", parent)?;
        }
        let open = OpenOptions::new().create(true).write(true).truncate(true).mode(header.mode).open(&path);
        Ok((open.on("create", &path)?, path))
    }

    /// The program's exit code, or why there is none.
    pub(crate) fn verdict(&self, status: ExitStatus) -> Result<u8> {
        match &self.end {
            Some(End::Exit(code)) => Ok(u8::try_from(*code).unwrap_or(u8::MAX)),
            Some(End::Failure(text)) => Err(Error::Inside(text.clone())),
            None => Err(Error::Died { status }),
        }
    }
}

/// Whoever reads our output may be gone: the run goes on, as its exit code still counts.
fn pass_on(to: &mut impl Write, bytes: &[u8]) {
    let _ = to.write_all(bytes).and_then(|()| to.flush());
}

/// `below` under `target`, unless it leads elsewhere.
fn target(target: &Path, below: &Path) -> Option<PathBuf> {
    if !below.components().all(|part| matches!(part, Component::Normal(_))) {
        return None;
    }
    // Joining an empty path would add a slash.
    Some(if below.as_os_str().is_empty() { target.to_owned() } else { target.join(below) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn collected_files_stay_where_they_were_asked_for() {
        let host = Path::new("/out/run");
        assert_eq!(target(host, Path::new("")).as_deref(), Some(host));
        assert_eq!(target(host, Path::new("a/b")).as_deref(), Some(Path::new("/out/run/a/b")));
        assert_eq!(target(host, Path::new("../b")), None);
        assert_eq!(target(host, Path::new("/etc/passwd")), None);
    }
}
