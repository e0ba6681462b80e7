//! What is on a disk stays there: through a reboot, and when the VMM is killed after a flush.

use super::steady::{Delta, Steady};
use super::vm::{Kernel, Vm, nestling};
use super::{host, qcow2};

/// The blocks of these tests: written 32 at a time in a random order.
const FILE: &str = "/mnt/file --seed 5 --bytes 16777216 --depth 32 --random";
/// The same on the bare disk, past the guest's page cache, so that 32 requests are under way at the device.
const DISK: &str = "/dev/vda --seed 6 --bytes 8388608 --depth 32 --random --direct";

/// As `probe disk-batch` takes it: an area that was filled so before.
const BATCH: &str = "/dev/vda --seed 6 --bytes 8388608 --depth 32 --direct";

#[test]
fn an_ext4_with_what_was_written_to_it_survives_a_reboot() {
    let directory = host::directory();
    let disk = host::empty_disk(directory.path(), "disk.img", 64);
    let arguments = ["--disk", disk.to_str().unwrap()];
    let script = format!(
        "set -e; mkfs.ext4 -q /dev/vda; mount /dev/vda /mnt; probe disk-fill {FILE} --fsync; \
         probe file-check /mnt; umount /mnt; echo ALL DONE"
    );
    let written = Vm::start_devices(Kernel::Debian61, &arguments, &script).end();
    written.assert_all_done();
    written.assert_console("flushed bytes=16777216\r\n");

    let script = format!("set -e; mount -o ro /dev/vda /mnt; probe disk-verify {FILE}; echo ALL DONE");
    let read = Vm::start_devices(Kernel::Debian61, &arguments, &script).end();
    read.assert_all_done();
    read.assert_console("verified 4096 blocks\r\n");
}

#[test]
fn what_was_flushed_is_there_after_the_vmm_was_killed() {
    let directory = host::directory();
    let raw = host::empty_disk(directory.path(), "raw.img", 32);
    let ext4 = host::empty_disk(directory.path(), "ext4.img", 64);
    let arguments = ["--disk", raw.to_str().unwrap(), "--disk", ext4.to_str().unwrap()];
    // It is killed in the middle of writing more, behind what was flushed and beside the file.
    let script = format!(
        "set -e; probe disk-fill {DISK} --fsync; mkfs.ext4 -q /dev/vdb; mount /dev/vdb /mnt; \
         probe disk-fill {FILE} --fsync; echo FLUSHED; \
         while :; do dd if=/dev/zero of=/dev/vda bs=1M seek=8 count=24; dd if=/dev/zero of=/mnt/x bs=1M count=8; done"
    );
    let vm = Vm::start_devices(Kernel::Debian61, &arguments, &script);
    vm.expect("FLUSHED\r\n");
    vm.expect("records out");
    let said = vm.kill();
    assert!(
        said.contains("flushed bytes=8388608\r\n") && said.contains("flushed bytes=16777216\r\n"),
        "{said}"
    );

    // Mounting it replays the journal.
    let script = format!(
        "set -e; probe disk-verify {DISK}; mount /dev/vdb /mnt; probe disk-verify {FILE}; umount /mnt; echo ALL DONE"
    );
    let read = Vm::start_devices(Kernel::Debian61, &arguments, &script).end();
    read.assert_all_done();
    read.assert_console("verified 2048 blocks\r\n");
    read.assert_console("verified 4096 blocks\r\n");
}

#[test]
fn ten_thousand_verified_operations_at_queue_depth_32_cost_no_exit_and_few_interrupts() {
    let directory = host::directory();
    let disk = host::empty_disk(directory.path(), "disk.img", 16);
    let area = "/dev/vda --seed 7 --bytes 16777216 --depth 32 --direct";
    let script = format!(
        "set -e; stty -echo; probe disk-fill {area}; probe disk-batch {area} --operations 100; echo WARM; read line; \
         probe disk-batch {area} --operations 10000; probe irqs; echo STEADY; read line; echo ALL DONE"
    );
    let mut vm = Vm::start_devices(Kernel::Debian61, &["--disk", disk.to_str().unwrap()], &script);
    vm.expect("WARM\r\n");
    let steady = Steady::begin(&vm);
    vm.type_line("");
    vm.expect("STEADY\r\n");
    let delta = steady.end(&vm, "10,000 operations on a disk, 32 at a time");
    vm.type_line("");
    let ended = vm.end();
    ended.assert_all_done();
    delta.assert_no_exits();
    print_per_request(&delta, 10_000, &ended.console);
}

