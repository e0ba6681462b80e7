//! Disks that become larger while Linux uses them.

use std::process::Output;

use super::vm::{Kernel, Vm, nestling};
use super::{host, qcow2};

fn refusal(output: &Output) -> String {
    assert!(!output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A raw image with a mounted file system, and a qcow2 image that is written where it was not there before.
#[test]
fn a_disk_grows_while_it_is_in_use_and_linux_sees_it() {
    let directory = host::directory();
    let raw = host::empty_disk(directory.path(), "raw.img", 32);
    let grown = directory.path().join("grown.qcow2");
    let made = nestling().args(["disk", "create", grown.to_str().unwrap(), "16M"]).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    let second = format!("path={},serial=second", grown.display());
    let arguments = ["--disk", raw.to_str().unwrap(), "--disk", &second];
    let until = |disk: &str, sectors: u64| {
        format!("until [ $(cat /sys/block/{disk}/size) = {sectors} ]; do usleep 20000; done")
    };
    let script = format!(
        "set -e; mkfs.ext4 -q /dev/vda; mount /dev/vda /mnt; cat /sys/block/vd?/size; echo MOUNTED; {}; echo VDA; {}; \
         echo VDB; probe disk-fill /mnt/file --seed 4 --bytes 4194304 --depth 8 --random --fsync; \
         probe disk-fill /dev/vdb --seed 3 --bytes 50331648 --depth 32 --direct --fsync; \
         probe disk-verify /dev/vdb --seed 3 --bytes 50331648 --depth 32; \
         probe disk-verify /mnt/file --seed 4 --bytes 4194304 --depth 8; umount /mnt; echo ALL DONE",
        until("vda", 64 << 11),
        until("vdb", 48 << 11),
    );
    let vm = Vm::start_devices(Kernel::Debian61, &arguments, &script);
    vm.expect("MOUNTED\r\n");
    assert!(refusal(&vm.ask(&["disk", "resize", "vda", "1M"])).contains("does not become smaller"));
    assert!(refusal(&vm.ask(&["disk", "resize", "vdc", "1G"])).contains("vda, vdb"));
    assert!(vm.ask(&["disk", "resize", "vda", "64M"]).status.success());
    vm.expect("VDA\r\n");
    assert!(vm.ask(&["disk", "resize", "second", "48M"]).status.success());
    vm.expect("VDB\r\n");
    let ended = vm.end();
    ended.assert_all_done();
    ended.assert_console("65536\r\n32768\r\nMOUNTED\r\n");
    ended.assert_console("verified 12288 blocks\r\n");
    assert_eq!(raw.metadata().unwrap().len(), 64 << 20);
    let checked = qcow2::check(&grown);
    assert_eq!((checked.data, checked.leaked), (48 << 4, 0), "48 MiB in clusters of 64 KiB");
}
