//! Pauses and stops: in storms, and while a disk does not answer.

use std::time::{Duration, Instant};

use crate::harness::{Guest, Running, disk_image};
use crate::slow_file::SlowFile;

const LONG: Duration = Duration::from_secs(30);

fn reads(running: &Running) -> u64 {
    let facts = running.machine.facts();
    let disk = facts.devices.iter().find(|device| device.kind == "virtio-blk").unwrap();
    disk.counters["reads"]
}

fn until(what: &str, mut is: impl FnMut() -> bool) {
    let end = Instant::now() + LONG;
    while !is() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_disk_that_does_not_answer_keeps_neither_a_pause_nor_a_stop_without_end() {
    let (slow, other) = (SlowFile::new(disk_image()), disk_image());
    let guest = Guest::new("disk-reads count=100000000").disk(slow.path(), false).disk(other.path(), false);
    let mut running = guest.start();
    slow.wait_for_use(10);
    slow.hold();
    let begun = Instant::now();
    let refused = running.machine.pause().unwrap_err().to_string();
    assert!(begun.elapsed() < LONG, "{:?}", begun.elapsed());
    let name = slow.path().to_str().unwrap();
    assert!(refused.contains("virtio-blk") && refused.contains(name), "{refused}");
    slow.release();
    let before = reads(&running);
    until("the guest reads on", || reads(&running) > before + 10);
    running.machine.pause().unwrap();
    let at_rest = reads(&running);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(reads(&running), at_rest);
    running.machine.resume();
    until("the guest reads on", || reads(&running) > at_rest + 10);

    slow.hold();
    let begun = Instant::now();
    let stuck = running.machine.stop().unwrap_err().to_string();
    assert!(begun.elapsed() < LONG, "{:?}", begun.elapsed());
    assert!(stuck.contains(name) && !stuck.contains(other.path().to_str().unwrap()), "{stuck}");
    assert_eq!(running.machine.stop().unwrap_err().to_string(), stuck, "and it is not waited for again");
    drop(slow);
    until("its threads end when the disk answers", || !is_stopping());
}

#[test]
fn a_vcpu_that_waits_for_a_stuck_disk_goes_on_after_a_pause_that_was_refused() {
    let slow = SlowFile::new(disk_image());
    let guest = Guest::new("disk-resets-in-flight count=200").disk(slow.path(), false);
    let mut running = guest.start();
    until("it is reset", || running.machine.facts().devices.iter().any(|device| device.trapped_writes > 200));
    slow.hold();
    // The driver does not wait for its requests before it resets the device: the vCPU waits in that register write.
    std::thread::sleep(Duration::from_millis(300));
    let refused = running.machine.pause().unwrap_err().to_string();
    assert!(refused.contains(slow.path().to_str().unwrap()), "{refused}");
    slow.release();
    let outcome = running.finish();
    assert_eq!(outcome.value("after"), "Ok((0, 513))");
}

#[test]
fn a_storm_of_pauses_breaks_no_guest_that_resets_and_moves_its_devices() {
    for (scenario, cpus) in [("disk-resets-in-flight count=200", 1), ("moving-bars moves=160", 2)] {
        let image = disk_image();
        let mut running = Guest::new(scenario).cpus(cpus).disk(image.path(), false).start();
        let mut pauses = 0;
        while running.machine.facts().vcpus.iter().any(|vcpu| vcpu.state != "stopped") {
            running.machine.pause().unwrap();
            running.machine.resume();
            pauses += 1;
            std::thread::sleep(Duration::from_millis(1));
        }
        let outcome = running.finish();
        assert!(pauses > 5, "{pauses}");
        assert_eq!(outcome.value("after"), "Ok((0, 513))", "{scenario} after {pauses} pauses");
    }
}

/// Whether a device of this process is being stopped.
fn is_stopping() -> bool {
    let mut names = std::fs::read_dir("/proc/self/task").unwrap();
    names.any(|task| {
        let name = std::fs::read_to_string(task.unwrap().path().join("comm"));
        name.is_ok_and(|name| name.trim_end() == "device-stop")
    })
}
