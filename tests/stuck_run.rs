//! `nestling run` with a disk that does not answer: SIGTERM ends the process in bounded time, and its last words say why.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, its helpers too")]

use std::fs::File;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

#[path = "payload/harness.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod harness;
#[path = "payload/slow_file.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod slow_file;

use harness::{disk_image, payload};
use slow_file::SlowFile;

/// Kubernetes' grace period.
const GRACE: Duration = Duration::from_secs(30);

#[test]
fn sigterm_ends_a_run_whose_disk_is_stuck_before_the_grace_period_is_over() {
    for io in ["auto", "threads"] {
        let slow = SlowFile::new(disk_image());
        let directory = tempfile::tempdir().unwrap();
        let (words, log) = (directory.path().join("last-words"), directory.path().join("log"));
        File::create(&words).unwrap();
        let mut run = Command::new(env!("CARGO_BIN_EXE_nestling"));
        run.args(["run", "--allow-backend", "any", "--memory", "64M", "--cpus", "1", "--console", "serial"]);
        run.args(["--cmdline-replace", "scenario=disk-reads count=100000000"]);
        run.arg("--kernel").arg(payload()).arg("--socket").arg(directory.path().join("n.sock"));
        run.arg("--disk").arg(format!("path={},io={io}", slow.path().display()));
        run.env("NESTLING_TERMINATION_LOG", &words);
        run.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&log).unwrap());
        let mut child = run.spawn().unwrap();
        slow.wait_for_use(100);
        slow.hold();
        kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
        let begun = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            if begun.elapsed() > GRACE {
                let _ = child.kill();
                panic!("it does not end: {}", std::fs::read_to_string(&log).unwrap());
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        assert_eq!(status.code(), Some(209), "{}", std::fs::read_to_string(&log).unwrap());
        let said: Value = serde_json::from_slice(&std::fs::read(&words).unwrap()).unwrap();
        assert_eq!((&said["state"], &said["reason"]["kind"]), (&"failed".into(), &"killed".into()));
        let message = said["message"].as_str().unwrap();
        assert!(message.starts_with("the machine was stopped by SIGTERM, but virtio-blk"), "{message}");
        assert!(message.contains(slow.path().to_str().unwrap()), "{message}");
        assert!(!directory.path().join("n.sock").exists(), "the socket is gone");
    }
}
