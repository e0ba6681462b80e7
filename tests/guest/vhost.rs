//! Queues that the node's kernel serves.

use super::host;
use super::steady::Steady;
use super::vm::{Kernel, Vm, assets};

/// 16 MiB each way.
const FLOW: [&str; 6] = ["--bytes", "4194304", "--seed", "3", "--connections", "4"];

#[test]
fn vhost_vsock_carries_streams_both_ways_at_no_exit() {
    let script = "set -e; stty -echo; probe load vmw_vsock_virtio_transport; \
                  probe vsock-echo --port 1024 --count 8 & echo READY; read line; \
                  probe vsock-connect --port 2048 --bytes 1000000 --seed 4 --connections 4; wait; echo ALL DONE";
    let mut vm = Vm::start_devices(Kernel::Debian61, &["--vsock", "cid=7,vhost=true"], script);
    vm.expect("READY\r\n");
    vm.expect("listening=");
    // The first connections are the drivers' warming up.
    let connect = [&["vsock-connect", "--cid", "7", "--port", "1024"], &FLOW[..]].concat();
    host::probe_ok(&connect);
    let steady = Steady::begin(&vm);
    let said = host::probe_ok(&connect);
    let delta = steady.end(&vm, "16 MiB each way over vhost-vsock");
    println!("  {}", said.trim());
    delta.assert_no_exits();
    assert_eq!(delta.device("vhost-vsock").counter("notifications"), 0, "the kernel takes them");

    // And the other way round; a pause loses nothing of it.
    assert!(vm.ask(&["pause"]).status.success());
    let server = host::serve(&["vsock-echo", "--port", "2048", "--count", "4"]);
    assert!(vm.ask(&["resume"]).status.success());
    vm.type_line("");
    let ended = vm.end();
    ended.assert_all_done();
    ended.assert_console("exchanged connections=4 bytes=4000000 ");
    assert!(server.end().contains("echoed connections=4 "));
}

#[test]
fn a_vsock_address_that_is_taken_is_refused() {
    let first = Vm::start_devices(Kernel::Nestling, &["--vsock", "cid=9,vhost=true"], "echo UP; read line");
    first.expect("UP\r\n");
    let second = Vm::start_devices(Kernel::Nestling, &["--vsock", "cid=9,vhost=true"], "true").end();
    assert_eq!(second.code, Some(201));
    assert!(
        second.log.contains("the vsock cid 9 is taken: another VM on this node has it"),
        "{}",
        second.log
    );
}

/// What the kernel finds broken it writes to an eventfd and no more: it has to become the device's own end. A network
/// namespace of this test's own, as below.
#[test]
fn a_ring_that_the_kernel_finds_broken_asks_for_a_reset_and_works_after_it() {
    let work = || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let payload = assets().join("bin/nestling-payload");
        let ended = Vm::start(&[
            "--kernel",
            payload.to_str().unwrap(),
            "--cmdline-replace",
            "scenario=broken-net",
            "--console",
            "serial",
            "--memory",
            "64M",
            "--net",
            "tap=tap0,vhost=on",
        ])
        .end();
        assert_eq!(ended.code, Some(0), "{}{}", ended.console, ended.log);
        let said = |start: &str| ended.console.lines().filter(|line| line.starts_with(start)).count();
        assert_eq!(said("case "), 8, "{}", ended.console);
        for line in ended.console.lines() {
            let ok = line.strip_prefix("case ").is_none_or(|case| case.ends_with(" needs-reset"))
                && line.strip_prefix("after ").is_none_or(|case| case.ends_with(" Ok(0)"));
            assert!(ok, "{line}\n{}", ended.console);
        }
        assert!(ended.console.contains("after the storm Ok(0)"), "{}", ended.console);
        assert!(ended.log.contains("vhost-net found a virtqueue broken"), "{}", ended.log);
        let complaints = ended.log.matches("waits to be reset").count();
        assert!(complaints <= 5, "a guest can fill the log:\n{}", ended.log);
    };
    std::thread::spawn(work).join().unwrap();
}

/// The tap and the addresses are in a network namespace of this test's own: those a thread makes are its children's too.
#[test]
fn vhost_net_carries_tcp_both_ways_at_no_exit() {
    let work = || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        tcp_over_vhost_net();
    };
    std::thread::spawn(work).join().unwrap();
}

fn tcp_over_vhost_net() {
    let script = "set -e; stty -echo; probe load virtio_net; ip addr add 10.77.0.2/24 dev eth0; ip link set eth0 up; \
                  probe tcp-echo --listen 10.77.0.2:5000 --count 12 & echo READY; read line; wait; \
                  ip link set eth0 down; echo ALL DONE";
    let mut vm = Vm::start_devices(Kernel::Debian61, &["--net", "tap=tap0,queues=2,vhost=on"], script);
    vm.expect("READY\r\n");
    vm.expect("listening=");
    assert!(host::busybox(&["ip", "addr", "add", "10.77.0.1/24", "dev", "tap0"]).status().unwrap().success());
    let connect = [&["tcp-connect", "10.77.0.2:5000"], &FLOW[..]].concat();
    host::probe_ok(&connect);
    assert!(vm.ask(&["pause"]).status.success());
    assert!(vm.ask(&["resume"]).status.success());
    let steady = Steady::begin(&vm);
    let said = host::probe_ok(&connect);
    let delta = steady.end(&vm, "16 MiB each way over vhost-net");
    println!("  {}", said.trim());
    delta.assert_no_exits();
    let net = delta.device("virtio-net");
    assert!(!net.counters.contains_key("rx_packets"), "nobody counts them: {:?}", net.counters);

    // The cable is pulled and put back, and the kernel goes on where it was.
    assert!(vm.ask(&["link", "0", "down"]).status.success());
    let net_backend = |vm: &Vm| {
        let status = vm.status();
        let devices = status["devices"].as_array().unwrap();
        let net = devices.iter().find(|device| device["kind"] == "virtio-net").unwrap();
        net["backend"].as_str().unwrap().to_owned()
    };
    let pulled = net_backend(&vm);
    assert!(pulled.contains("counts no frames") && pulled.ends_with("link down"), "{pulled}");
    assert!(vm.ask(&["link", "0", "up"]).status.success());
    host::probe_ok(&connect);
    vm.type_line("");
    vm.end().assert_all_done();
}
