//! The balloon's queues.
#![no_main]

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use nestling::devices::virtio::VirtioDevice;
use nestling::devices::virtio::balloon::{Balloon, BalloonOptions};
use nestling::devices::virtio::testing::{guest_ram, script};

fuzz_target!(|bytes: &[u8]| {
    static DEVICE: LazyLock<Arc<dyn VirtioDevice>> = LazyLock::new(|| {
        let options = BalloonOptions { deflate_on_oom: true, free_page_reporting: true };
        Arc::new(Balloon::new(options, &guest_ram()).expect("a descriptor"))
    });
    script::play(&DEVICE, bytes, |_| {});
});
