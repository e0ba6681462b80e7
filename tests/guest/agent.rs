//! The agent in the guest says how the workload ended, and the exit code passes it on.

use super::vm::{Ended, Kernel, Vm};

fn run(script: &str) -> Ended {
    Vm::start_script(Kernel::Nestling, &["--agent", "on"], script).end()
}

#[test]
fn the_workload_s_end_is_the_exit_code() {
    for (script, code, kind) in [
        ("exit 7", 7, "workload-exited"),
        ("kill -SEGV $$", 139, "workload-killed"),
        ("true", 0, "workload-exited"),
        ("exit 250", 125, "workload-exited"),
        ("exec /missing", 127, "workload-exited"),
        // It ends before its workload does.
        ("reboot -f", 204, "reset"),
        ("poweroff -f", 0, "power-off"),
    ] {
        let ended = run(script);
        ended.assert_code(code);
        assert_eq!(ended.status["reason"]["kind"], kind, "{script}: {:#}", ended.status);
        assert_eq!(ended.status["exit_code"], code);
        let stages = ended.status["stages"].to_string();
        assert!(stages.contains("agent"), "{script}: {stages}");
    }
}

#[test]
fn sigterm_reaches_the_workload_which_takes_its_time() {
    let on_term = "sync; sleep 2; echo saved; exit 0";
    let script = format!("trap '{on_term}' TERM; echo up; while :; do sleep 0.1; done");
    let vm = Vm::start_script(Kernel::Nestling, &["--agent", "on"], &script);
    vm.expect("up\r\n");
    terminate(&vm);
    let ended = vm.end();
    ended.assert_code(0);
    ended.assert_console("saved\r\n");
    assert_eq!(ended.status["state"], "stopped");
}

#[test]
fn a_workload_that_ignores_sigterm_is_killed_within_the_grace_period() {
    let script = "trap '' TERM; echo up; while :; do sleep 0.1; done";
    let vm = Vm::start_script(Kernel::Nestling, &["--agent", "on"], script);
    vm.expect("up\r\n");
    terminate(&vm);
    let ended = vm.end();
    ended.assert_code(137);
    assert_eq!(ended.status["reason"]["kind"], "workload-killed");
}

#[test]
fn a_guest_with_nothing_but_a_shell_stops_at_once() {
    let (kernel, initramfs) = (Kernel::Nestling.vmlinux(), Kernel::Nestling.initramfs());
    let images = ["--kernel", kernel.to_str().unwrap(), "--initrd", initramfs.to_str().unwrap()];
    let vm = Vm::start(&[&images[..], &["--agent", "on"]].concat());
    vm.expect("/ # ");
    let stop = vm.ask(&["stop"]);
    assert!(stop.status.success(), "{stop:?}");
    let ended = vm.end();
    ended.assert_code(143);
    assert_eq!(ended.status["reason"]["by"], "a request on the socket");
}

fn terminate(vm: &Vm) {
    // SAFETY: the child has not been waited for, so the pid is its.
    assert_eq!(unsafe { libc::kill(vm.pid(), libc::SIGTERM) }, 0);
}

#[test]
fn a_guest_without_vsock_has_no_agent_and_runs_all_the_same() {
    let ended = Vm::start_script(Kernel::Debian61, &["--agent", "on"], "echo here; exit 7").end();
    ended.assert_code(0);
    ended.assert_console("here");
    assert_eq!(ended.status["reason"]["kind"], "power-off");
}
