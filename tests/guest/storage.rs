//! What is on a disk stays there: through a reboot, and when the VMM is killed after a flush.

use super::host;
use super::steady::Steady;
use super::vm::{Kernel, Vm};

/// The blocks of these tests: written 32 at a time in a random order.
const FILE: &str = "/mnt/file --seed 5 --bytes 16777216 --depth 32 --random";
/// The same on the bare disk, past the guest's page cache, so that 32 requests are under way at the device.
const DISK: &str = "/dev/vda --seed 6 --bytes 8388608 --depth 32 --random --direct";

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
fn ten_thousand_verified_operations_at_queue_depth_32_cost_no_exit() {
    let directory = host::directory();
    let disk = host::empty_disk(directory.path(), "disk.img", 32);
    let churn =
        "probe disk-churn /dev/vda --seed 7 --bytes 33554432 --depth 32 --direct --no-discard --operations";
    let script = format!(
        "set -e; stty -echo; {churn} 100; echo WARM; read line; {churn} 10000; probe irqs; echo STEADY; read line; \
         echo ALL DONE"
    );
    let mut vm = Vm::start_devices(Kernel::Debian61, &["--disk", disk.to_str().unwrap()], &script);
    vm.expect("WARM\r\n");
    let steady = Steady::begin(&vm);
    vm.type_line("");
    vm.expect("STEADY\r\n");
    let delta = steady.end(&vm, "10,000 operations on a disk");
    vm.type_line("");
    let ended = vm.end();
    ended.assert_all_done();
    delta.assert_no_exits();
    let disk = delta.device("virtio-blk");
    let (requests, interrupts) = (
        disk.counter("reads") + disk.counter("writes") + disk.counter("flushes"),
        disk.counter("interrupts"),
    );
    println!("  {requests} requests, {:.3} interrupts each", interrupts as f64 / requests as f64);
    assert!(requests >= 10_000, "the guest made only {requests} requests:\n{}", ended.console);
    assert!(interrupts <= requests, "{interrupts} interrupts for {requests} requests");
}
