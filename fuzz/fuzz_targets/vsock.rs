//! The queues of vsock, with programs of the host that connect, write, read and go.
#![no_main]

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use nestling::backend::vsock::{Inside, VsockListener};
use nestling::devices::virtio::VirtioDevice;
use nestling::devices::virtio::testing::script;
use nestling::devices::virtio::vsock::Vsock;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, socket};

/// The most programs at the same time.
const PROGRAMS: usize = 16;

/// One device for all inputs; port 80 of the host has a listener.
static VSOCK: LazyLock<(Arc<dyn VirtioDevice>, PathBuf, UnixListener)> = LazyLock::new(|| {
    let directory = tempfile::tempdir().expect("a directory").keep();
    let path = directory.join("v");
    let listener = UnixListener::bind(directory.join("v_80")).expect("a listener");
    listener.set_nonblocking(true).expect("fcntl");
    let vsock = Vsock::new(3, 64, Some(VsockListener::bind(&path).expect("a socket")), Inside::new().expect("a socket"));
    (Arc::new(vsock), path, listener)
});

fuzz_target!(|bytes: &[u8]| {
    let (device, path, listener) = &*VSOCK;
    let mut programs: Vec<UnixStream> = Vec::new();
    script::play(device, bytes, |script| {
        let (what, which) = (script.byte().unwrap_or(0), usize::from(script.byte().unwrap_or(0)));
        let which = which.checked_rem(programs.len());
        match (what % 5, which) {
            (0, _) if programs.len() < PROGRAMS => {
                programs.extend(connect(path).filter(|stream| (&*stream).write_all(b"CONNECT 80\n").is_ok()));
            }
            (1, _) if programs.len() < PROGRAMS => {
                if let Ok((stream, _)) = listener.accept() {
                    let _ = stream.set_nonblocking(true);
                    programs.push(stream);
                }
            }
            (2, Some(which)) => drop((&programs[which]).write(script.bytes(200))),
            (3, Some(which)) => drop((&programs[which]).read(&mut [0; 4096])),
            (4, Some(which)) => drop(programs.swap_remove(which)),
            _ => {}
        }
    });
    drop(programs);
    while listener.accept().is_ok() {}
});

/// A client that does not wait when too many wait already.
fn connect(path: &Path) -> Option<UnixStream> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let client = socket(AddressFamily::Unix, SockType::Stream, flags, None).ok()?;
    nix::sys::socket::connect(client.as_raw_fd(), &UnixAddr::new(path).ok()?).ok()?;
    Some(client.into())
}
