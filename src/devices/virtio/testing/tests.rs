//! Hostile scripts against every device, as `make test` runs them; the fuzz targets do the same for longer.

use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, socket};
use proptest::prelude::*;

use super::{registers, script};
use crate::backend::console::{ConsoleHub, ConsoleInput};
use crate::backend::disk::{Access, RawDisk};
use crate::backend::port::PortSocket;
use crate::backend::tap::{Tap, TapSource};
use crate::backend::vsock::{Inside, VsockListener};
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::balloon::{Balloon, BalloonOptions};
use crate::devices::virtio::block::{Block, BlockOptions};
use crate::devices::virtio::console::Console;
use crate::devices::virtio::console::ports::{NamedPort, Ports};
use crate::devices::virtio::net::{DirectionRates, Net};
use crate::devices::virtio::rng::Rng;
use crate::devices::virtio::vsock::Vsock;

/// A client that does not wait when too many wait already.
fn connect(path: &Path) -> Option<UnixStream> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let client = socket(AddressFamily::Unix, SockType::Stream, flags, None).ok()?;
    nix::sys::socket::connect(client.as_raw_fd(), &UnixAddr::new(path).ok()?).ok()?;
    Some(client.into())
}

fn scripts() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), 0..3000)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn registers_survive_any_script(bytes in scripts()) {
        registers::play(Arc::new(Rng::default()), &bytes);
    }

    #[test]
    fn rng_survives_any_script(bytes in scripts()) {
        for limit in [None, Some(100), Some(u64::MAX)] {
            let device: Arc<dyn VirtioDevice> = Arc::new(Rng::new(limit).unwrap());
            script::play(&device, &bytes, |_| {});
        }
    }

    #[test]
    fn balloon_survives_any_script(bytes in scripts()) {
        let options = BalloonOptions { deflate_on_oom: true, free_page_reporting: true };
        let device: Arc<dyn VirtioDevice> = Arc::new(Balloon::new(options, &super::guest_ram()).unwrap());
        script::play(&device, &bytes, |_| {});
    }

    #[test]
    fn console_survives_any_script(bytes in scripts()) {
        let (screen, output) = nix::unistd::pipe().unwrap();
        let (input, keyboard) = nix::unistd::pipe().unwrap();
        let reader = std::thread::spawn(move || std::io::copy(&mut std::fs::File::from(screen), &mut std::io::sink()));
        let hub = Arc::new(ConsoleHub::new(output, 4096).unwrap());
        let device: Arc<dyn VirtioDevice> = Arc::new(Console::new(hub, ConsoleInput::new(input)));
        script::play(&device, &bytes, |script| {
            let _ = nix::unistd::write(&keyboard, script.bytes(16));
        });
        drop(device);
        reader.join().unwrap().unwrap();
    }

    #[test]
    fn ports_survive_any_script(bytes in scripts()) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("port");
        let socket = PortSocket::listen(&path).unwrap();
        let device: Arc<dyn VirtioDevice> = Arc::new(Ports::new(vec![NamedPort { name: "one".into(), socket }]));
        let mut client = None;
        script::play(&device, &bytes, |script| match script.byte() {
            Some(0..=99) => client = connect(&path),
            Some(100..=199) => drop(client.as_ref().map(|mut client: &UnixStream| client.write(script.bytes(32)))),
            _ => client = None,
        });
    }

    #[test]
    fn vsock_survives_any_script(bytes in scripts()) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("v");
        let device: Arc<dyn VirtioDevice> = Arc::new(Vsock::new(3, 16, Some(VsockListener::bind(&path).unwrap()), Inside::new().unwrap()));
        let mut programs = Vec::new();
        script::play(&device, &bytes, |script| match script.byte() {
            Some(0..=99) if programs.len() < 8 => {
                programs.extend(connect(&path));
                drop(programs.last().map(|mut last: &UnixStream| last.write(b"CONNECT 5\n")));
            }
            Some(100..=199) => drop(programs.last().map(|mut last| last.write(script.bytes(32)))),
            _ => drop(programs.pop()),
        });
    }

    #[test]
    fn net_survives_any_script(bytes in scripts()) {
        crate::backend::netns::in_namespace(|| {
            let tap = Tap::open(&TapSource::New, 2, None).unwrap();
            let rates = DirectionRates::default();
            let device: Arc<dyn VirtioDevice> = Arc::new(Net::new(tap, [2, 0, 0, 0, 0, 1], rates, rates).unwrap());
            script::play(&device, &bytes, |_| {});
        });
    }

    #[test]
    fn block_survives_any_script(bytes in scripts()) {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(1 << 20).unwrap();
        let disk = RawDisk::open(image.path(), Access::WRITE).unwrap();
        let options = BlockOptions { queues: 2, ..BlockOptions::default() };
        let device: Arc<dyn VirtioDevice> = Arc::new(Block::new(Arc::new(disk), options).unwrap());
        script::play(&device, &bytes, |_| {});
        prop_assert_eq!(image.as_file().metadata().unwrap().len(), 1 << 20);
    }
}
