//! The virtio devices as an honest driver uses them.

use std::io::Write;
use std::time::Duration;

use crate::harness::{DISK_SECTORS, Guest, alone, disk_image};

#[test]
fn a_disk_serves_every_kind_of_request() {
    let image = disk_image();
    let outcome = Guest::new("disk").disk(image.path(), false).run();
    assert_eq!(outcome.value("capacity"), DISK_SECTORS.to_string());
    assert_eq!(outcome.value("read"), format!("Ok((0, 513)) {:#x}", 1001));
    assert_eq!(outcome.value("write"), "Ok((0, 1))");
    assert_eq!(outcome.value("flush"), "Ok((0, 1))");
    assert_eq!(outcome.value("id"), "Ok((0, 21)) nestling-0");
    assert_eq!(outcome.value("large"), "Ok((0, 4097))");
    assert_eq!(outcome.value("empty"), "Ok((0, 1))");
    assert_eq!(outcome.value("last"), "Ok((0, 513))");
    for failing in ["beyond", "across", "far", "wraps", "partial"] {
        assert_eq!(outcome.value(failing), "Ok((1, 1))", "{failing}: VIRTIO_BLK_S_IOERR");
    }
    assert_eq!(outcome.value("unknown"), "Ok((2, 1))", "VIRTIO_BLK_S_UNSUPP");
    let written = std::fs::read(image.path()).unwrap();
    assert!(written[1024..1536].iter().enumerate().all(|(at, &byte)| byte == at as u8));
    let counters = &outcome.device("virtio-blk", 0).counters;
    // The payload's driver does not take FLUSH, so its one write was made stable at once; that is no flush it asked for.
    assert_eq!((counters["writes"], counters["flushes"], counters["errors"]), (1, 1, 6));
}

#[test]
fn a_readonly_disk_says_so_and_refuses_to_be_written() {
    const F_RO: u64 = 1 << 5;
    let image = disk_image();
    let before = std::fs::read(image.path()).unwrap();
    let outcome = Guest::new("disk").disk(image.path(), true).run();
    let offered = u64::from_str_radix(outcome.value("offered").trim_start_matches("0x"), 16).unwrap();
    assert_eq!(offered & F_RO, F_RO);
    assert_eq!(outcome.value("write"), "Ok((1, 1))");
    assert_eq!(outcome.value("flush"), "Ok((0, 1))");
    assert_eq!(outcome.value("read"), format!("Ok((0, 513)) {:#x}", 1001));
    assert_eq!(std::fs::read(image.path()).unwrap(), before);
}

#[test]
fn every_combination_of_ring_features_works_with_and_without_interrupts() {
    let image = disk_image();
    let outcome = Guest::new("disk-features").disk(image.path(), false).run();
    let good = outcome.values("features");
    assert_eq!(good.len(), 8);
    assert!(good.iter().all(|line| line.ends_with(" 40")), "{good:?}");
}

#[test]
fn a_read_in_steady_state_costs_no_exit() {
    let image = disk_image();
    let run = |count: u32| {
        let outcome = Guest::new(&format!("disk-reads count={count}")).disk(image.path(), false).run();
        assert_eq!(outcome.value("all"), "true");
        let disk = outcome.device("virtio-blk", 0).clone();
        assert_eq!(disk.counters["reads"], u64::from(count));
        (outcome.guest_exits(), disk)
    };
    let (exits, disk) = run(1000);
    let (exits_of_twice, disk_of_twice) = run(2000);
    assert_eq!(exits_of_twice, exits, "1,000 more reads cost nothing");
    assert_eq!(disk_of_twice.trapped_writes, disk.trapped_writes);
    // A read that is done before the guest looks needs no interrupt, and that is as it should be.
    let interrupts = disk_of_twice.counters["interrupts"];
    assert!((1000..=2001).contains(&interrupts), "{interrupts} interrupts for 2,000 reads");
}

#[test]
fn entropy_differs_from_page_to_page() {
    let outcome = Guest::new("rng").run();
    assert_eq!(outcome.values("len"), ["Ok(4096)"; 2]);
    let bytes = outcome.values("bytes");
    assert_ne!(bytes[0], bytes[1]);
    assert_eq!(outcome.device("virtio-rng", 0).counters["bytes"], 8192);
}

