//! Disks when something goes wrong around them: their file system is full, or the VMM is killed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::harness::{Guest, payload};

const MIB: u64 = 1 << 20;

fn qemu_img(arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new("qemu-img").args(arguments).output();
    let output = output.expect("qemu-img checks images: install the package qemu-utils");
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
}

fn make(path: &Path, mib: u64) {
    let path = path.to_str().unwrap();
    if path.ends_with(".qcow2") {
        let made = qemu_img(&["create", "-q", "-f", "qcow2", path, &format!("{mib}M")]);
        assert_eq!(made.0, Some(0), "{}", made.1);
    } else {
        File::create(path).unwrap().set_len(mib * MIB).unwrap();
    }
}

/// A tmpfs of 2 MiB under a disk of 6: the guest sees an I/O error and the status an error more; when there is room again,
/// the same guest writes the rest.
fn fill_up(name: &str) {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path();
    let none = None::<&str>;
    // The mount is this thread's, and goes with it.
    unshare(CloneFlags::CLONE_NEWNS).expect("this test mounts a file system, which takes root");
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    mount(Some("tmpfs"), place, Some("tmpfs"), MsFlags::empty(), Some("size=2m")).unwrap();
    make(&place.join(name), 6);
    let (reader, keyboard) = nix::unistd::pipe().unwrap();
    let running = Guest::new("disk-fill").disk(&place.join(name), false).serial_input(reader).start();
    running.wait_for("full");
    let facts = running.machine.facts();
    let disk = facts.devices.iter().find(|device| device.kind == "virtio-blk").unwrap();
    assert!(disk.counters["errors"] >= 1 && disk.counters["writes"] > 8, "{:?}", disk.counters);
    mount(none, place, none, MsFlags::MS_REMOUNT, Some("size=32m")).unwrap();
    File::from(keyboard).write_all(b"\n").unwrap();
    let outcome = running.finish();
    assert_eq!(outcome.values("failed"), ["Ok((1, 1))"], "VIRTIO_BLK_S_IOERR, once");
    assert_eq!(outcome.value("good"), "96 of 96");
    if name.ends_with(".qcow2") {
        let checked = qemu_img(&["check", "-f", "qcow2", place.join(name).to_str().unwrap()]);
        assert!(matches!(checked.0, Some(0 | 3)), "{}", checked.1);
    }
}

#[test]
fn a_guest_sees_errors_while_there_is_no_room_and_goes_on_when_there_is() {
    for name in ["a.img", "a.qcow2"] {
        std::thread::spawn(|| fill_up(name)).join().unwrap();
    }
}

/// Runs the VMM, kills it when the guest has told of `flushes` flushes and `more` bytes, and returns the last step of which
/// the guest knows that it was flushed.
fn run_and_kill(place: &Path, image: &Path, flushes: usize, pause_us: u64) -> u64 {
    let mut vmm = Command::new(env!("CARGO_BIN_EXE_nestling"))
        .args(["run", "--memory", "64M", "--cpus", "1", "--console", "serial", "--allow-backend", "any"])
        .args(["--cmdline-replace", "scenario=disk-churn", "--kernel"])
        .arg(payload())
        .arg("--disk")
        .arg(image)
        .arg("--socket")
        .arg(place.join("socket"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(File::create(place.join("log")).unwrap())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(vmm.stdout.take().unwrap()).lines();
    let mut last = 0;
    let mut seen = 0;
    for line in lines.by_ref().map_while(Result::ok) {
        let Some(step) = flushed(&line) else { continue };
        (last, seen) = (step, seen + 1);
        if seen == flushes {
            std::thread::sleep(std::time::Duration::from_micros(pause_us));
            vmm.kill().unwrap();
        }
    }
    vmm.wait().unwrap();
    let log = fs::read_to_string(place.join("log")).unwrap();
    assert!(seen >= flushes, "{seen} flushes: {log}");
    last
}

fn flushed(line: &str) -> Option<u64> {
    let (step, good) = line.trim_end().strip_prefix("flushed ")?.split_once(' ')?;
    assert_eq!(good, "true", "{line}");
    step.parse().ok()
}

/// SIGKILL between any two system calls of a VMM whose guest makes its image grow.
#[test]
fn a_killed_vmm_leaves_an_image_that_holds_what_was_flushed() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path();
    let image = place.join("a.qcow2");
    let flat = place.join("flat.img");
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    make(&image, 4 << 10);
    let places = (4 << 30) / (64 << 10);
    // What is known to be there, by place.
    let mut known: BTreeMap<u64, u64> = BTreeMap::new();
    for round in 0..12_u64 {
        // Each run begins from the start: what is there is written over, and then the image grows.
        let last = run_and_kill(place, &image, 10 + 9 * round as usize, round * 337);
        known.extend((0..=last).map(|step| (step * 40_503 % places, step + 1)));
        let checked = qemu_img(&["check", "-f", "qcow2", &text(&image)]);
        assert!(matches!(checked.0, Some(0 | 3)), "round {round}: {}", checked.1);
        let _ = fs::remove_file(&flat);
        let converted = qemu_img(&["convert", "-f", "qcow2", "-O", "raw", &text(&image), &text(&flat)]);
        assert_eq!(converted.0, Some(0), "{}", converted.1);
        let flat = File::open(&flat).unwrap();
        for (at, step) in &known {
            let mut number = [0; 8];
            flat.read_exact_at(&mut number, at * (64 << 10)).unwrap();
            assert_eq!(u64::from_le_bytes(number), *step, "round {round}: place {at}, of {last} steps");
        }
    }
    assert!(known.len() > 500, "{} places", known.len());
}
