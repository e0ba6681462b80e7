//! The commands of a user against a VM that runs: what they answer, what the log says of them, and what the status shows.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::harness::payload;

const SOCKET: &str = "n.sock";

fn nestling(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nestling"));
    command.args(arguments).args(["--socket", SOCKET]).current_dir(dir).env_remove("NESTLING_LOG");
    command.env("NESTLING_TERMINATION_LOG", dir.join("no-such-file"));
    command
}

/// A VM in a process of its own, as `nestling run` makes it.
struct Vm<'a> {
    dir: &'a Path,
    process: Child,
}

impl<'a> Vm<'a> {
    fn start(dir: &'a Path, flags: &[&str]) -> Self {
        let kernel = payload().to_str().unwrap();
        let machine =
            ["run", "--kernel", kernel, "--cmdline-replace", "scenario=console-echo", "--memory", "64M"];
        let mut command = nestling(dir, &[&machine, flags].concat());
        command
            .args(["--allow-backend", "any"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let vm = Self { dir, process: command.spawn().unwrap() };
        let begun = Instant::now();
        while !vm.ask(&["status", "--probe", "startup"]).status.success() {
            assert!(begun.elapsed() < Duration::from_secs(30), "the guest does not come up");
            std::thread::sleep(Duration::from_millis(20));
        }
        vm
    }

    fn ask(&self, arguments: &[&str]) -> Output {
        nestling(self.dir, arguments).output().unwrap()
    }

    fn status(&self) -> String {
        String::from_utf8(self.ask(&["status"]).stdout).unwrap()
    }

    /// Stops it and returns its log.
    fn log(mut self) -> String {
        assert!(self.ask(&["stop"]).status.success());
        let mut log = String::new();
        self.process.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        assert_eq!(self.process.wait().unwrap().code(), Some(143), "{log}");
        log
    }
}

impl Drop for Vm<'_> {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn every_operation_is_answered_and_logged_with_what_was_and_what_is() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("d.img"), vec![0; 1 << 20]).unwrap();
    fs::write(dir.path().join("r.img"), vec![0; 1 << 20]).unwrap();
    let flags =
        ["--disk", "d.img,serial=data", "--disk", "r.img,readonly=true", "--port", "agent,path=a.sock"];
    let vm = Vm::start(dir.path(), &[&flags[..], &["--vsock", "cid=9,path=v.sock"]].concat());
    for (arguments, code, words) in [
        (&["memory", "48M"][..], 0, ""),
        (&["memory", "32M"], 0, ""),
        (&["memory", "65M"], 201, "from 32 MiB to its size, 64 MiB"),
        (&["disk", "resize", "data", "2M"], 0, ""),
        (&["disk", "resize", "vda", "1M"], 201, "does not become smaller"),
        (&["disk", "resize", "vdb", "2M"], 212, "read-only"),
        (&["disk", "resize", "vdc"], 201, "there is no disk `vdc`: the machine has vda, vdb"),
        (&["link", "0", "up"], 212, "no network interface: it was started without --net"),
        (&["pause"], 0, ""),
        (&["resume"], 0, ""),
    ] {
        let output = vm.ask(arguments);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
        assert!(text.contains(words), "{arguments:?}: {text}");
    }
    let status = vm.status();
    for row in [
        "disk      vda, serial data: d.img\n",
        "disk      vdb, serial nestling-1: r.img, read-only\n",
        "port      /dev/virtio-ports/agent: a.sock\n",
        "vsock     cid 9: v.sock\n",
        "virtio console, balloon, watchdog\n",
    ] {
        assert!(status.contains(row), "{row} in {status}");
    }
    let log = vm.log();
    for line in [
        "the guest's memory target was set before_bytes=67108864 now_bytes=50331648",
        "the guest's memory target was set before_bytes=50331648 now_bytes=33554432",
        "a disk was resized disk=d.img asked=\"data\" before_bytes=1048576 now_bytes=2097152",
        "state paused",
    ] {
        assert!(log.contains(line), "{line} in {log}");
    }
    assert_eq!(
        log.matches("was set").count() + log.matches("was resized").count(),
        3,
        "what was refused: {log}"
    );
}

#[test]
fn a_balloon_that_is_not_there_is_a_refusal_and_not_an_absent_vm() {
    let dir = tempfile::tempdir().unwrap();
    let vm = Vm::start(dir.path(), &["--balloon", "off"]);
    let output = vm.ask(&["memory", "48M"]);
    assert_eq!(output.status.code(), Some(212));
    assert!(String::from_utf8_lossy(&output.stderr).contains("refused: the machine has no balloon"));
    vm.log();
}
