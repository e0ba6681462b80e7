//! Guests that break every rule. The machine must neither crash nor hang nor grow, must say when a device needs a reset,
//! and the device must work again afterwards.

use std::fs;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::process::Command;

use crate::harness::{Guest, Outcome, alone, disk_image};

/// Growth of our own memory that is noise: a worker's stack, an allocator's arena.
const NOISE_BYTES: u64 = 2 << 20;
/// Set in a process that was started to be measured.
const MEASURED: &str = "NESTLING_TEST_MEASURED";

fn all_is_well(outcome: &Outcome) {
    assert_eq!(outcome.value("disk"), "Ok((0, 513))");
    assert_eq!(outcome.value("rng"), "Ok(64)");
}

#[test]
fn a_broken_chain_or_ring_index_is_answered_or_asks_for_a_reset() {
    let image = disk_image();
    let outcome = Guest::new("broken-chains").disk(image.path(), false).run();
    let cases = outcome.values("case");
    let after = outcome.values("after");
    assert!(cases.len() >= 48, "{cases:?}");
    assert_eq!(after.len(), cases.len());
    assert!(after.iter().all(|line| line.ends_with(" Ok((0, 513))")), "{after:?}");
    for impossible in IMPOSSIBLE {
        assert!(cases.contains(&format!("{impossible} needs-reset").as_str()), "{impossible}: {cases:#?}");
    }
    for fine in FINE {
        assert!(cases.iter().any(|line| line.starts_with(&format!("{fine} used 0 "))), "{fine}: {cases:#?}");
    }
}

/// What leaves a device no way to go on.
const IMPOSSIBLE: [&str; 24] = [
    "index-jumps",
    "index-jumps-far",
    "index-goes-back",
    "head-is-no-descriptor",
    "head-is-far-away",
    "next-is-no-descriptor",
    "no-status",
    "only-status",
    "short-header",
    "all-empty",
    "header-in-the-hole",
    "data-in-the-hole",
    "data-in-ecam",
    "status-in-the-hole",
    "data-beyond-ram",
    "data-across-the-end-of-ram",
    "data-wraps-around",
    "status-wraps-around",
    "write-from-the-hole",
    "table-of-odd-length",
    "table-of-length-0",
    "table-of-65536",
    "table-in-the-hole",
    "table-inside-a-table",
];

/// What looks odd but is allowed.
const FINE: [&str; 4] =
    ["same-head-sixteen-times", "empty-data", "fifteen-times-all-of-ram", "table-the-device-writes"];

#[test]
fn a_queue_where_none_can_be_needs_a_reset() {
    let image = disk_image();
    let outcome = Guest::new("broken-rings").disk(image.path(), false).run();
    let places = outcome.values("place");
    assert_eq!(places.len(), 30);
    for place in &places {
        assert!(place.ends_with(" needs-reset"), "{places:#?}");
    }
    let after = outcome.values("after");
    assert!(after.iter().all(|line| line.ends_with(" Ok((0, 513))")), "{after:?}");
    assert_eq!(outcome.value("size"), "16", "an enabled queue keeps its size");
    assert_eq!(outcome.value("enabled"), "1");
    assert_eq!(outcome.values("changed"), ["Ok((0, 513))"; 2]);
}

#[test]
fn noise_over_every_register_leaves_a_machine_that_works_and_has_not_grown() {
    // In a process of its own: a test that fails beside this one maps the whole executable for its backtrace.
    if std::env::var_os(MEASURED).is_none() {
        return measured("hostile::noise_over_every_register_leaves_a_machine_that_works_and_has_not_grown");
    }
    for (scenario, writes, cpus) in NOISES {
        for seed in [1, 2] {
            let image = disk_image();
            let _process = alone();
            let text = format!("{scenario} writes={writes} seed={seed}");
            let mut running = Guest::new(&text).cpus(cpus).disk(image.path(), false).start_alone();
            running.wait_for("begin");
            let before = own_bytes();
            let end = running.end();
            let grown = own_bytes().saturating_sub(before);
            let outcome = running.take_down(end);
            all_is_well(&outcome);
            assert!(grown < NOISE_BYTES, "{text}: {grown} bytes more");
        }
    }
}

/// Memory of this process that is neither guest RAM nor a file's: what it has allocated (proc(5), `smaps`). Guest RAM is what is
/// advised to be huge pages (`hg`), and nothing else here is.
fn own_bytes() -> u64 {
    let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
    let (mut own, mut anonymous) = (0, 0);
    for line in smaps.lines() {
        if let Some(kib) = line.strip_prefix("Anonymous:") {
            anonymous = kib.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10;
        } else if let Some(flags) = line.strip_prefix("VmFlags:") {
            own += if flags.split_whitespace().any(|flag| flag == "hg") { 0 } else { anonymous };
        }
    }
    assert!(own > 0, "no mapping of our own was found");
    own
}

