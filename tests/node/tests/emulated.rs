//! Powers real nodes on and runs `examples/probe.rs` in them. The first run on a machine builds Bochs.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

const NODE: &str = env!("CARGO_BIN_EXE_nestling-node");

/// Examples lie beside the executables that cargo names.
fn probe() -> PathBuf {
    PathBuf::from(NODE).parent().unwrap().join("examples/probe")
}

fn run(options: &[&str], words: &[&str]) -> Output {
    let output =
        Command::new(NODE).arg("run").args(options).arg("--").arg(probe()).args(words).output().unwrap();
    eprintln!("{}", String::from_utf8_lossy(&output.stderr));
    output
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_nested_guest_runs_on_emulated_vtx() {
    let output = run(&[], &["kvm"]);
    assert_eq!(text(&output.stdout), "KVM API version 12\nthe nested guest says: hello\n");
    assert!(text(&output.stderr).contains("vmx kvm_intel ept=Y unrestricted_guest=Y vpid=Y thp=madvise"));
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn a_failure_passes_through_and_leaves_the_logs() {
    let output = run(&[], &["exit", "7"]);
    let errors = text(&output.stderr);
    assert_eq!(output.status.code(), Some(7));
    let logs = errors.lines().find_map(|line| line.strip_prefix("node: logs are in ")).unwrap();
    assert!(fs::read_to_string(format!("{logs}/kernel.log")).unwrap().contains("Linux version 6."));
    fs::remove_dir_all(logs).unwrap();
}

#[test]
fn a_signal_that_ends_the_program_is_in_its_exit_code() {
    assert_eq!(run(&[], &["abort"]).status.code(), Some(128 + 6));
}

#[test]
fn a_program_that_hangs_is_given_up() {
    let started = Instant::now();
    let output = run(&["--timeout", "40"], &["hang"]);
    assert_eq!(output.status.code(), Some(124));
    assert!(text(&output.stderr).contains("did not end within 40 s"));
    assert!(started.elapsed() < Duration::from_secs(600));
}

#[test]
fn ctrl_c_stops_bochs_and_leaves_nothing() {
    let mut node = Command::new(NODE).args(["run", "--"]).arg(probe()).arg("hang").spawn().unwrap();
    let directory = PathBuf::from(NODE).ancestors().find(|dir| dir.ends_with("target")).unwrap().join("node");
    let logs = directory.join(format!("probe-{}", node.id()));
    let end = Instant::now() + Duration::from_secs(300);
    while !logs.join("console.log").exists() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(50));
    }
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", node.id())).unwrap();
    let bochs = PathBuf::from(format!("/proc/{}", children.trim()));
    assert!(bochs.exists());
    assert!(Command::new("kill").args(["-INT", &node.id().to_string()]).status().unwrap().success());
    assert_eq!(node.wait().unwrap().code(), Some(128 + 2));
    assert!(!bochs.exists() && !logs.exists());
}

#[test]
fn a_child_that_outlives_the_program_holds_nobody_up() {
    let output = run(&[], &["orphan"]);
    assert_eq!(text(&output.stdout), "leaving a child behind\n");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn output_of_any_bytes_arrives_whole() {
    const BYTES: usize = 3_000_001;
    let output = run(&[], &["flood", &BYTES.to_string()]);
    let expected: Vec<u8> = (0u64..).map(|i| (i ^ (i >> 8) ^ (i >> 16)) as u8).take(BYTES).collect();
    assert!(output.stdout == expected, "{} bytes arrived", output.stdout.len());
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn files_go_in_and_come_back() {
    let directory = tempfile::tempdir().unwrap();
    let (big, back) = (directory.path().join("big"), directory.path().join("made/back"));
    fs::write(&big, vec![1; 40 << 20]).unwrap();
    let file = format!("{}=/assets/big", big.display());
    let output = run(&["--file", &file], &["read", "/assets/big"]);
    assert_eq!(text(&output.stdout), format!("/assets/big: {0} bytes, sum {0}\n", 40 << 20));

    let collect = format!("/tmp/made={}", back.display());
    let output = run(&["--collect", &collect], &["write", "/tmp/made", "1000000"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(fs::metadata(&back).unwrap().len(), 1_000_000);
}

#[test]
fn files_that_do_not_fit_are_noticed_in_the_node() {
    let big = tempfile::NamedTempFile::new().unwrap();
    big.as_file().set_len(200 << 20).unwrap();
    let file = format!("{}=/big", big.path().display());
    let output = run(&["--memory", "320", "--file", &file], &["exit", "0"]);
    assert!(text(&output.stderr).contains("do not fit into half of the node's memory"));
    assert_eq!(output.status.code(), Some(125));
}

#[test]
fn what_cannot_work_is_said_before_power_on() {
    let refused = |options: &[&str], program: &str, sentence: &str| {
        let output = Command::new(NODE).arg("run").args(options).args(["--", program]).output().unwrap();
        let errors = text(&output.stderr);
        assert!(errors.contains(sentence), "{errors}");
        assert_eq!(output.status.code(), Some(125));
    };
    refused(&[], "/no/such/program", "cannot open /no/such/program");
    refused(&[], "/bin/sh", "linked dynamically");
    refused(&[], "/etc/hostname", "not an x86-64 executable");
    refused(&["--file", "/no/such/file"], NODE, "cannot read /no/such/file");
    refused(&["--file", "/etc/hostname=/dev/x"], NODE, "would be hidden");
    refused(&["--module", "nvidia"], NODE, "has no module \"nvidia\"");
}

#[test]
fn a_test_runs_in_the_node_as_it_would_here() {
    let assets = tempfile::tempdir().unwrap();
    fs::write(assets.path().join("kernel"), "x").unwrap();
    let output = Command::new(NODE)
        .args(["runner", "--where", "node"])
        .arg(probe())
        .arg("show")
        .env("NESTLING_ASSETS", assets.path())
        .env("RUST_BACKTRACE", "1")
        .env("SECRET", "stays")
        .output()
        .unwrap();
    let shown = text(&output.stdout);
    let here = std::env::current_dir().unwrap();
    assert_eq!(shown.lines().next(), Some(&*format!("in {}", here.display())));
    assert!(shown.contains(&format!("NESTLING_ASSETS={}\n", assets.path().display())));
    assert!(shown.contains("RUST_BACKTRACE=1\n") && !shown.contains("SECRET"));
    assert!(text(&output.stderr).contains("this is standard error"));
}
