//! `nestling disk` as a user meets it, checked by QEMU's own tools.
#![allow(clippy::expect_used)] // a test's helper may fail the test

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

const BAD_INPUT: i32 = 201;

fn nestling(directory: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_nestling"))
        .arg("disk")
        .args(arguments)
        .current_dir(directory)
        .output()
        .expect("nestling starts")
}

fn succeeds(directory: &Path, arguments: &[&str]) -> String {
    let output = nestling(directory, arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {errors}");
    assert!(errors.is_empty(), "no terminal, no progress: {errors}");
    String::from_utf8(output.stdout).expect("text")
}

fn qemu_img(directory: &Path, arguments: &[&str]) -> String {
    let output = Command::new("qemu-img")
        .args(arguments)
        .current_dir(directory)
        .output()
        .expect("qemu-img is needed to check images: install the package qemu-utils");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn an_image_is_made_shown_and_converted() {
    let directory = tempfile::tempdir().expect("directory");
    let place = directory.path();
    let made = succeeds(place, &["create", "base.img", "64M"]);
    assert_eq!(made, "base.img: raw, 64 MiB (67108864 bytes)\n");
    let mut bytes = vec![0; 64 << 20];
    bytes[5_000_000..5_100_000].fill(0x5a);
    fs::write(place.join("base.img"), &bytes).expect("written");
    succeeds(place, &["create", "vm.qcow2", "--backing", "base.img"]);
    qemu_img(place, &["check", "-q", "vm.qcow2"]);
    let theirs = qemu_img(place, &["info", "vm.qcow2"]);
    assert!(
        theirs.contains("backing file: base.img") && theirs.contains("backing file format: raw"),
        "{theirs}"
    );

    let shown = succeeds(place, &["info", "vm.qcow2"]);
    for part in [
        "image         vm.qcow2",
        "qcow2, version 3, clusters of 64 KiB",
        "64 MiB (67108864 bytes)",
        "backing file  base.img",
    ] {
        assert!(shown.contains(part), "{part:?} in {shown}");
    }
    let json = succeeds(place, &["info", "--json", "vm.qcow2"]);
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json["layers"][0]["format"], "qcow2");
    assert_eq!(json["layers"][0]["virtual_bytes"], 64 << 20);
    assert_eq!(json["layers"][1]["path"], "base.img");
    assert_eq!(json["layers"][1]["lock"], "free");

    succeeds(place, &["convert", "vm.qcow2", "flat.qcow2"]);
    qemu_img(place, &["check", "-q", "flat.qcow2"]);
    qemu_img(place, &["compare", "-q", "base.img", "flat.qcow2"]);
    assert!(!qemu_img(place, &["info", "flat.qcow2"]).contains("backing"));
    succeeds(place, &["convert", "flat.qcow2", "copy.img"]);
    assert!(fs::read(place.join("copy.img")).expect("read") == bytes);
}

#[test]
fn what_cannot_be_done_is_one_sentence_and_leaves_nothing() {
    let directory = tempfile::tempdir().expect("directory");
    let place = directory.path();
    fs::write(place.join("there.img"), vec![1; 4096]).expect("written");
    fs::write(place.join("forged.img"), b"QFI\xfb and more").expect("written");
    for (arguments, part) in [
        (
            vec!["create", "there.img", "1M"],
            "there.img exists: choose another name, or replace it with --force",
        ),
        (vec!["create", "new.img"], "needs a size"),
        (vec!["create", "new.img", "0"], "at least one sector"),
        (vec!["create", "new.img", "big"], "write for example 512M"),
        (vec!["create", "gone/new.img", "1M"], "No such file or directory"),
        (vec!["create", "new.qcow2", "--backing", "gone.img"], "gone.img"),
        (
            vec!["create", "new.qcow2", "--backing", "forged.img"],
            "say --backing-format qcow2, or --backing-format raw",
        ),
        (vec!["info", "gone.img"], "gone.img"),
        (vec!["info", "."], "neither a regular file nor a block device"),
        (vec!["info", "forged.img"], "say --format qcow2, or --format raw"),
        (vec!["info", "forged.img", "--format", "qcow2"], "header is cut off"),
        (vec!["convert", "there.img", "there.img"], "exists"),
        (vec!["convert", "forged.img", "new.img"], "say --source-format qcow2, or --source-format raw"),
        (vec!["convert", "gone.img", "new.img"], "gone.img"),
    ] {
        let output = nestling(place, &arguments);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(BAD_INPUT), "{arguments:?}: {text}");
        assert!(text.starts_with("nestling: ") && text.contains(part), "{arguments:?}: {text}");
        let names = fs::read_dir(place).expect("list").count();
        assert_eq!(names, 2, "{arguments:?} left something");
    }
    succeeds(place, &["create", "there.img", "1M", "--force"]);
    assert_eq!(fs::metadata(place.join("there.img")).expect("image").len(), 1 << 20);
}

/// The name of a backing file is the image's maker's, and may be meant for our reader's terminal.
#[test]
fn what_an_image_says_stays_on_its_line() {
    let directory = tempfile::tempdir().expect("directory");
    let place = directory.path();
    let name = "gone\nnestling says all is well\u{1b}[2J";
    qemu_img(place, &["create", "-q", "-f", "qcow2", "-u", "-b", name, "-F", "raw", "vm.qcow2", "1M"]);
    let shown = succeeds(place, &["info", "vm.qcow2"]);
    let told = nestling(place, &["convert", "vm.qcow2", "flat.img"]);
    let told = String::from_utf8(told.stderr).expect("text");
    assert_eq!(told.lines().count(), 1, "{told}");
    for text in [shown, told] {
        assert!(text.contains(r"gone\nnestling says all is well\u{1b}[2J"), "{text}");
        assert!(!text.chars().any(|character| character.is_control() && character != '\n'), "{text:?}");
    }
}

/// SIGKILL, SIGTERM and SIGINT in the middle of it: the old image is as it was, and nothing lies beside it.
#[test]
fn a_convert_that_is_killed_leaves_nothing() {
    use std::os::unix::process::ExitStatusExt;

    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    let directory = tempfile::tempdir().expect("directory");
    let place = directory.path();
    // Data all over, to have time.
    fs::write(place.join("big.img"), vec![0x5a; 192 << 20]).expect("written");
    fs::write(place.join("old.qcow2"), "old").expect("written");
    for (signal, code) in [(Signal::SIGKILL, None), (Signal::SIGTERM, Some(143)), (Signal::SIGINT, Some(130))]
    {
        let mut child = Command::new(env!("CARGO_BIN_EXE_nestling"))
            .args(["disk", "convert", "big.img", "old.qcow2", "--force"])
            .current_dir(place)
            .spawn()
            .expect("nestling starts");
        // When it has read something, it is at work.
        let io = format!("/proc/{}/io", child.id());
        while fs::read_to_string(&io)
            .expect("it runs")
            .lines()
            .find_map(|line| line.strip_prefix("rchar: ")?.parse::<u64>().ok())
            .is_none_or(|bytes| bytes < 8 << 20)
        {
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        kill(Pid::from_raw(child.id() as i32), signal).expect("it is there");
        let status = child.wait().expect("it ends");
        assert_eq!(status.code(), code, "{signal}: {status:?}");
        assert_eq!(status.signal().is_some(), code.is_none());
        assert_eq!(fs::read(place.join("old.qcow2")).expect("read"), b"old", "{signal}");
        assert_eq!(fs::read_dir(place).expect("list").count(), 2, "{signal} left something");
    }
}
