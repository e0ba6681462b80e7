//! A network interface over a tap, with stock drivers: the host's end is in a network namespace of each test's own.

use nix::sched::{CloneFlags, unshare};

use super::host;
use super::steady::Steady;
use super::vm::{Kernel, Vm};

const HOST: &str = "10.77.0.1";
/// What the guest does first: it has an address and says so.
const UP: &str = "set -e; stty -echo; probe load virtio_net; ip addr add 10.77.0.2/24 dev eth0; \
                  ip link set eth0 up; cd /sys/class/net/eth0; \
                  echo FEATURES $(cat device/features) MAC $(cat address) MTU $(cat mtu); cd /; echo UP; read line;";
/// One stream's bytes, each way.
const STREAM: [&str; 4] = ["--bytes", "33554432", "--seed", "7"];

/// Runs `test` on a thread in a network namespace of its own, and so are the processes it starts.
fn in_namespace(test: impl FnOnce() + Send) {
    std::thread::scope(|threads| {
        let ran = threads.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            test();
        });
        if let Err(panic) = ran.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

#[track_caller]
fn ip(arguments: &[&str]) -> String {
    let output = host::busybox(&[&["ip"], arguments].concat()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "ip {arguments:?}: {said}{}", String::from_utf8_lossy(&output.stderr));
    said
}

/// The bits of the features that were negotiated, as sysfs shows them: the lowest first.
fn features(vm: &Vm) -> Vec<bool> {
    let console = vm.said();
    let bits = console.split("FEATURES ").nth(1).unwrap().split(' ').next().unwrap();
    assert_eq!(bits.len(), 64, "{console}");
    bits.chars().map(|bit| bit == '1').collect()
}

fn net(status: &serde_json::Value) -> serde_json::Value {
    let devices = status["devices"].as_array().unwrap();
    devices.iter().find(|device| device["kind"] == "virtio-net").unwrap().clone()
}

#[test]
fn packets_cost_no_exit_streams_arrive_and_the_cable_is_seen() {
    in_namespace(|| {
        let script = format!(
            "{UP} probe udp-ping {HOST}:9000 --count 20; echo WARM; read line; \
             probe udp-ping {HOST}:9000 --count 5000 --size 1000; echo PINGED; read line; \
             probe tcp-send {HOST}:9001 --bytes 33554432 --seed 7; echo SENT; read line; \
             probe tcp-recv --listen 10.77.0.2:9002 --bytes 33554432 --seed 7; echo RECEIVED; read line; \
             for change in down up; do sleep 1; echo CARRIER $(cat /sys/class/net/eth0/carrier); read line; done; \
             ip link set eth0 promisc on; ip link set eth0 promisc off; echo PROMISCUOUS; read line; \
             ip link set eth0 down; rmmod virtio_net; probe load virtio_net; ip addr add 10.77.0.2/24 dev eth0; \
             ip link set eth0 up; probe udp-ping {HOST}:9000 --count 5; echo ALL DONE"
        );
        let arguments = ["--net", "tap,mac=02:00:00:00:00:77,mtu=1400"];
        let mut vm = Vm::start_devices(Kernel::Debian61, &arguments, &script);
        vm.expect("UP\r\n");
        assert!(vm.said().contains("MAC 02:00:00:00:00:77 MTU 1400\r\n"), "{}", vm.said());
        let negotiated = features(&vm);
        // CSUM, GUEST_CSUM, CTRL_GUEST_OFFLOADS, MTU, MAC, GUEST_TSO4, HOST_TSO4, MRG_RXBUF, STATUS, CTRL_VQ, CTRL_RX, CTRL_VLAN.
        for bit in [0, 1, 2, 3, 5, 7, 11, 15, 16, 17, 18, 19] {
            assert!(negotiated[bit], "feature {bit} of {negotiated:?}");
        }
        ip(&["addr", "add", "10.77.0.1/24", "dev", "nestling0"]);
        let _echo = host::serve(&["udp-echo", "--listen", "10.77.0.1:9000"]);

        // A vector whose CPU was chosen anew is rewritten at its next interrupt: once.
        vm.type_line("");
        vm.expect("WARM\r\n");
        let steady = Steady::begin(&vm);
        vm.type_line("");
        vm.expect("PINGED\r\n");
        let delta = steady.end(&vm, "10,000 packets, one at a time");
        delta.assert_no_exits();
        let device = delta.device("virtio-net");
        let (sent, received) = (device.counter("tx_packets"), device.counter("rx_packets"));
        assert!(sent >= 5000 && received >= 5000, "{sent} sent, {received} received");
        let per_packet = |name: &str| device.counter(name) as f64 / (sent + received) as f64;
        println!(
            "per packet: {:.2} notifications, {:.2} interrupts",
            per_packet("notifications"),
            per_packet("interrupts")
        );

        let taker = host::serve(&[&["tcp-recv", "--listen", "10.77.0.1:9001"][..], &STREAM].concat());
        let steady = Steady::begin(&vm);
        vm.type_line("");
        vm.expect("SENT\r\n");
        assert!(taker.end().contains("bytes=33554432 "));
        vm.type_line("");
        vm.expect("listening=");
        host::probe_ok(&[&["tcp-send", "10.77.0.2:9002"][..], &STREAM].concat());
        vm.expect("RECEIVED\r\n");
        let delta = steady.end(&vm, "32 MiB each way by TCP");
        delta.assert_no_exits();
        let device = delta.device("virtio-net");
        assert!(device.counter("tx_bytes") > 32 << 20 && device.counter("rx_bytes") > 32 << 20);
        assert!(
            device.counter("tx_packets") < 15_000,
            "segments larger than the MTU: {} frames",
            device.counter("tx_packets")
        );

        assert!(vm.ask(&["link", "0", "down"]).status.success());
        assert!(net(&vm.status())["backend"].as_str().unwrap().ends_with("link down"));
        assert!(!vm.ask(&["link", "1", "down"]).status.success(), "there is one interface");
        vm.type_line("");
        vm.expect("CARRIER 0\r\n");
        assert!(vm.ask(&["link", "0", "up"]).status.success());
        vm.type_line("");
        vm.expect("CARRIER 1\r\n");

        let commands = || net(&vm.status())["counters"]["commands"].as_u64().unwrap();
        let before = commands();
        vm.type_line("");
        vm.expect("PROMISCUOUS\r\n");
        assert!(net(&vm.status())["counters"]["commands"].as_u64().unwrap() >= before + 2);
        vm.type_line("");
        let status = net(&vm.status());
        println!("{status:#}");
        vm.end().assert_all_done();
    });
}

#[test]
fn two_vcpus_have_a_queue_pair_each() {
    in_namespace(|| {
        let script = format!(
            "{UP} for port in 1 2 3 4; do probe tcp-connect {HOST}:9000 --bytes 4194304 --seed $port & done; wait; \
             probe irqs; echo ALL DONE"
        );
        let arguments = ["--cpus", "2", "--net", "tap=pair,queues=2"];
        let mut vm = Vm::start_devices(Kernel::Debian61, &arguments, &script);
        vm.expect("UP\r\n");
        assert!(features(&vm)[22], "MQ");
        ip(&["addr", "add", "10.77.0.1/24", "dev", "pair"]);
        let _echo = host::serve(&["tcp-echo", "--listen", "10.77.0.1:9000"]);
        assert!(net(&vm.status())["backend"].as_str().unwrap().starts_with("tap pair, 2 queue pairs, "));
        vm.type_line("");
        let ended = vm.end();
        ended.assert_all_done();
        println!("{}", ended.console);
        for pair in 0..2 {
            let name = format!("-input.{pair}=");
            let count = ended.console.split(&name).nth(1).unwrap().split('\r').next().unwrap();
            assert_ne!(count, "0", "queue pair {pair} has received nothing");
        }
        assert_eq!(ended.console.matches("exchanged connections=1 bytes=4194304 ").count(), 4);
    });
}
