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
        (vec!["create", "new.qcow2", "--backing", "forged.img"], "say format=qcow2, or format=raw"),
        (vec!["info", "gone.img"], "gone.img"),
        (vec!["info", "."], "neither a regular file nor a block device"),
        (vec!["info", "forged.img"], "header is cut off"),
        (vec!["convert", "there.img", "there.img"], "exists"),
        (vec!["convert", "forged.img", "new.img"], "say format=qcow2, or format=raw"),
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
