//! The devices that are not virtio, driven by stock drivers: panic port, watchdog, generation ID, power button.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use nestling::backend::console::ConsoleHub;
use nestling::backend::vsock::Inside;
use nestling::spec::config::{Config, Given};
use nestling::vmm::{ConsoleIo, Machine};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::Value;

use super::vm::{Kernel, Vm};

/// The script after the drivers of these devices are loaded; Nestling's own kernel has them built in.
fn with_drivers(kernel: Kernel, script: &str) -> String {
    if kernel == Kernel::Nestling {
        return script.to_owned();
    }
    format!("probe load pvpanic_mmio wdat_wdt button evdev && {{ {script}; }}")
}

fn start(kernel: Kernel, arguments: &[&str], script: &str) -> Vm {
    Vm::start_devices(kernel, arguments, &with_drivers(kernel, script))
}

fn device<'a>(status: &'a Value, kind: &str) -> &'a Value {
    let devices = status["devices"].as_array().unwrap();
    devices.iter().find(|device| device["kind"] == kind).unwrap_or_else(|| panic!("no {kind} in {devices:?}"))
}

/// Without the port such a guest would hang: it neither resets nor says anything to us.
#[test]
fn a_panic_is_told_by_a_guest_that_would_stay_as_it_is() {
    for kernel in Kernel::ALL {
        let arguments = ["--cpus", "2", "--cmdline", "panic=0"];
        let ended = start(kernel, &arguments, "echo c > /proc/sysrq-trigger; sleep 1000").end();
        ended.assert_code(203);
        let message = &ended.status["reason"]["message"];
        assert_eq!(message, "Kernel panic - not syncing: sysrq triggered crash", "{kernel:?}");
        let port = device(&ended.status, "pvpanic");
        println!(
            "{kernel:?}: {} reads and {} writes of the panic port",
            port["trapped_reads"], port["trapped_writes"]
        );
        assert_eq!((&port["trapped_reads"], &port["trapped_writes"]), (&1.into(), &1.into()));
    }
}

#[test]
fn a_guest_that_falls_silent_is_ended_by_its_watchdog() {
    // Fed every second for longer than its timeout, and then not any more: the feeder is killed and cannot say goodbye.
    let script = "watchdog -F -T 3 -t 1 /dev/watchdog0 & sleep 7; echo fed; kill -9 $!; sleep 1000";
    for kernel in Kernel::ALL {
        let ended = start(kernel, &[], script).end();
        ended.assert_code(207);
        ended.assert_console("fed");
        assert_eq!(ended.status["exit_name"], "watchdog");
        assert_eq!(ended.status["state"], "failed");
        assert_eq!(ended.status["reason"]["kind"], "watchdog");
        assert_eq!(ended.status["reason"]["silent_ms"], 3000);
        assert!(ended.log.contains("had not fed it for 3 s"), "{}", ended.log);
        let watchdog = device(&ended.status, "watchdog");
        println!(
            "{kernel:?}: {} reads and {} writes in 10 s",
            watchdog["trapped_reads"], watchdog["trapped_writes"]
        );
        assert!((7..20).contains(&watchdog["trapped_writes"].as_u64().unwrap()), "{watchdog}");
    }
}

#[test]
fn a_pause_of_the_machine_is_not_the_guests_silence() {
    let script = "watchdog -F -T 3 -t 1 /dev/watchdog0 & sleep 2; echo up; read line; sleep 5; echo alive";
    let mut vm = start(Kernel::Debian61, &[], script);
    vm.expect("up\r\n");
    assert!(vm.ask(&["pause"]).status.success());
    std::thread::sleep(Duration::from_secs(8));
    let status = vm.status();
    assert_eq!(
        (&status["state"], &device(&status, "watchdog")["state"]),
        (&"paused".into(), &"active".into())
    );
    assert!(vm.ask(&["resume"]).status.success());
    vm.type_line("");
    let ended = vm.end();
    ended.assert_code(0);
    ended.assert_console("alive");
}

#[test]
fn a_watchdog_that_was_stopped_ends_nothing() {
    let script = "exec 3>/dev/watchdog0; sleep 1; printf V >&3; exec 3>&-; sleep 40; echo alive";
    let ended = start(Kernel::Debian61, &[], script).end();
    ended.assert_code(0);
    ended.assert_console("alive");
    assert_eq!(device(&ended.status, "watchdog")["state"], "inactive");
}

#[test]
fn there_is_no_watchdog_when_none_is_wanted() {
    let script = "ls /dev/watchdog0 || echo no watchdog";
    let ended = start(Kernel::Debian612, &["--watchdog", "off"], script).end();
    ended.assert_code(0);
    ended.assert_console("no watchdog\r\n");
    let devices = ended.status["devices"].to_string();
    assert!(!devices.contains("watchdog"), "{devices}");
}

