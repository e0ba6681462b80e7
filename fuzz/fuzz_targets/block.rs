//! A disk's queues, over a small image.
#![no_main]

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use nestling::backend::disk::{Access, RawDisk};
use nestling::devices::virtio::VirtioDevice;
use nestling::devices::virtio::block::{Block, BlockOptions};
use nestling::devices::virtio::testing::script;

static DISK: LazyLock<Arc<dyn VirtioDevice>> = LazyLock::new(|| {
    let image = tempfile::NamedTempFile::new().expect("an image");
    image.as_file().set_len(1 << 20).expect("its size");
    let disk = RawDisk::open(image.path(), Access::WRITE).expect("a disk");
    Arc::new(
        Block::new(Arc::new(disk), BlockOptions { queues: 2, ..BlockOptions::default() }).expect("a device"),
    )
});

fuzz_target!(|bytes: &[u8]| script::play(&DISK, bytes, |_| {}));
