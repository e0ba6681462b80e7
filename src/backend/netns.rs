//! A network namespace of a test's own: nothing it does reaches the machine's network.

use nix::sched::{CloneFlags, unshare};

/// Runs `test` on a thread in a network namespace that ends with it. Needs root, as the taps in it do.
pub(crate) fn in_namespace(test: impl FnOnce() + Send) {
    std::thread::scope(|threads| {
        let ran = threads.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace, which root may have");
            test();
        });
        if let Err(panic) = ran.join() {
            std::panic::resume_unwind(panic);
        }
    });
}
