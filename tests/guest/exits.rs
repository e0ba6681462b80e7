//! The steady state costs no exit to user space.

use serde_json::Value;

use super::vm::{Kernel, Vm, numbered_disk};

fn disk_counter(status: &Value, name: &str) -> u64 {
    let devices = status["devices"].as_array().unwrap();
    let disk = devices.iter().find(|device| device["kind"] == "virtio-blk").unwrap();
    disk["counters"][name].as_u64().unwrap()
}

#[test]
fn a_thousand_reads_and_a_console_line_cost_no_exit() {
    let directory = tempfile::tempdir().unwrap();
    let disk = numbered_disk(directory.path(), 9000);
    // Without read-ahead each page is a request of its own; the first read is the driver warming up.
    let script = "stty -echo; echo 0 > /sys/block/vda/queue/read_ahead_kb; \
                  dd if=/dev/vda of=/dev/null bs=4096 count=1 2>/dev/null; \
                  echo before; read line; \
                  dd if=/dev/vda of=/dev/null bs=4096 skip=1 count=1000 2>/dev/null; \
                  echo after; read line";
    for kernel in Kernel::ALL {
        let mut vm = Vm::start_script(kernel, &["--disk", disk.to_str().unwrap()], script);
        vm.expect("before");
        let before = vm.status();
        vm.type_line("");
        vm.expect("after");
        let after = vm.status();
        let reads = disk_counter(&after, "reads") - disk_counter(&before, "reads");
        println!("{kernel:?}: {reads} reads; exits before {} after {}", before["exits"], after["exits"]);
        assert!(reads >= 1000, "the guest made only {reads} reads");
        assert_eq!(before["exits_total"], after["exits_total"], "{} {}", before["exits"], after["exits"]);
        vm.type_line("");
        vm.end().assert_code(0);
    }
}
