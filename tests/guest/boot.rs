//! Kernels, CPUs and memory.

use super::vm::{Kernel, Vm};

const REPORT: &str = "echo cpus=$(nproc); uname -r; grep MemTotal /proc/meminfo; cat /sys/devices/system/clocksource/clocksource0/available_clocksource";

/// Boots, checks what the guest sees of the machine, and returns its exits to user space.
fn boot(kernel: Kernel, cpus: u32, memory: &str) -> u64 {
    let cpus_text = cpus.to_string();
    let vm = Vm::start_script(kernel, &["--cpus", &cpus_text, "--memory", memory], REPORT);
    let ended = vm.end();
    ended.assert_code(0);
    ended.assert_console(&format!("cpus={cpus}\r\n"));
    ended.assert_console(&kernel.release());
    ended.assert_console("kvm-clock");
    let mib = memory_total_mib(&ended.console);
    let expected: u64 = memory.trim_end_matches(['M', 'G']).parse().unwrap();
    let expected = if memory.ends_with('G') { expected << 10 } else { expected };
    assert!(mib < expected && mib > expected * 6 / 10, "{mib} MiB of {memory} in the guest");
    println!("{kernel:?} {cpus} vCPUs {memory}: {} exits {}", ended.exits(), ended.status["exits"]);
    ended.exits()
}

fn memory_total_mib(console: &str) -> u64 {
    let line = console.lines().find(|line| line.starts_with("MemTotal:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() >> 10
}

#[test]
fn every_kernel_boots_with_one_two_and_four_vcpus() {
    for kernel in Kernel::ALL {
        for (cpus, memory) in [(1, "128M"), (2, "256M"), (4, "1G")] {
            let exits = boot(kernel, cpus, memory);
            assert!(exits < 1000, "{exits} exits to user space");
        }
    }
}

#[test]
fn a_bz_image_boots_as_well_as_its_vmlinux() {
    for kernel in Kernel::ALL {
        let (bz_image, initramfs) = (kernel.bz_image(), kernel.initramfs());
        let vm = Vm::start(&[
            "--kernel",
            bz_image.to_str().unwrap(),
            "--initrd",
            initramfs.to_str().unwrap(),
            "--",
            "/bin/uname",
            "-a",
        ]);
        let ended = vm.end();
        ended.assert_code(0);
        ended.assert_console(&format!("Linux nestling {}", kernel.release()));
    }
}

#[test]
fn guest_memory_is_backed_by_huge_pages() {
    let mut vm = Vm::start_script(Kernel::Nestling, &["--memory", "256M"], "echo up; read line");
    vm.expect("up");
    let memory = vm.status()["memory"].clone();
    assert!(memory["huge_share"].as_f64().unwrap() > 0.9, "{memory}");
    assert!(memory["resident_bytes"].as_u64().unwrap() > 1 << 20, "{memory}");
    vm.type_line("");
    vm.end().assert_code(0);
}
