//! The console as clients use it, and named ports.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::host::directory;
use super::steady::Steady;
use super::vm::{Kernel, Vm, nestling};

/// Runs every line it reads.
const SHELL: &str = "stty -echo; echo up; while read line; do eval $line; done; echo ALL DONE";

/// Tells the size of the window, as `nestling attach` does for its terminal.
fn resize(vm: &Vm, cols: u16, rows: u16) {
    let body = format!("{{\"cols\":{cols},\"rows\":{rows}}}");
    let length = body.len();
    let mut stream = UnixStream::connect(vm.socket()).unwrap();
    write!(stream, "POST /v1/console/resize HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n{body}")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

/// Waits until the guest's terminal has this size.
fn expect_size(vm: &mut Vm, cols: u16, rows: u16) {
    vm.type_line(&format!(
        "until [ \"$(stty size)\" = '{rows} {cols}' ]; do sleep 0.1; done; echo size-$(stty size)"
    ));
    vm.expect(&format!("size-{rows} {cols}\r\n"));
}

/// `nestling attach` with pipes for a terminal.
struct Attached {
    child: std::process::Child,
    shown: Arc<Mutex<String>>,
}

impl Attached {
    fn begin(vm: &Vm, arguments: &[&str]) -> Self {
        let mut command: Command = nestling();
        command.arg("attach").args(arguments).args(["--socket".as_ref(), vm.socket().as_os_str()]);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let shown = Arc::new(Mutex::new(String::new()));
        let (mut stdout, copy) = (child.stdout.take().unwrap(), Arc::clone(&shown));
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(len @ 1..) = stdout.read(&mut buffer) {
                copy.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..len]));
            }
        });
        Self { child, shown }
    }

    fn type_line(&mut self, line: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    fn expect(&self, text: &str) {
        let start = Instant::now();
        while !self.shown.lock().unwrap().contains(text) {
            assert!(
                start.elapsed() < Duration::from_secs(120),
                "no {text:?} in {}",
                self.shown.lock().unwrap()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn clients_attach_resize_and_replay_the_console_and_lines_cost_no_exit() {
    for kernel in [Kernel::Debian61, Kernel::Debian612] {
        let mut vm = Vm::start_devices(kernel, &[], SHELL);
        while UnixStream::connect(vm.socket()).is_err() {
            std::thread::sleep(Duration::from_millis(10));
        }
        // Before the driver is there: it is told when it starts.
        resize(&vm, 100, 30);
        vm.expect("up\r\n");
        println!("{kernel:?}: {} exits to the first line of the workload", vm.status()["exits_total"]);
        expect_size(&mut vm, 100, 30);
        resize(&vm, 132, 43);
        expect_size(&mut vm, 132, 43);

        let mut attached = Attached::begin(&vm, &["--no-history"]);
        attached.type_line("echo answer-$((6*7))");
        attached.expect("answer-42\r\n");
        vm.expect("answer-42\r\n");

        let steady = Steady::begin(&vm);
        vm.type_line("i=0; while [ $i -lt 10000 ]; do echo line-$i; i=$((i+1)); done; echo lines-$((1+1))");
        vm.expect("lines-2\r\n");
        let delta = steady.end(&vm, "10,000 lines on the console");
        delta.assert_no_exits();
        assert!(delta.device("virtio-console").counter("bytes_out") >= 10_000 * 10);
        attached.expect("line-9999\r\nlines-2\r\n");

        let logs = vm.ask(&["logs"]);
        assert!(logs.status.success(), "{logs:?}");
        let text = String::from_utf8_lossy(&logs.stdout).into_owned();
        assert!(text.contains("up\r\n") && text.ends_with("line-9999\r\nlines-2\r\n"), "{text}");
        let tail = vm.ask(&["logs", "--tail", "2"]);
        assert_eq!(String::from_utf8_lossy(&tail.stdout), "line-9999\r\nlines-2\r\n");

        attached.type_line("break");
        attached.expect("ALL DONE\r\n");
        vm.end().assert_all_done();
        assert_eq!(attached.child.wait().unwrap().code(), Some(0), "it ends with the VM");
    }
}

#[test]
fn a_named_port_carries_bytes_both_ways_and_both_ends_hear_of_each_other() {
    const BYTES: usize = 1 << 20;
    for kernel in [Kernel::Debian61, Kernel::Debian612] {
        let directory = directory();
        let path = directory.path().join("echo.sock");
        let other = format!("name=other,path={}", directory.path().join("other.sock").display());
        let port = format!("name=echo,path={}", path.display());
        let mut vm = Vm::start_devices(kernel, &["--port", &other, "--port", &port], SHELL);
        vm.expect("up\r\n");
        println!("{kernel:?}: {} exits to the first line of the workload", vm.status()["exits_total"]);
        // What udev would do.
        vm.type_line("for p in /sys/class/virtio-ports/vport*; do [ $(cat $p/name) = echo ] && port=/dev/${p##*/}; done; echo port-$port");
        vm.expect("port-/dev/vport");

        let mut client = UnixStream::connect(&path).unwrap();
        vm.type_line(&format!("probe console-echo $port --bytes {BYTES}"));
        vm.expect("listening=/dev/vport");
        let sent: Vec<u8> = (0..BYTES as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let steady = Steady::begin(&vm);
        let (mut writer, data) = (client.try_clone().unwrap(), sent.clone());
        let writing = std::thread::spawn(move || writer.write_all(&data).unwrap());
        let mut got = vec![0; BYTES];
        client.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
        client.read_exact(&mut got).unwrap();
        writing.join().unwrap();
        assert!(got == sent, "what came back is not what was sent");
        let delta = steady.end(&vm, "1 MiB through a port and back");
        delta.assert_no_exits();
        vm.expect(&format!("echoed bytes={BYTES}\r\n"));
        drop(client);
        vm.type_line("echo port-is-closed");
        vm.expect("port-is-closed\r\n");

        // A client that leaves before the guest looks: its words arrive, then the end.
        let mut client = UnixStream::connect(&path).unwrap();
        client.write_all(b"a note\n").unwrap();
        drop(client);
        vm.type_line("until grep -q note /tmp/note; do cat $port > /tmp/note; sleep 0.1; done; echo got-$(cat /tmp/note)");
        vm.expect("got-a note\r\n");
        vm.type_line("break");
        vm.end().assert_all_done();
        assert!(!path.exists(), "the socket goes with the VM");
    }
}