#[test]
fn own_memory_is_what_was_allocated_and_not_what_is_mapped() {
    if std::env::var_os(MEASURED).is_none() {
        return measured("hostile::own_memory_is_what_was_allocated_and_not_what_is_mapped");
    }
    let before = own_bytes();
    let executable = fs::File::open("/proc/self/exe").unwrap();
    let len = executable.metadata().unwrap().len() as usize;
    // SAFETY: a new private mapping, which is only read.
    let mapped = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            len,
            libc::PROT_READ,
            libc::MAP_PRIVATE | libc::MAP_POPULATE,
            executable.as_raw_fd(),
            0,
        )
    };
    assert_ne!(mapped, libc::MAP_FAILED);
    assert!(own_bytes() < before + NOISE_BYTES, "a file that is mapped");
    let allocated = vec![1_u8; 8 << 20];
    assert!(own_bytes() >= before + allocated.len() as u64);
}

/// Runs one test of this file in a process of its own.
fn measured(name: &str) {
    let mut alone = Command::new(std::env::current_exe().unwrap());
    let output = alone.args(["--exact", name, "--nocapture"]).env(MEASURED, "1").output().unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

/// Scenario, writes per CPU, CPUs.
const NOISES: [(&str, u32, u8); 5] = [
    ("noise-bar", 10_000, 1),
    ("noise-bar", 2_500, 4),
    ("noise-ecam", 10_000, 1),
    ("noise-window", 2_000, 1),
    ("noise-ports", 2_000, 1),
];

#[test]
fn an_msix_table_full_of_nonsense_harms_nobody() {
    let image = disk_image();
    let outcome = Guest::new("noise-msix").disk(image.path(), false).run();
    assert!(outcome.values("read").iter().all(|&read| read == "Ok((0, 513))"), "{outcome:?}");
    all_is_well(&outcome);
}

#[test]
fn doorbells_rung_in_a_storm_are_only_doorbells() {
    let image = disk_image();
    let outcome = Guest::new("noise-doorbells writes=10000").disk(image.path(), false).run();
    assert_eq!(outcome.value("read"), "Ok((0, 513))");
    all_is_well(&outcome);
}

#[test]
fn odd_buffers_of_console_and_entropy_are_answered_or_ask_for_a_reset() {
    let outcome = Guest::new("rng-abuse").run();
    let good = [("read-only", "Ok(0)"), ("empty", "Ok(0)"), ("a-mib", "Ok(65536)")];
    let bad = [("hole", "Err(NeedsReset)"), ("4-gib", "Err(NeedsReset)")];
    for (name, expected) in good.into_iter().chain(bad) {
        assert_eq!(outcome.value(name), expected, "{name}");
    }
    assert_eq!(outcome.values("after"), ["Ok(16)"; 5]);

    let (reader, writer) = nix::unistd::pipe().unwrap();
    fs::File::from(writer).write_all(b"end\n").unwrap();
    let outcome = Guest::new("console-abuse").virtio_console(Some(reader)).run();
    let expected = [
        "output-in-the-hole needs-reset",
        "output-of-32-mib needs-reset",
        "output-of-nothing used",
        "output-the-device-writes used",
        "input-in-the-hole needs-reset",
        "input-the-device-reads needs-reset",
        "input-of-nothing needs-reset",
    ];
    assert_eq!(outcome.values("case"), expected);
    assert_eq!(outcome.value("got"), "end", "input no buffer could take is still there");
}

#[test]
fn resets_with_requests_in_flight_lose_nothing_but_those() {
    let image = disk_image();
    let outcome = Guest::new("disk-resets-in-flight count=200").disk(image.path(), false).run();
    assert_eq!(outcome.value("after"), "Ok((0, 513))");
}

#[test]
fn a_bar_that_moves_under_a_running_queue_loses_no_request() {
    let image = disk_image();
    let outcome = Guest::new("moving-bars moves=160").cpus(2).disk(image.path(), false).run();
    assert_eq!(outcome.value("enough"), "true");
    assert_eq!(outcome.value("after"), "Ok((0, 513))");
    assert_eq!(outcome.value("rng"), "Some(Ok(16))");
}

#[test]
fn a_hundred_resets_leave_no_thread_and_no_descriptor_behind() {
    let image = disk_image();
    let _process = alone();
    let counts = |rounds: u32| {
        let guest = Guest::new(&format!("disk-resets count={rounds}")).disk(image.path(), false);
        let mut running = guest.start_alone();
        let end = running.end();
        let counts = (device_threads(), event_descriptors());
        assert_eq!(running.take_down(end).value("good"), rounds.to_string());
        counts
    };
    assert_eq!(counts(101), counts(1));
    assert_eq!((device_threads(), event_descriptors()), (0, 0), "nothing outlives its machine");
}

#[test]
fn driver_ok_repeated_without_a_reset_starts_no_second_worker() {
    let image = disk_image();
    let _process = alone();
    let mut running = Guest::new("broken-rings").disk(image.path(), false).start_alone();
    running.end();
    assert_eq!(device_threads(), 1, "the disk's worker and no other");
}

/// Threads of device workers in this process.
fn device_threads() -> usize {
    let names = fs::read_dir("/proc/self/task").unwrap().filter_map(|task| {
        let name = fs::read_to_string(task.unwrap().path().join("comm")).ok()?;
        name.starts_with("virtio-").then_some(())
    });
    names.count()
}

/// Descriptors of eventfds and epolls in this process: what devices are made of.
fn event_descriptors() -> usize {
    let links = fs::read_dir("/proc/self/fd").unwrap().filter_map(|fd| {
        let link = fs::read_link(fd.unwrap().path()).ok()?;
        link.to_str()?.starts_with("anon_inode:[event").then_some(())
    });
    links.count()
}
