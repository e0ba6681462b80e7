//! Linux guests, booted by the `nestling` command on a CPU with VT-x.
//!
//! These tests run where `/dev/kvm` has `vmx` behind it: on this machine if it is one, else in the emulated node
//! (`make test` arranges it). They boot one guest at a time.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

#[path = "guest/agent.rs"]
mod agent;
#[path = "guest/host.rs"]
mod host;
#[path = "guest/qcow2.rs"]
mod qcow2;
#[path = "guest/steady.rs"]
mod steady;
#[path = "guest/vm.rs"]
mod vm;

#[path = "guest/boot.rs"]
mod boot;
#[path = "guest/console.rs"]
mod console;
#[path = "guest/devices.rs"]
mod devices;
#[path = "guest/drivers.rs"]
mod drivers;
#[path = "guest/endings.rs"]
mod endings;
#[path = "guest/exits.rs"]
mod exits;
#[path = "guest/memory.rs"]
mod memory;
#[path = "guest/net.rs"]
mod net;
#[path = "guest/platform.rs"]
mod platform;
#[path = "guest/resize.rs"]
mod resize;
#[path = "guest/share.rs"]
mod share;
#[path = "guest/storage.rs"]
mod storage;
#[path = "guest/vhost.rs"]
mod vhost;
#[path = "guest/vsock.rs"]
mod vsock;

/// What every other test stands on: these guests run on true VT-x.
#[test]
fn a_cpu_with_vmx_and_kvm_intel_are_underneath() {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap();
    let has = |flag: &str| flags.split_whitespace().any(|word| word == flag);
    assert!(has("vmx") || has("svm"), "no vmx and no svm in {flags}");
    let module = if has("vmx") { "/sys/module/kvm_intel" } else { "/sys/module/kvm_amd" };
    assert!(std::path::Path::new(module).exists(), "{module} is not there");
    println!("vmx: {}, kvm module: {module}", has("vmx"));
}
