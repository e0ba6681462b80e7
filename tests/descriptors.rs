//! What happens when a process has no descriptor left. The limit is the whole process', so this file has one test.

use std::io::{ErrorKind, Read};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

use nestling::backend::vsock::{Host, HostEvent, Inside, UnixHost, VsockListener};
use nix::sys::resource::{Resource, setrlimit};

#[test]
fn without_descriptors_who_connects_by_vsock_is_turned_away() {
    setrlimit(Resource::RLIMIT_NOFILE, 64, 64).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("v.sock");
    let mut host =
        UnixHost::new(Some(Arc::new(VsockListener::bind(&path).unwrap())), Inside::new().unwrap()).unwrap();
    let mut turned_away = UnixStream::connect(&path).unwrap();
    let mut taken = Vec::new();
    while let Ok(file) = std::fs::File::open("/dev/null") {
        taken.push(file);
    }
    let now = Instant::now();
    assert_eq!(host.take_events(), [HostEvent::Knock]);
    assert_eq!(host.accept(now).unwrap().unwrap_err().kind(), ErrorKind::ConnectionAborted);
    assert_eq!(turned_away.read(&mut [0; 8]).unwrap(), 0);
    assert!(host.accept(now).is_none());
    assert!(host.connect(7, 2000).is_err(), "no descriptor for the guest either");

    // And as soon as there is one, everything is as it was.
    taken.truncate(taken.len() / 2);
    let _program = UnixStream::connect(&path).unwrap();
    assert!(host.accept(now).unwrap().is_ok());
}
