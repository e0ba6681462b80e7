//! The console's queues, with somebody typing.
#![no_main]

use std::fs::File;
use std::io::Write;
use std::sync::{Arc, LazyLock, Mutex};

use libfuzzer_sys::fuzz_target;
use nestling::backend::console::{ConsoleHub, ConsoleInput};
use nestling::devices::virtio::VirtioDevice;
use nestling::devices::virtio::console::Console;
use nestling::devices::virtio::testing::script;

/// One console for all inputs; its keyboard is a pipe.
static CONSOLE: LazyLock<(Arc<dyn VirtioDevice>, Mutex<File>)> = LazyLock::new(|| {
    let screen = File::options().write(true).open("/dev/null").expect("/dev/null");
    let (input, keyboard) = std::io::pipe().expect("a pipe");
    let hub = ConsoleHub::new(screen.into(), 4096).expect("a console");
    let console = Console::new(Arc::new(hub), ConsoleInput::new(input.into()));
    let keyboard: std::os::fd::OwnedFd = keyboard.into();
    nix::fcntl::fcntl(&keyboard, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))
        .expect("fcntl");
    (Arc::new(console), Mutex::new(keyboard.into()))
});

fuzz_target!(|bytes: &[u8]| {
    let (device, keyboard) = &*CONSOLE;
    script::play(device, bytes, |script| {
        let typed = script.bytes(64);
        let _ = keyboard.lock().expect("one thread").write(typed);
    });
});
