//! The entropy device's queue.
#![no_main]

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use nestling::devices::virtio::VirtioDevice;
use nestling::devices::virtio::rng::Rng;
use nestling::devices::virtio::testing::script;

fuzz_target!(|bytes: &[u8]| {
    static DEVICE: LazyLock<Arc<dyn VirtioDevice>> = LazyLock::new(|| Arc::new(Rng::default()));
    script::play(&DEVICE, bytes, |_| {});
});