#[test]
fn pauses_lose_nothing_of_what_a_guest_does_to_its_disk() {
    let directory = host::directory();
    let disk = host::empty_disk(directory.path(), "disk.img", 16);
    let script = "set -e; stty -echo; echo BEGIN; \
                  probe disk-churn /dev/vda --seed 8 --bytes 16777216 --depth 16 --direct --operations 4000; \
                  echo CHURNED; read line; echo ALL DONE";
    let mut vm = Vm::start_devices(Kernel::Debian61, &["--disk", disk.to_str().unwrap()], script);
    vm.expect("BEGIN\r\n");
    let requests = |vm: &Vm| {
        let status = vm.status();
        let devices = status["devices"].as_array().unwrap();
        let disk = devices.iter().find(|device| device["kind"] == "virtio-blk").unwrap();
        ["reads", "writes"].map(|name| disk["counters"][name].as_u64().unwrap()).iter().sum::<u64>()
    };
    let mut busy = 0;
    for _ in 0..10 {
        assert!(vm.ask(&["pause"]).status.success());
        let at_rest = requests(&vm);
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert_eq!(requests(&vm), at_rest, "a paused disk does nothing");
        assert_eq!(vm.status()["state"], "paused");
        assert_eq!(vm.status()["vcpus"][0]["state"], "paused");
        assert!(vm.ask(&["resume"]).status.success());
        assert_eq!(vm.status()["state"], "running");
        std::thread::sleep(std::time::Duration::from_millis(20));
        busy += u64::from(requests(&vm) > at_rest);
    }
    assert!(busy > 0, "it was paused while it worked");
    vm.expect("CHURNED\r\n");
    vm.type_line("");
    vm.end().assert_all_done();
}

/// Linux's own driver on what raw images with one queue do not show: two queues, discards, zeroes, partitions.
#[test]
fn partitions_of_one_disk_are_files_of_their_own_and_every_request_reaches_them() {
    let directory = host::directory();
    let boot = host::empty_disk(directory.path(), "boot.img", 8);
    let data = host::empty_disk(directory.path(), "data.img", 32);
    let disk =
        format!("partition=boot:{}:ro,partition=data:{},serial=composite-1", boot.display(), data.display());
    let churn = "probe disk-churn /dev/vda2 --seed 8 --bytes 33554432 --depth 32 --direct --operations 3000";
    let script = format!(
        "set -e; ls /sys/block/vda/mq | wc -l; cat /sys/block/vda/serial; echo; \
         cat /sys/block/vda/queue/write_cache; {churn}; echo through; \
         echo 'write through' > /sys/block/vda/queue/write_cache; cat /sys/block/vda/queue/write_cache; \
         probe disk-fill /dev/vda2 --seed 9 --bytes 4194304 --depth 32 --direct; \
         probe disk-verify /dev/vda2 --seed 9 --bytes 4194304 --depth 32; echo ALL DONE"
    );
    let ended = Vm::start_devices(Kernel::Debian612, &["--cpus", "2", "--disk", &disk], &script).end();
    ended.assert_all_done();
    ended.assert_console("2\r\ncomposite-1\r\nwrite back\r\n");
    ended.assert_console("through\r\nwrite through\r\n");
    ended.assert_console("verified 1024 blocks\r\n");
}

