//! Guest memory goes back to the host: by itself when the guest frees it, and on demand.

use serde_json::Value;

use super::vm::{Kernel, Vm};

const MIB: u64 = 1 << 20;

/// Takes 128 MiB, frees them when a line is typed, and waits for another line.
const TOUCH: &str = "probe mem-touch --bytes 134217728";

fn resident(status: &Value) -> u64 {
    status["memory"]["resident_bytes"].as_u64().unwrap()
}

fn balloon(status: &Value, key: &str) -> u64 {
    status["memory"]["balloon"][key].as_u64().unwrap()
}

fn balloon_device(status: &Value) -> &Value {
    let devices = status["devices"].as_array().unwrap();
    devices.iter().find(|device| device["kind"] == "virtio-balloon").unwrap()
}

fn set_memory(vm: &Vm, target: &str) {
    let output = vm.ask(&["memory", target]);
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn what_a_guest_frees_goes_back_to_the_host_by_itself() {
    let script = format!(
        "stty -echo; probe load virtio_balloon; echo before; read line; {TOUCH}; {TOUCH}; echo ALL DONE"
    );
    for kernel in Kernel::ALL {
        let mut vm = Vm::start_devices(kernel, &["--memory", "384M"], &script);
        vm.expect("before");
        let before = resident(&vm.status());
        vm.type_line("");
        vm.expect("touched=134217728");
        let touched = vm.status();
        let gained = resident(&touched).saturating_sub(before);
        assert!(gained > 100 * MIB, "{kernel:?}: {gained} bytes were touched");

        vm.type_line("");
        vm.expect("freed=134217728");
        let gone = |status: &Value| resident(status) + 128 * MIB * 8 / 10 < resident(&touched);
        let freed = vm.await_status("that 80 % of what was freed are gone", gone);
        println!(
            "{kernel:?}: resident MiB before {} touched {} freed {}; reported {} MiB; huge share {} then {}",
            before / MIB,
            resident(&touched) / MIB,
            resident(&freed) / MIB,
            balloon(&freed, "reported_bytes") / MIB,
            touched["memory"]["huge_share"],
            freed["memory"]["huge_share"],
        );
        assert!(balloon(&freed, "reported_bytes") > 100 * MIB);

        // The same memory once more: it is there, and in huge pages.
        vm.type_line("");
        vm.expect("freed=134217728\r\ntouched=134217728");
        let again = vm.status();
        assert!(resident(&again) > resident(&freed) + 100 * MIB, "it is used again");
        let share = again["memory"]["huge_share"].as_f64().unwrap();
        assert!(share > 0.9, "{kernel:?}: only {share} of it in huge pages");
        vm.type_line("");
        vm.type_line("");
        let ended = vm.end();
        let device = balloon_device(&ended.status);
        println!("{kernel:?}: {} exits in the whole run; of the balloon: {device}", ended.exits());
        ended.assert_all_done();
        let writes = device["trapped_writes"].as_u64().unwrap();
        assert!(writes < 200, "{kernel:?}: enumeration, the driver's start, and no exit more: {device}");
    }
}

#[test]
fn a_balloon_takes_memory_gives_it_back_and_yields_before_a_process_is_killed() {
    let script = format!(
        "stty -echo; probe load virtio_balloon; {TOUCH}; echo second; \
         probe mem-touch --bytes 201326592; echo third; read line; probe mem-touch --bytes 251658240; echo ALL DONE"
    );
    let arguments = ["--memory", "384M", "--balloon", "on,free-page-reporting=off"];
    let mut vm = Vm::start_devices(Kernel::Debian612, &arguments, &script);
    vm.expect("touched=134217728");
    vm.type_line("");
    vm.expect("freed=134217728");
    let freed = vm.status();
    assert_eq!((balloon(&freed, "target_bytes"), balloon(&freed, "balloon_bytes")), (384 * MIB, 0));

    // 224 MiB into the balloon: the host has back what was touched of them.
    set_memory(&vm, "160M");
    let full = |status: &Value| balloon(status, "balloon_bytes") == 224 * MIB;
    vm.await_status("that the balloon is full", full);
    let small = vm.await_status("that the guest is small", |status| resident(status) <= 162 * MIB);
    println!(
        "resident MiB with 128 freed {} and with the balloon full {}",
        resident(&freed) / MIB,
        resident(&small) / MIB
    );
    assert!(resident(&small) + 64 * MIB < resident(&freed));
    let told =
        |status: &Value| status["memory"]["balloon"]["guest"]["total_bytes"].as_u64() > Some(256 * MIB);
    let guest = vm.await_status("what the guest says", told);
    println!("{:#}", guest["memory"]["balloon"]);
    let shown = String::from_utf8(vm.ask(&["memory"]).stdout).unwrap();
    assert!(shown.contains("160 MiB for the guest, 224 MiB in the balloon"), "{shown}");
    assert!(shown.contains("available"), "{shown}");

    // More than is left: the balloon yields, and nobody is killed.
    vm.type_line("");
    vm.expect("touched=201326592");
    let yielded = vm.status();
    assert!(balloon(&yielded, "balloon_bytes") < 224 * MIB, "{yielded:#}");
    vm.type_line("");
    vm.type_line("");
    vm.expect("third");

    // All of it is the guest's again.
    set_memory(&vm, "384M");
    vm.await_status("that the balloon is empty", |status| balloon(status, "balloon_bytes") == 0);
    vm.type_line("");
    vm.expect("touched=251658240");
    let refused = vm.ask(&["memory", "1T"]);
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("to its size, 384 MiB"), "{refused:?}");
    vm.type_line("");
    vm.type_line("");
    let ended = vm.end();
    println!("{} exits in the whole run; of the balloon: {}", ended.exits(), balloon_device(&ended.status));
    ended.assert_all_done();
}
