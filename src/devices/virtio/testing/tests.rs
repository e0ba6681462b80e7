//! Hostile scripts against every device, as `make test` runs them; the fuzz targets do the same for longer.

use std::sync::Arc;

use proptest::prelude::*;

use super::{registers, script};
use crate::backend::console::{ConsoleInput, ConsoleLog};
use crate::backend::disk::{Access, RawDisk};
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::balloon::{Balloon, BalloonOptions};
use crate::devices::virtio::block::{Block, BlockOptions};
use crate::devices::virtio::console::Console;
use crate::devices::virtio::rng::Rng;

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
        let log = Arc::new(ConsoleLog::new(output, |_| {}).unwrap());
        let device: Arc<dyn VirtioDevice> = Arc::new(Console::new(log, ConsoleInput::new(input)));
        script::play(&device, &bytes, |script| {
            let _ = nix::unistd::write(&keyboard, script.bytes(16));
        });
        drop(device);
        reader.join().unwrap().unwrap();
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
