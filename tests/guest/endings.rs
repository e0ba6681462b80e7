//! Every way a guest ends has its own exit code and says why.

use super::vm::{Kernel, Vm};

#[test]
fn a_power_off_is_a_success_and_the_last_status_says_stopped() {
    let ended = Vm::start_script(Kernel::Debian61, &[], "true").end();
    ended.assert_code(0);
    assert_eq!(ended.status["state"], "stopped");
    assert_eq!(ended.status["reason"]["kind"], "power-off");
    assert_eq!(ended.status["exit_code"], 0);
}

#[test]
fn a_reboot_is_a_reset() {
    let ended = Vm::start_script(Kernel::Debian61, &["--cpus", "2"], "reboot -f").end();
    ended.assert_code(204);
    assert_eq!(ended.status["reason"]["kind"], "reset");
}

#[test]
fn a_panic_is_told_with_the_kernels_words_and_the_console() {
    let ended = Vm::start_script(Kernel::Debian61, &["--cpus", "2"], "echo c > /proc/sysrq-trigger").end();
    ended.assert_code(203);
    let reason = ended.status["reason"]["message"].as_str().unwrap().to_owned();
    assert_eq!(reason, "Kernel panic - not syncing: sysrq triggered crash");
    assert!(ended.log.contains("sysrq triggered crash"), "{}", ended.log);
}

#[test]
fn a_panic_before_there_is_a_console_is_read_from_guest_memory() {
    let kernel = Kernel::Debian61.vmlinux();
    let ended = Vm::start(&["--kernel", kernel.to_str().unwrap()]).end();
    ended.assert_code(203);
    assert_eq!(ended.console, "", "a stock kernel has no console before its modules are loaded");
    assert!(ended.log.contains("VFS: Unable to mount root fs"), "{}", ended.log);
    assert!(ended.log.contains("Please append a correct"), "no kernel log in:\n{}", ended.log);
}

#[test]
fn a_triple_fault_is_named() {
    let arguments = ["--cmdline", "reboot=t"];
    let ended = Vm::start_script(Kernel::Debian61, &arguments, "reboot -f").end();
    ended.assert_code(205);
    assert_eq!(ended.status["reason"]["kind"], "triple-fault");
}

#[test]
fn sigterm_stops_a_running_guest() {
    let vm = Vm::start_script(Kernel::Nestling, &["--cpus", "4"], "echo up; while :; do :; done");
    vm.expect("up");
    let signalled = std::process::Command::new("/bin/kill").arg(vm.pid().to_string()).status();
    if !signalled.is_ok_and(|status| status.success()) {
        // SAFETY: the child has not been waited for, so the pid is its.
        unsafe { libc::kill(vm.pid(), libc::SIGTERM) };
    }
    let ended = vm.end();
    ended.assert_code(143);
    assert_eq!(ended.status["reason"]["kind"], "stopped");
}

#[test]
fn a_stop_request_stops_a_running_guest_and_its_socket_is_gone() {
    let vm = Vm::start_script(Kernel::Nestling, &[], "echo up; sleep 1000");
    vm.expect("up");
    let socket = vm.socket();
    assert!(vm.ask(&["stop"]).status.success());
    vm.end().assert_code(143);
    assert!(!socket.exists());
}