/// mkfs, files and random requests on a qcow2 image over a base; a reboot, then a kill in the middle of more.
#[test]
fn a_qcow2_on_a_shared_base_keeps_what_was_flushed_through_a_reboot_and_a_kill() {
    let directory = host::directory();
    let base = host::empty_disk(directory.path(), "base.img", 64);
    let below = "--seed 9 --bytes 4194304 --depth 32";
    let fill = ["disk-fill", base.to_str().unwrap()].into_iter().chain(below.split(' ')).collect::<Vec<_>>();
    host::probe_ok(&fill);
    let before = std::fs::read(&base).unwrap();
    let disk = directory.path().join("disk.qcow2");
    let words = ["disk", "create", disk.to_str().unwrap(), "--backing", base.to_str().unwrap()];
    let made = nestling().args(words).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let arguments = ["--disk", disk.to_str().unwrap()];

    let script = format!(
        "set -e; probe disk-verify /dev/vda {below}; \
         probe disk-churn /dev/vda --seed 8 --bytes 16777216 --depth 32 --direct --operations 2000; \
         probe disk-fill {DISK}; probe disk-batch {BATCH} --operations 2000; \
         mkfs.ext4 -q /dev/vda; mount /dev/vda /mnt; probe disk-fill {FILE} --fsync; probe file-check /mnt; \
         umount /mnt; echo ALL DONE"
    );
    let written = Vm::start_devices(Kernel::Debian61, &arguments, &script).end();
    written.assert_all_done();
    written.assert_console("verified 1024 blocks\r\n");
    let checked = qcow2::check(&disk);
    println!("after power-off: {checked:?}");
    assert!(checked.data >= 256 && checked.leaked == 0, "{checked:?}");

    let more = "/mnt/more --seed 11 --bytes 8388608 --depth 32 --random";
    let script = format!(
        "set -e; mount /dev/vda /mnt; probe disk-verify {FILE}; probe disk-fill {more} --fsync; echo FLUSHED; \
         while :; do dd if=/dev/zero of=/mnt/x bs=1M count=16; rm /mnt/x; done"
    );
    let vm = Vm::start_devices(Kernel::Debian61, &arguments, &script);
    vm.expect("FLUSHED\r\n");
    vm.expect("records out");
    let said = vm.kill();
    assert!(said.contains("verified 4096 blocks\r\n"), "{said}");
    println!("after a kill: {:?}", qcow2::check(&disk));

    // Mounting it replays the journal.
    let script = format!(
        "set -e; mount /dev/vda /mnt; probe disk-verify {FILE}; probe disk-verify {more}; umount /mnt; echo ALL DONE"
    );
    let read = Vm::start_devices(Kernel::Debian61, &arguments, &script).end();
    read.assert_all_done();
    read.assert_console("verified 4096 blocks\r\n");
    read.assert_console("verified 2048 blocks\r\n");
    println!("after that: {:?}", qcow2::check(&disk));
    assert!(std::fs::read(&base).unwrap() == before, "nothing is written to a base");
}

/// A queue for each vCPU, and both at work.
#[test]
fn two_vcpus_with_a_queue_each_cost_no_exit() {
    let directory = host::directory();
    let disk = host::empty_disk(directory.path(), "disk.img", 16);
    let both = |operations: u32| {
        let batch = format!("probe disk-batch {BATCH} --operations {operations}");
        format!("taskset 1 {batch} & taskset 2 {batch}; wait %1")
    };
    let script = format!(
        "set -e; stty -echo; ls /sys/block/vda/mq | wc -l; probe disk-fill {DISK} --fsync; {}; echo WARM; read line; \
         {}; echo STEADY; read line; probe irqs; echo ALL DONE",
        both(100),
        both(2000)
    );
    let arguments = ["--cpus", "2", "--disk", disk.to_str().unwrap()];
    let mut vm = Vm::start_devices(Kernel::Debian61, &arguments, &script);
    vm.expect("WARM\r\n");
    let steady = Steady::begin(&vm);
    vm.type_line("");
    vm.expect("STEADY\r\n");
    let delta = steady.end(&vm, "2 times 2,000 operations on a disk with two queues, 32 at a time");
    vm.type_line("");
    let ended = vm.end();
    ended.assert_all_done();
    ended.assert_console("2\r\n");
    delta.assert_no_exits();
    print_per_request(&delta, 4000, &ended.console);
}

/// Interrupts and doorbells for each request, which must be fewer than one.
#[track_caller]
fn print_per_request(delta: &Delta, at_least: u64, console: &str) {
    let disk = delta.device("virtio-blk");
    let requests = disk.counter("reads") + disk.counter("writes") + disk.counter("flushes");
    assert!(requests >= at_least, "the guest made only {requests} requests:\n{console}");
    for name in ["interrupts", "notifications"] {
        let each = disk.counter(name) as f64 / requests as f64;
        println!("  {requests} requests, {each:.3} {name} each");
        assert!(each < 1.0, "EVENT_IDX and batches leave {each:.3} {name} for each request");
    }
}
