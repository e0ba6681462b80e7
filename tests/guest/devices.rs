//! The virtio devices, driven by stock drivers.

use std::fs;

use super::vm::{Kernel, Vm, numbered_disk};

#[test]
fn what_the_guest_writes_to_its_disk_is_on_the_hosts_file() {
    let directory = tempfile::tempdir().unwrap();
    let disk = numbered_disk(directory.path(), 2048);
    let script = "cat /sys/block/vda/size; echo $(cat /sys/block/vda/serial); \
                  dd if=/dev/vda bs=512 skip=7 count=1 2>/dev/null | od -An -tu4 -N8; \
                  echo written-by-the-guest | dd of=/dev/vda bs=512 seek=9 conv=fsync 2>/dev/null";
    let ended = Vm::start_script(Kernel::Debian61, &["--disk", disk.to_str().unwrap()], script).end();
    ended.assert_code(0);
    ended.assert_console("2048\r\nnestling-0\r\n");
    ended.assert_console("          7          7");
    let after = fs::read(&disk).unwrap();
    assert!(after[9 * 512..].starts_with(b"written-by-the-guest\n"));
    assert_eq!(after.len(), 2048 * 512);
    assert_eq!(after[10 * 512..10 * 512 + 4], 10_u32.to_le_bytes());
}

#[test]
fn a_readonly_disk_cannot_be_written() {
    let directory = tempfile::tempdir().unwrap();
    let disk = numbered_disk(directory.path(), 64);
    let before = fs::read(&disk).unwrap();
    let argument = format!("path={},readonly=true", disk.display());
    let script = "cat /sys/block/vda/ro; dd if=/dev/zero of=/dev/vda bs=512 count=1 && echo WRITTEN";
    let ended = Vm::start_script(Kernel::Debian612, &["--disk", &argument], script).end();
    ended.assert_code(0);
    ended.assert_console("1\r\n");
    assert!(!ended.console.contains("WRITTEN"), "{}", ended.console);
    assert_eq!(fs::read(&disk).unwrap(), before);
}

#[test]
fn a_disk_is_one_vms_alone() {
    let directory = tempfile::tempdir().unwrap();
    let disk = numbered_disk(directory.path(), 64);
    let arguments = ["--disk", disk.to_str().unwrap()];
    let mut first = Vm::start_script(Kernel::Nestling, &arguments, "echo up; read line");
    first.expect("up");
    let second = Vm::start_script(Kernel::Nestling, &arguments, "true").end();
    second.assert_code(201);
    assert!(second.log.contains("in use by another VM"), "{}", second.log);
    assert!(second.log.contains(disk.to_str().unwrap()), "{}", second.log);
    first.type_line("");
    first.end().assert_code(0);
}

#[test]
fn drivers_can_be_unbound_and_bound_again() {
    let directory = tempfile::tempdir().unwrap();
    let disk = numbered_disk(directory.path(), 64);
    let script = "cd /sys/bus/virtio/drivers/virtio_blk; d=$(ls -d virtio*); \
                  for i in 1 2 3; do echo $d > unbind; ls /dev/vda; echo $d > bind; \
                  dd if=/dev/vda bs=512 skip=$i count=1 2>/dev/null | od -An -tu4 -N4; done; \
                  cd ../virtio_rng; d=$(ls -d virtio*); echo $d > unbind; echo $d > bind; \
                  echo random: $(head -c 16 /dev/hwrng | wc -c)";
    let ended = Vm::start_script(Kernel::Debian61, &["--disk", disk.to_str().unwrap()], script).end();
    ended.assert_code(0);
    for number in 1..=3 {
        ended.assert_console(&format!("          {number}\r\n"));
    }
    ended.assert_console("random: 16");
}

#[test]
fn random_bytes_come_from_the_host() {
    let script = "cat /sys/class/misc/hw_random/rng_current; for i in 1 2; do head -c 8 /dev/hwrng | od -An -tx8; done";
    let ended = Vm::start_script(Kernel::Debian61, &[], script).end();
    ended.assert_code(0);
    ended.assert_console("virtio_rng.0");
    let numbers: Vec<&str> =
        ended.console.lines().filter(|line| line.trim().len() == 16 && !line.contains('_')).collect();
    assert_eq!(numbers.len(), 2, "{}", ended.console);
    assert_ne!(numbers[0], numbers[1]);
}

#[test]
fn the_console_takes_input_and_the_stages_are_told() {
    let script = "stty -echo; echo ready; read line; echo got:$line";
    let mut vm = Vm::start_script(Kernel::Debian61, &[], script);
    vm.expect("ready\r\n");
    let status = vm.await_status("init", |status| status["stages"].as_array().unwrap().len() == 3);
    assert_eq!(status["state"], "running");
    let stages: Vec<_> =
        status["stages"].as_array().unwrap().iter().map(|s| s["stage"].as_str().unwrap()).collect();
    assert_eq!(stages, ["entered", "kernel", "init"]);
    assert_eq!(vm.ask(&["status", "--probe", "ready"]).status.code(), Some(0));
    vm.type_line("hello guest");
    let ended = vm.end();
    ended.assert_code(0);
    ended.assert_console("got:hello guest");
}

#[test]
fn a_uart_is_there_on_request() {
    let script = "cat /sys/class/tty/console/active; echo ready; read line; echo got:$line";
    let mut vm = Vm::start_script(Kernel::Debian61, &["--console", "serial"], script);
    vm.expect("ready");
    vm.type_line("over the wire");
    let ended = vm.end();
    ended.assert_code(0);
    ended.assert_console("ttyS0");
    ended.assert_console("got:over the wire");
}