#[test]
fn the_virtio_console_takes_input_and_gives_output() {
    let (reader, writer) = nix::unistd::pipe().unwrap();
    let running = Guest::new("console-echo").virtio_console(Some(reader)).start();
    running.wait_for("ready");
    let mut keyboard = std::fs::File::from(writer);
    keyboard.write_all(b"hello\n").unwrap();
    running.wait_for("got hello");
    keyboard.write_all(b"a second, longer line\nend\n").unwrap();
    let outcome = running.finish();
    assert_eq!(outcome.values("got"), ["hello", "a second, longer line", "end"]);
    let counters = &outcome.device("virtio-console", 0).counters;
    assert_eq!(counters["bytes_in"], 32);
}

#[test]
fn console_input_may_be_a_file() {
    let mut script = tempfile::tempfile().unwrap();
    let long = "x".repeat(3000);
    write!(script, "first\n{long}\nend\n").unwrap();
    std::io::Seek::rewind(&mut script).unwrap();
    let outcome = Guest::new("console-echo").virtio_console(Some(script.into())).run();
    assert_eq!(outcome.values("got").last(), Some(&"end"));
    assert_eq!(outcome.device("virtio-console", 0).counters["bytes_in"], 3011);
}

#[test]
fn console_input_that_came_early_and_ended_is_not_lost() {
    let (reader, writer) = nix::unistd::pipe().unwrap();
    std::fs::File::from(writer).write_all(b"first\nend\n").unwrap();
    let outcome = Guest::new("console-echo").virtio_console(Some(reader)).run();
    assert_eq!(outcome.values("got"), ["first", "end"]);
}

#[test]
fn console_input_survives_a_reset_by_the_driver() {
    let (reader, writer) = nix::unistd::pipe().unwrap();
    let mut keyboard = std::fs::File::from(writer);
    keyboard.write_all(b"across a reset\nend\n").unwrap();
    let outcome = Guest::new("console-reset").virtio_console(Some(reader)).run();
    assert_eq!(outcome.values("got"), ["across a reset", "end"]);
}

#[test]
fn ended_input_nobody_takes_costs_no_cpu() {
    let (reader, writer) = nix::unistd::pipe().unwrap();
    std::fs::File::from(writer).write_all(b"unheard\n").unwrap();
    let _process = alone();
    let running = Guest::new("console-deaf").virtio_console(Some(reader)).start_alone();
    running.wait_for("deaf");
    let before = cpu_ticks("virtio-console");
    std::thread::sleep(Duration::from_millis(300));
    let spent = cpu_ticks("virtio-console") - before;
    assert!(spent <= 3, "the worker spins: {spent} of 30 ticks");
}

/// User and system time of this process' thread of that name, in ticks of 10 ms (proc(5), fields 14 and 15).
fn cpu_ticks(name: &str) -> u64 {
    let is_it = |stat: &String| stat.contains(&format!("({name})"));
    let mut tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let stat =
        tasks.find_map(|task| std::fs::read_to_string(task.unwrap().path().join("stat")).ok().filter(is_it));
    let stat = stat.unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[test]
fn the_uart_takes_input() {
    let (reader, writer) = nix::unistd::pipe().unwrap();
    let running = Guest::new("serial-echo").serial_input(reader).start();
    running.wait_for("ready");
    std::fs::File::from(writer).write_all(b"hello\n").unwrap();
    assert_eq!(running.finish().value("got"), "hello");
}

#[test]
fn string_instructions_move_every_byte_through_the_uart() {
    let (reader, writer) = nix::unistd::pipe().unwrap();
    std::fs::File::from(writer).write_all(b"hello").unwrap();
    let outcome = Guest::new("string-io").serial_input(reader).run();
    assert_eq!(outcome.lines, ["printed by one instruction", "got hello"]);
}

#[test]
fn a_console_line_in_steady_state_costs_no_exit() {
    let run = |lines: u32| {
        let outcome = Guest::new(&format!("console-flood lines={lines}")).virtio_console(None).run();
        assert_eq!(outcome.lines.len(), lines as usize);
        assert!(outcome.lines.iter().all(|line| *line == "x".repeat(63)));
        outcome.guest_exits()
    };
    assert_eq!(run(600), run(300));
}
