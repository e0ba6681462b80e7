//! A disk's queues, over a small image.
#![no_main]

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use nestling::backend::disk::RawDisk;
use nestling::devices::virtio::VirtioDevice;
use nestling::devices::virtio::block::Block;
use nestling::devices::virtio::testing::script;

static DISK: LazyLock<Arc<dyn VirtioDevice>> = LazyLock::new(|| {
    let image = tempfile::NamedTempFile::new().expect("an image");
    image.as_file().set_len(1 << 20).expect("its size");
    Arc::new(Block::new(RawDisk::open(image.path(), false).expect("a disk"), 0))
});

fuzz_target!(|bytes: &[u8]| script::play(&DISK, bytes, |_| {}));
