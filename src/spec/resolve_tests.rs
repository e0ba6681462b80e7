//! Values at and beyond their limits.

use std::io::Write;

use super::*;

fn flag(text: &str) -> Given<String> {
    Given::by_flag("--x", text.to_owned())
}

fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().expect("temp file");
    file.write_all(bytes).expect("write");
    file
}

fn path(file: &tempfile::NamedTempFile) -> Option<Given<PathBuf>> {
    Some(Given::by_flag("--x", file.path().to_owned()))
}

#[test]
fn a_kernel_alone_is_a_whole_spec() {
    let kernel = file(b"x");
    let plan = Config { kernel: path(&kernel), ..Config::default() }.resolve().expect("resolves");
    assert_eq!(plan.machine.cpus, 1);
    assert_eq!(plan.machine.memory_bytes, DEFAULT_MEMORY);
    assert_eq!(plan.machine.cmdline, CmdlinePlan::Append(String::new()));
    assert_eq!(plan.machine.console, ConsoleKind::Virtio);
    assert!(plan.machine.watchdog);
    assert_eq!(plan.machine.balloon, Some(BalloonPlan::default()));
    assert_eq!(plan.machine.rng.bytes_per_second, None);
    assert_eq!(plan.socket, PathBuf::from(DEFAULT_SOCKET));
    assert_eq!(plan.allow_backend, AllowBackend::Hardware);
}

#[test]
fn no_kernel_is_refused() {
    assert!(matches!(Config::default().resolve(), Err(SpecError::NoKernel)));
}

#[test]
fn vcpus_are_one_to_thirty_two_or_auto() {
    for (text, count) in [
        ("1", Some(1)),
        ("32", Some(32)),
        ("0", None),
        ("33", None),
        ("300", None),
        ("-1", None),
        ("two", None),
    ] {
        let config = Config { cpus: Some(flag(text)), ..Config::default() };
        assert_eq!(config.cpu_count().ok(), count, "{text}");
    }
    let auto = Config { cpus: Some(flag("auto")), ..Config::default() }.cpu_count().expect("auto");
    assert!((1..=32).contains(&auto));
}

#[test]
fn a_watchdog_is_on_or_off_however_yaml_spells_it() {
    for (text, on) in
        [("on", Some(true)), ("true", Some(true)), ("off", Some(false)), ("false", Some(false)), ("5", None)]
    {
        let config = Config { watchdog: Some(flag(text)), ..Config::default() };
        assert_eq!(config.has_watchdog().ok(), on, "{text}");
    }
}

#[test]
fn memory_is_huge_pages_within_the_host() {
    let host = Some(1_u64 << 30);
    assert_eq!(check_memory(&flag("32M"), host).expect("least"), 32 << 20);
    assert_eq!(check_memory(&flag("1Gi"), host).expect("most"), 1 << 30);
    for (text, wanted) in [
        ("0", "too little memory: the least is 32M"),
        ("256", "a number without a unit counts bytes"),
        ("33M", "not a multiple of 2 MiB: write 34M"),
        ("1026M", "more than this host has: give at most its 1024M"),
        ("64Ti", "more than this host has"),
        ("lots", "`lots` is not a size"),
    ] {
        let message = check_memory(&flag(text), host).expect_err(text).to_string();
        assert!(message.contains(wanted), "{text}: {message}");
    }
    for text in ["31M", "1024K", "0"] {
        let message = check_memory(&flag(text), host).expect_err(text).to_string();
        assert!(message.ends_with("the least is 32M"), "{text} has its unit: {message}");
    }
}

#[test]
fn a_command_line_is_one_short_line() {
    assert!(check_cmdline(&flag(&"a".repeat(2047))).is_ok());
    for (text, wanted) in [
        ("a".repeat(2048), "has 2048 bytes"),
        ("a\0b".to_owned(), "a NUL at byte 1"),
        ("quiet\nroot=x".to_owned(), "a line break at byte 5"),
    ] {
        let message = check_cmdline(&flag(&text)).expect_err("refused").to_string();
        assert!(message.contains(wanted), "{message}");
    }
}

#[test]
fn an_initrd_that_fills_the_ram_is_refused() {
    let initrd = file(b"");
    initrd.as_file().set_len(64 << 20).expect("sparse");
    let config = Config { initrd: path(&initrd), ..Config::default() };
    assert!(config.initrd_path(65 << 20).is_ok());
    let message = config.initrd_path(64 << 20).expect_err("refused").to_string();
    assert!(message.contains("has 64 MiB and does not fit into 64 MiB of memory"), "{message}");
}

#[test]
fn a_balloon_and_a_limit_are_read_and_refused_where_they_were_typed() {
    let kernel = file(b"x");
    let with = |balloon, rng| Config { kernel: path(&kernel), balloon, rng, ..Config::default() }.resolve();
    let plan = with(Some(flag("off")), Some(flag("1K"))).expect("resolves").machine;
    assert_eq!((plan.balloon, plan.rng.bytes_per_second), (None, Some(1024)));
    for refused in [with(Some(flag("maybe")), None), with(None, Some(flag("0")))] {
        let text = refused.expect_err("refused").to_string();
        assert!(text.starts_with("--x: `") && text.contains("; write for example "), "{text}");
    }
}
