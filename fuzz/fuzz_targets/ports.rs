//! The queues of named console ports: control messages, and a client that comes, writes, reads and goes.
#![no_main]

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use nestling::backend::port::PortSocket;
use nestling::devices::virtio::VirtioDevice;
use nestling::devices::virtio::console::ports::{NamedPort, Ports};
use nestling::devices::virtio::testing::script;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, socket};

/// One device with two ports for all inputs.
static PORTS: LazyLock<(Arc<dyn VirtioDevice>, PathBuf)> = LazyLock::new(|| {
    let directory = tempfile::tempdir().expect("a directory").keep();
    let port = |name: &str| NamedPort {
        name: name.into(),
        socket: PortSocket::listen(&directory.join(name)).expect("a socket"),
    };
    (Arc::new(Ports::new(vec![port("one"), port("two")])), directory)
});

fuzz_target!(|bytes: &[u8]| {
    let (device, directory) = &*PORTS;
    let mut client: Option<UnixStream> = None;
    script::play(device, bytes, |script| match (script.byte().unwrap_or(0) % 4, &client) {
        (0, None) => {
            client = connect(&directory.join("one"));
        }
        (1, Some(stream)) => drop((&mut &*stream).write(script.bytes(100))),
        (2, Some(stream)) => drop((&mut &*stream).read(&mut [0; 4096])),
        (3, Some(_)) => client = None,
        _ => {}
    });
});

/// A client that does not wait when too many wait already.
fn connect(path: &Path) -> Option<UnixStream> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let client = socket(AddressFamily::Unix, SockType::Stream, flags, None).ok()?;
    nix::sys::socket::connect(client.as_raw_fd(), &UnixAddr::new(path).ok()?).ok()?;
    Some(client.into())
}
