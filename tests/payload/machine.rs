//! RAM, CPUs, the PCI bus.

use std::time::Duration;

use crate::harness::{Guest, Outcome, Running, disk_image};

const ONES: &str = "0xffffffff";

/// `ADDRESS WORD` lines as pairs.
fn pairs<'a>(outcome: &'a Outcome, key: &str) -> Vec<(&'a str, &'a str)> {
    outcome.values(key).into_iter().map(|line| line.split_once(' ').unwrap()).collect()
}

#[test]
fn five_gib_are_split_around_the_pci_hole() {
    let outcome = Guest::new("memory").memory_mib(5 << 10).run();
    assert_eq!(outcome.value("magic"), "0x336ec578");
    let ends = ["0x800000", "0xbffffff8", "0x100000000", "0x13ffffff8"];
    let ends = [ends[0], ends[1], ends[2], "0x17ffffff8"];
    assert_eq!(pairs(&outcome, "ram"), ends.map(|address| (address, "ok")));
    let holes = pairs(&outcome, "hole");
    let after_ram = [("0xc0000000", ONES), ("0x180000000", ONES)];
    assert_eq!(holes[..2], after_ram);
    assert!(holes.iter().all(|&(_, read)| read == ONES), "{holes:?}");
    let map = outcome.values("map");
    for range in
        ["0x0 0x9fc00 1", "0x100000 0xbff00000 1", "0x100000000 0x80000000 1", "0xe0000000 0x100000 2"]
    {
        assert!(map.contains(&range), "{map:?}");
    }
}

#[test]
fn little_ram_ends_where_the_map_says() {
    let outcome = Guest::new("memory").memory_mib(128).run();
    assert_eq!(pairs(&outcome, "ram"), [("0x800000", "ok"), ("0x7fffff8", "ok")]);
    assert_eq!(pairs(&outcome, "hole")[0], ("0x8000000", ONES));
    assert!(outcome.values("map").contains(&"0x100000 0x7f00000 1"));
}

#[test]
fn every_cpu_comes_up_and_knows_its_number() {
    for cpus in [1, 2, 4, 32] {
        let outcome = Guest::new("smp").cpus(cpus).run();
        let mut seen = outcome.values("cpu");
        seen.sort_by_key(|line| line.split(' ').next().unwrap().parse::<u8>().unwrap());
        let expected: Vec<String> = (0..cpus).map(|id| format!("{id} {id} {id}")).collect();
        assert_eq!(seen, expected);
        assert_eq!(outcome.value("counter"), ((u32::from(cpus) - 1) * 100).to_string());
        assert_eq!(outcome.facts.vcpus.len(), usize::from(cpus));
    }
}

#[test]
fn a_scan_finds_the_planned_devices_and_nothing_else() {
    let (first, second) = (disk_image(), disk_image());
    let outcome = Guest::new("pci-scan").disk(first.path(), false).disk(second.path(), true).run();
    let functions = ["0.0 0x00081b36", "1.0 0x10421af4", "2.0 0x10421af4", "3.0 0x10441af4"];
    assert_eq!(outcome.values("function"), functions);
    assert_eq!(outcome.values("bar"), ["1 0xc0000000 0x4000", "2 0xc0004000 0x4000", "3 0xc0008000 0x4000"]);
    assert_eq!(outcome.values("vectors"), ["1 2", "2 2", "3 2"]);
    let kinds: Vec<_> = outcome.facts.devices.iter().map(|device| device.kind.as_str()).take(4).collect();
    assert_eq!(kinds, ["pci-host-bridge", "virtio-blk", "virtio-blk", "virtio-rng"]);
}

#[test]
fn reading_configuration_space_costs_no_exit() {
    let exits = |rounds: u32| {
        // The scan itself probes empty slots, which do exit.
        let outcome = Guest::new(&format!("pci-reads rounds={rounds}")).run();
        assert_eq!(outcome.value("done"), "1");
        let bridge = outcome.device("pci-host-bridge", 0).trapped_reads;
        let rng = outcome.device("virtio-rng", 0).trapped_reads;
        assert_eq!((bridge, rng), (0, 0));
        outcome.guest_exits()
    };
    let per_scan = exits(2) - exits(1);
    assert_eq!(exits(3) - exits(2), per_scan);
    assert_eq!(per_scan, 30, "only the 30 empty slots of the bus");
}

#[test]
fn a_moved_bar_answers_at_its_new_place_only() {
    let outcome = Guest::new("pci-move").run();
    assert_eq!(outcome.value("before"), "Ok(16)");
    assert_eq!(outcome.value("old"), "0xffff");
    assert_eq!(outcome.value("new"), "0x1");
    assert_eq!(outcome.value("after"), "Ok(16)");
    assert_eq!(outcome.value("undecoded"), "0xffff");
    assert_eq!(outcome.value("again"), "Ok(16)");
}

#[test]
fn a_paused_machine_does_nothing_and_loses_nothing() {
    let image = disk_image();
    let mut running = Guest::new("disk-reads count=4000").disk(image.path(), false).start();
    let reads = |running: &Running| {
        let facts = running.machine.facts();
        let disk = facts.devices.iter().find(|device| device.kind == "virtio-blk").unwrap();
        disk.counters["reads"]
    };
    while reads(&running) == 0 {
        std::thread::yield_now();
    }
    let mut pauses = 0;
    let outcome = loop {
        running.machine.pause().unwrap();
        let at_rest = reads(&running);
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(reads(&running), at_rest);
        let facts = running.machine.facts();
        assert!(facts.vcpus.iter().all(|vcpu| vcpu.state != "running"), "{:?}", facts.vcpus);
        running.machine.resume();
        // On an idle machine the next pause would come before the vCPU has entered the guest: it would never get on.
        std::thread::sleep(Duration::from_millis(2));
        pauses += 1;
        if at_rest == 4000 || facts.vcpus[0].state == "stopped" {
            break running.finish();
        }
    };
    assert!(pauses > 1, "it was paused in the middle");
    assert_eq!(outcome.value("all"), "true");
    assert_eq!(outcome.device("virtio-blk", 0).counters["reads"], 4000);
}

#[test]
fn a_paused_machine_can_be_stopped() {
    let (reader, _keyboard) = nix::unistd::pipe().unwrap();
    let mut running = Guest::new("console-echo").virtio_console(Some(reader)).start();
    running.wait_for("ready");
    running.machine.pause().unwrap();
    running.machine.pause().unwrap();
    running.machine.stop().unwrap();
    assert_eq!(running.machine.facts().vcpus[0].state, "stopped");
}