/// What these devices cost a guest that does not use them.
#[test]
fn a_guest_without_the_drivers_never_touches_the_devices() {
    for kernel in [Kernel::Debian61, Kernel::Debian612] {
        let ended = Vm::start_script(kernel, &[], "true").end();
        ended.assert_code(0);
        for kind in ["pvpanic", "watchdog"] {
            let device = device(&ended.status, kind);
            assert_eq!(
                (&device["trapped_reads"], &device["trapped_writes"]),
                (&0.into(), &0.into()),
                "{device}"
            );
        }
        println!("{kernel:?}: {} exits {}", ended.exits(), ended.status["exits"]);
    }
}

#[test]
fn a_new_generation_id_reseeds_the_guests_random_numbers() {
    // The bracket keeps the pattern from finding itself: this script is on the kernel's command line, and that is in its log.
    let script = "ls -d /sys/bus/*/drivers/vmgenid/NSTL0001:00; echo before=$(dmesg | grep -c 'machine f[o]rk'); \
                  echo ready; sleep 2; dmesg | grep 'machine f[o]rk'; echo done";
    for kernel in [Kernel::Debian612, Kernel::Nestling] {
        let mut guest = Guest::start(kernel, script);
        guest.expect("ready\r\n");
        assert!(guest.heard.contains("drivers/vmgenid/NSTL0001:00"), "no driver:\n{}", guest.heard);
        assert!(guest.heard.contains("before=0"), "{}", guest.heard);
        let exits = guest.machine.facts().exits_total;
        guest.machine.renew_generation_id().unwrap();
        guest.expect("done\r\n");
        assert!(guest.heard.contains("crng reseeded due to virtual machine fork"), "{}", guest.heard);
        println!(
            "{kernel:?}: {} exits from the change to its end",
            guest.machine.facts().exits_total - exits
        );
    }
}

#[test]
fn the_guest_hears_its_power_button() {
    // One input event: 16 bytes of time, then type (1: a key), code (116: KEY_POWER) and value (1: pressed).
    let script =
        "echo ready; dd if=/dev/input/event0 bs=24 count=1 2>/dev/null | od -An -tu2 -j16; echo done";
    for kernel in Kernel::ALL {
        let mut guest = Guest::start(kernel, script);
        guest.expect("ready\r\n");
        // The reader of the event file has to be there first: nobody keeps events for one who comes later.
        while !guest.heard.contains("done\r\n") {
            guest.machine.press_power_button().unwrap();
            guest.listen(Duration::from_secs(1));
        }
        let words: Vec<&str> = guest.heard.split_whitespace().collect();
        assert!(words.windows(4).any(|event| event == ["1", "116", "1", "0"]), "{}", guest.heard);
    }
}

/// A machine in this process, for what no command does yet.
struct Guest {
    machine: Machine,
    output: File,
    heard: String,
}

impl Guest {
    fn start(kernel: Kernel, script: &str) -> Self {
        let command = vec!["/bin/sh".into(), "-c".into(), with_drivers(kernel, script)];
        let config = Config {
            kernel: Some(Given::by_flag("--kernel", kernel.vmlinux())),
            initrd: Some(Given::by_flag("--initrd", kernel.devices())),
            command: Some(Given::by_flag("--", command)),
            ..Config::default()
        };
        let (output, writer) = nix::unistd::pipe().unwrap();
        let hub = Arc::new(ConsoleHub::new(writer, 64 << 10).unwrap());
        let console = ConsoleIo { hub, input: None };
        let mut machine =
            Machine::new(&config.resolve().unwrap().machine, console, &Inside::new().unwrap()).unwrap();
        machine.start(channel().0).unwrap();
        Self { machine, output: output.into(), heard: String::new() }
    }

    /// Takes what the guest says for so long, or until it has said something; false when it said nothing.
    fn listen(&mut self, patience: Duration) -> bool {
        let timeout = PollTimeout::try_from(patience).unwrap();
        if poll(&mut [PollFd::new(self.output.as_fd(), PollFlags::POLLIN)], timeout).unwrap() == 0 {
            return false;
        }
        let mut buffer = [0; 4096];
        let len = self.output.read(&mut buffer).unwrap();
        self.heard.push_str(&String::from_utf8_lossy(&buffer[..len]));
        len > 0
    }

    fn expect(&mut self, text: &str) {
        let began = Instant::now();
        while !self.heard.contains(text) {
            assert!(began.elapsed() < Duration::from_secs(240), "no {text:?} in:\n{}", self.heard);
            self.listen(Duration::from_secs(1));
        }
    }
}
