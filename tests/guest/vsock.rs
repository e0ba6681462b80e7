//! Streams between programs of a Linux guest and programs of the host.
//!
//! `NESTLING_VSOCK_MIB` is how much is echoed each way, 40 without it (which takes more than 10,000 packets); 256 takes
//! about 90 CPU-seconds in the emulated node.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::host::{self, probe_ok, serve};
use super::steady::Steady;
use super::vm::{Kernel, Vm};

const LOAD: &str = "set -e; stty -echo; probe load vmw_vsock_virtio_transport";

/// A guest with a vsock device at `vsock` in `directory`.
fn start(directory: &Path, script: &str) -> (Vm, PathBuf) {
    let path = directory.join("vsock");
    let device = format!("cid=52,path={}", path.display());
    let vm = Vm::start_devices(Kernel::Debian61, &["--vsock", &device], &format!("{LOAD}; {script}"));
    (vm, path)
}

fn behind(path: &Path, port: u32) -> String {
    format!("{}_{port}", path.display())
}

#[test]
fn bytes_are_echoed_both_ways_verified_and_without_an_exit() {
    let mib: u64 = std::env::var("NESTLING_VSOCK_MIB").map_or(40, |mib| mib.parse().unwrap());
    let bytes = (mib << 20).to_string();
    let directory = host::directory();
    let server = serve(&["unix-listen", &behind(&directory.path().join("vsock"), 1024), "--count", "2"]);
    let script = format!(
        "probe vsock-echo --port 52 & probe vsock-connect --port 1024 --bytes 100000 --seed 1; echo WARM; read line; \
         probe vsock-connect --port 1024 --bytes {bytes} --seed 2 --half-close; echo GUEST FIRST; read line; echo ALL DONE"
    );
    let (mut vm, path) = start(directory.path(), &script);
    vm.expect("WARM\r\n");
    vm.expect("listening=");
    let flow = ["--vsock-port", "52", "--half-close", "--seed", "3", "--bytes"];
    let to_guest =
        |bytes: &str| probe_ok(&[&["unix-connect", path.to_str().unwrap()], &flow[..], &[bytes]].concat());
    to_guest("100000");

    let steady = Steady::begin(&vm);
    vm.type_line("");
    vm.expect("GUEST FIRST\r\n");
    let first = steady.end(&vm, "an echo that the guest began");
    let steady = Steady::begin(&vm);
    print!("{}", to_guest(&bytes));
    let second = steady.end(&vm, "an echo that the host began");
    vm.type_line("");
    vm.end().assert_all_done();
    print!("{}", server.end());
    for delta in [&first, &second] {
        delta.assert_no_exits();
        let vsock = delta.device("virtio-vsock");
        let packets = vsock.counter("packets_to_guest") + vsock.counter("packets_to_host");
        let per_packet = |name: &str| vsock.counter(name) as f64 / packets as f64;
        println!(
            "  {packets} packets, {:.3} notifications and {:.3} interrupts each",
            per_packet("notifications"),
            per_packet("interrupts")
        );
        assert!(vsock.counter("bytes_to_guest") >= mib << 20 && vsock.counter("bytes_to_host") >= mib << 20);
        assert!(mib < 40 || packets >= 10_000, "only {packets} packets");
        assert!(vsock.counter("notifications") < packets && vsock.counter("interrupts") < packets);
    }
}

#[test]
fn a_thousand_connections_are_open_at_once_and_none_is_left() {
    let directory = host::directory();
    let listen = behind(&directory.path().join("vsock"), 1024);
    let server = serve(&["unix-listen", &listen, "--count", "1000"]);
    let script = "probe vsock-echo --port 52 --count 1000 & \
         probe vsock-connect --port 1024 --connections 1000 --bytes 5000 --seed 1 --half-close; wait; read line; echo ALL DONE";
    let (mut vm, path) = start(directory.path(), script);
    let said = server.end();
    assert!(said.contains("echoed connections=1000 peak=1000 bytes=5000000"), "{said}");

    let flow = ["--connections", "1000", "--bytes", "5000", "--seed", "7", "--half-close"];
    vm.expect("listening=");
    let to_guest = ["unix-connect", path.to_str().unwrap(), "--vsock-port", "52"];
    let said = probe_ok(&[&to_guest[..], &flow].concat());
    assert!(said.contains("exchanged connections=1000 bytes=5000000 "), "{said}");
    vm.expect("echoed connections=1000 peak=1000 bytes=5000000");
    vm.await_status("that every connection came to its end", |status| {
        let counters = &vsock(status)["counters"];
        let of = |name: &str| counters[name].as_u64().unwrap();
        assert_eq!((of("connections_refused"), of("connections_broken")), (0, 0));
        of("connections_open") == 0 && of("connections_total") == 2000
    });
    // A guest that powers off takes with it what its kernel has not sent yet.
    vm.type_line("");
    vm.end().assert_all_done();
}

#[test]
fn what_nobody_serves_is_refused_and_what_ends_in_the_middle_is_told() {
    let directory = host::directory();
    let server = serve(&["unix-listen", &behind(&directory.path().join("vsock"), 1024)]);
    let script = "refused() { if probe vsock-connect --port $1 --bytes 1 --seed 1; then exit 1; fi; }; \
         refused 77; echo REFUSED; probe vsock-echo --port 52 & \
         read line; probe vsock-connect --port 1024 --bytes 100 --seed 1; echo AGAIN; read line; \
         cd /sys/bus/virtio/drivers/vmw_vsock_virtio_transport; D=$(echo virtio*); echo $D > unbind; echo UNBOUND; \
         read line; echo $D > bind; probe vsock-connect --port 1024 --bytes 100 --seed 2; echo ALL DONE";
    let (mut vm, path) = start(directory.path(), script);
    vm.expect("REFUSED\r\n");
    vm.expect("listening=");

    // Nobody listens on this port of the guest.
    let mut nobody = UnixStream::connect(&path).unwrap();
    nobody.write_all(b"CONNECT 99\n").unwrap();
    assert_eq!(nobody.read(&mut [0; 16]).unwrap(), 0, "an end, and not a word before it");

    // The echo gets an end when a program of the host is gone, and goes on.
    let sudden = say_hello(&path);
    drop(sudden);
    vm.await_status("that no connection is open", |status| {
        let vsock = vsock(status);
        vsock["counters"]["connections_refused"] == 2 && vsock["counters"]["connections_open"] == 0
    });
    vm.type_line("");
    vm.expect("AGAIN\r\n");

    // The driver goes, by a reset of the device, and comes back.
    let mut cut_off = say_hello(&path);
    vm.type_line("");
    vm.expect("UNBOUND\r\n");
    assert_eq!(cut_off.read(&mut [0; 16]).unwrap(), 0, "every connection ends with a reset");
    vm.type_line("");
    vm.end().assert_all_done();
    drop(server);
}

fn vsock(status: &Value) -> &Value {
    let devices = status["devices"].as_array().unwrap();
    devices.iter().find(|device| device["kind"] == "virtio-vsock").unwrap()
}

/// A connection to the guest's echo that has proved to be one.
fn say_hello(path: &Path) -> UnixStream {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.write_all(b"CONNECT 52\nhello").unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"hello") {
        let mut byte = [0];
        assert_eq!(stream.read(&mut byte).unwrap(), 1, "{answer:?}");
        answer.push(byte[0]);
    }
    assert!(answer.starts_with(b"OK 10737418"), "{}", String::from_utf8_lossy(&answer));
    stream
}
