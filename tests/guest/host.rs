//! The host's side of a test: directories, disks, and the probe at this end.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::vm::assets;

/// A directory in memory, for disks and sockets: no test waits for the disk of the machine it runs on.
pub(crate) fn directory() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("nestling-").tempdir_in("/dev/shm").unwrap()
}

/// An empty disk of `mib` MiB: a file without a block of its own yet.
pub(crate) fn empty_disk(directory: &Path, name: &str, mib: u64) -> PathBuf {
    let path = directory.join(name);
    std::fs::File::create_new(&path).unwrap().set_len(mib << 20).unwrap();
    path
}

/// The probe as a process of the host, for instance `unix-connect`: the other end of the one in the guest.
pub(crate) fn probe(arguments: &[&str]) -> Command {
    let mut command = Command::new(assets().join("bin/nestling-probe"));
    command.args(arguments);
    command
}

/// Runs the probe on the host to its end, which must be a good one; what it printed.
#[track_caller]
pub(crate) fn probe_ok(arguments: &[&str]) -> String {
    let output = probe(arguments).output().unwrap();
    let (said, complained) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "probe {arguments:?}: {}\n{said}{complained}", output.status);
    said.into_owned()
}

/// A probe that serves in the background until it is dropped, or [`Served::end`] has its last words.
#[derive(Debug)]
pub(crate) struct Served(Option<Child>);

/// Starts a probe that listens, and waits until it does.
pub(crate) fn serve(arguments: &[&str]) -> Served {
    use std::io::Read;
    let mut child = probe(arguments).stdout(Stdio::piped()).spawn().unwrap();
    // `listening=…` is its first line: read byte by byte, for the rest belongs to `end`.
    let (mut line, mut byte) = (Vec::new(), [0]);
    while line.last() != Some(&b'\n') {
        assert_eq!(child.stdout.as_mut().unwrap().read(&mut byte).unwrap(), 1, "probe {arguments:?} ended");
        line.extend_from_slice(&byte);
    }
    assert!(line.starts_with(b"listening="), "{}", String::from_utf8_lossy(&line));
    Served(Some(child))
}

impl Served {
    /// Waits for the end, which must be a good one; what it printed.
    #[track_caller]
    pub(crate) fn end(mut self) -> String {
        let output = self.0.take().unwrap().wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{}: {said}", output.status);
        said
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A tool of the host that is not there in the node: busybox has it (`ip`, `unshare`, `brctl`).
pub(crate) fn busybox(arguments: &[&str]) -> Command {
    let mut command = Command::new(assets().join("bin/busybox"));
    command.args(arguments);
    command
}

/// Both ends of a stream agree on it, over the kind of socket that leads into a guest.
#[test]
fn the_probe_exchanges_with_itself() {
    let directory = directory();
    let socket = directory.path().join("vsock_1024");
    let socket = socket.to_str().unwrap();
    let server = serve(&["unix-listen", socket, "--count", "50"]);
    let flow = ["--bytes", "100000", "--seed", "1", "--connections", "50", "--half-close"];
    let said = probe_ok(&[&["unix-connect", socket], &flow[..]].concat());
    assert!(said.contains("exchanged connections=50 bytes=5000000 "), "{said}");
    let said = server.end();
    assert!(said.contains("echoed connections=50 peak=50 bytes=5000000"), "{said}");
}

/// What tests of the network stand on: namespaces of their own, taps in them, addresses.
#[test]
fn a_tap_can_be_made_in_a_network_namespace() {
    let script = "$PROBE tap tap0 --multi-queue && ip addr add 10.77.0.1/24 dev tap0 && ip link set tap0 up && ip addr show tap0";
    let mut command = busybox(&["unshare", "-n", "sh", "-c", script]);
    let output = command.env("PROBE", assets().join("bin/nestling-probe")).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("inet 10.77.0.1/24"), "{said}");
    assert!(!Path::new("/sys/class/net/tap0").exists(), "the tap is in the wrong namespace");
}
