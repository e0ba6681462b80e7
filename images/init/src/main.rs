//! The guest side of Nestling, as one static program.
//!
//! As PID 1 of a minimal guest it mounts the kernel's filesystems, loads modules, takes the console, runs one workload
//! (or a shell), and powers the machine off. As `nestling-init agent` it is a service of a guest that has another init.
//! Either way it is the [agent] of a host that [speaks the protocol](nestling_protocol); as PID 1 it needs none.
//!
//! PID 1 must never end, for then the kernel panics: every path through [`init::boot`] leads to [`power`], a panic
//! included, and every failure on the way is one sentence on the console.
//!
//! The standard library's own start is left out (`no_main`): it aborts when descriptors 0 to 2 are closed and there is
//! no `/dev/null` yet, which is just how a kernel without a console leaves things.
#![cfg_attr(not(test), no_main)]

mod agent;
mod children;
mod cmdline;
mod console;
mod init;
mod kmod;
mod mounts;
mod network;
mod power;
mod report;
mod service;
mod session_end;
mod signals;
mod spawn;
mod users;
mod workload;

use power::End;

/// Where C's start code enters; the arguments are read through `std::env`.
#[cfg_attr(not(test), unsafe(no_mangle))]
#[cfg_attr(test, allow(dead_code))]
extern "C" fn main() -> i32 {
    if std::process::id() == 1 {
        std::panic::set_hook(Box::new(|panic| {
            say!("internal error, powering off: {panic}");
            power::end(End::PowerOff);
        }));
        init::boot();
    }
    let mut arguments = std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned());
    if arguments.next().as_deref() == Some("agent") {
        return i32::from(service::run(arguments));
    }
    say!("this is the init of a guest: it mounts, loads and powers off, and so runs as PID 1 only");
    say!("for a guest with another init: nestling-init agent");
    1
}
