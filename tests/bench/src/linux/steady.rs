//! A guest at work: what it costs when it reads its disk and writes to its console.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::Value;

use super::{GUEST_MIB, Guest};
use crate::Result;
use crate::observed::{Overhead, overhead, threads};

/// Enough for the reads below.
const DISK_BYTES: u64 = 8 << 20;
/// Without read-ahead each page is a request of its own; the first read is the driver warming up.
const SCRIPT: &str = "stty -echo; echo 0 > /sys/block/vda/queue/read_ahead_kb; \
    dd if=/dev/vda of=/dev/null bs=4096 count=1 2>/dev/null; \
    echo before; read line; \
    dd if=/dev/vda of=/dev/null bs=4096 skip=1 count=1000 2>/dev/null; \
    echo after; read line";

/// What a guest at work costs.
#[derive(Debug)]
pub(super) struct Steady {
    /// Exits to user space that 1,000 disk reads and a console line caused.
    pub(super) exits: u64,
    pub(super) touched_mib: f64,
    pub(super) huge_percent: f64,
    pub(super) overhead: Overhead,
    pub(super) threads: u64,
}

/// A running guest, at the other end of its console. Killed when dropped.
struct Running<'a> {
    guest: &'a Guest<'a>,
    child: Child,
    keyboard: ChildStdin,
    console: BufReader<ChildStdout>,
}

impl Steady {
    pub(super) fn measure(guest: &Guest<'_>) -> Result<Self> {
        let mut running = Running::start(guest)?;
        running.expect("before")?;
        let before = running.status()?;
        writeln!(running.keyboard)?;
        running.expect("after")?;
        let after = running.status()?;
        let pid = running.child.id();
        let (overhead, threads) = (overhead(pid, GUEST_MIB)?, threads(pid)?);
        writeln!(running.keyboard)?;
        running.child.wait()?;

        let exits = |status: &Value| status["exits_total"].as_u64().ok_or("a status without exits");
        let memory = |name| after["memory"][name].as_f64().ok_or("a status without memory");
        Ok(Self {
            exits: exits(&after)? - exits(&before)?,
            touched_mib: memory("resident_bytes")? / f64::from(1 << 20),
            huge_percent: memory("huge_share")? * 100.0,
            overhead,
            threads,
        })
    }
}

impl<'a> Running<'a> {
    fn start(guest: &'a Guest<'a>) -> Result<Self> {
        let disk = guest.scratch.join("disk.img");
        File::create(&disk)?.set_len(DISK_BYTES)?;
        let mut command = guest.command(&["--disk", &disk.display().to_string()], SCRIPT);
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn()?;
        let keyboard = child.stdin.take().ok_or("no stdin")?;
        let console = BufReader::new(child.stdout.take().ok_or("no stdout")?);
        Ok(Self { guest, child, keyboard, console })
    }

    /// Waits for a line on the guest's console.
    fn expect(&mut self, text: &str) -> Result<()> {
        let mut line = String::new();
        while line.trim() != text {
            line.clear();
            if self.console.read_line(&mut line)? == 0 {
                return Err(format!("{}: ended without saying {text:?}", self.guest.title()).into());
            }
        }
        Ok(())
    }

    fn status(&self) -> Result<Value> {
        let mut command = Command::new(self.guest.nestling);
        let output = command.args(["status", "--json", "--socket"]).arg(self.guest.socket()).output()?;
        Ok(serde_json::from_slice(&output.stdout)?)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Guest<'_> {
    pub(super) fn socket(&self) -> PathBuf {
        self.scratch.join("nestling.sock")
    }
}
