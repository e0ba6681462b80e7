//! Specs good and bad, each with the place and the words of its refusal.

use super::*;

fn refusal(text: &str) -> String {
    parse(text, Path::new("vm.yaml")).expect_err(text).to_string()
}

#[test]
fn a_whole_spec_is_read_with_its_places() {
    let text = "kernel: /boot/vmlinuz\ncpus: 2\nmemory: 1Gi\ndisk:\n  - path: /a.img\n    readonly: true\n\
        balloon: on\nrng: bytes-per-second=1M\n";
    let config = parse(text, Path::new("vm.yaml")).expect("parses");
    let cpus = config.cpus.expect("cpus");
    assert_eq!(cpus.value, "2");
    assert_eq!(cpus.origin.to_string(), "vm.yaml:2:7");
    assert_eq!(config.balloon.expect("balloon").value, "on");
    assert_eq!(config.rng.expect("rng").value, "bytes-per-second=1M");
    assert_eq!(config.disk.len(), 1);
    assert!(config.disk[0].value.readonly);
}

#[test]
fn a_word_that_yaml_may_take_for_a_truth_value_stays_as_it_was_written() {
    for word in ["on", "off", "true", "false"] {
        let config = parse(&format!("watchdog: {word}\n"), Path::new("vm.yaml")).expect("parses");
        assert_eq!(config.watchdog.expect("watchdog").value, word);
    }
}

#[test]
fn a_disk_s_keys_are_read_as_the_flag_s_are() {
    let text = "disk:\n  - path: /a\n    direct: true\n    queues: 2\n    serial: 12\n    bytes-per-second: 10M\n  \
                - partitions:\n      - {label: boot, path: /b, readonly: true}\n      - {label: data, path: /d}\n";
    let config = parse(text, Path::new("vm.yaml")).expect("parses");
    let flags =
        ["/a,direct=true,queues=2,serial=12,bytes-per-second=10M", "partition=boot:/b:ro,partition=data:/d"];
    for (disk, flag) in config.disk.iter().zip(flags) {
        assert_eq!(disk.value, DiskConfig::parse(flag).expect("parses"));
    }
    assert_eq!(config.disk[1].origin.to_string(), "vm.yaml:7:5");
}

#[test]
fn interfaces_are_a_list_with_their_places() {
    let text = "net:\n  - mode: tap\n    queues: 2\n    rx-bytes-per-second: 10M\n  - tap: t1\n";
    let config = parse(text, Path::new("vm.yaml")).expect("parses");
    let [first, second] = config.net.as_slice() else { panic!("two: {:?}", config.net) };
    assert_eq!((first.value.queues.as_deref(), first.origin.to_string()), (Some("2"), "vm.yaml:2:5".into()));
    assert_eq!(first.value.rx_bytes_per_second.as_deref(), Some("10M"));
    assert_eq!(second.value.tap.as_deref(), Some("t1"));
}

#[test]
fn an_empty_spec_says_nothing() {
    for text in ["", "# only a comment\n", "kernel:\ncpus: ~\n"] {
        assert_eq!(parse(text, Path::new("vm.yaml")).expect("parses"), Config::default(), "{text}");
    }
}

#[test]
fn every_key_of_the_list_is_a_key_of_the_file() {
    for key in KEYS.iter().copied().filter(|key| !["disk", "net", "port", "share", "vsock"].contains(key)) {
        let value = if key == "command" { "[x]" } else { "x" };
        assert_ne!(
            parse(&format!("{key}: {value}\n"), Path::new("f")).expect(key),
            Config::default(),
            "{key}"
        );
    }
}

#[test]
fn bad_yaml_is_refused_with_line_and_column() {
    for (text, wanted) in [
        ("kernel: /a\nkernle: /b\n", "vm.yaml:2:1: there is no key `kernle` (did you mean `kernel`?)"),
        ("ram: 1Gi\n", "vm.yaml:1:1: there is no key `ram`"),
        ("zzz: 1\n", "the keys are kernel, initrd"),
        (
            "disk:\n  - path: /a\n    read-only: true\n",
            "vm.yaml:3:5: there is no key `read-only` (did you mean `readonly`?)",
        ),
        (
            "disk:\n  - partitions:\n    - labl: a\n",
            "vm.yaml:3:7: there is no key `labl` (did you mean `label`?)",
        ),
        ("disk:\n  - partitions:\n    - label: a\n", "vm.yaml:3:7: the key `path` is missing here"),
        ("net:\n  - tap: t0\n    mak: 1\n", "vm.yaml:3:5: there is no key `mak` (did you mean `mac`?)"),
        ("disk: /a\n", "vm.yaml:1:7: a list is expected here"),
        ("kernel:\n  - a\n", "vm.yaml:2:3: a single value is expected here"),
        ("kernel: a\nkernel: b\n", "vm.yaml:2:1: the key `kernel` is there twice"),
        ("kernel: [a\n", "vm.yaml:1:9: "),
        ("cmdline: 'x\n", "vm.yaml:1:10: unclosed quote"),
        ("kernel: b: c\n", "vm.yaml:1:10: mapping values are not allowed in this context"),
        ("- a\n", "vm.yaml:1:1: `key: value` lines are expected here"),
        ("kernel: a\n---\nkernel: b\n", "vm.yaml:3:1: "),
    ] {
        let message = refusal(text);
        assert!(message.contains(wanted), "{text:?}: {message}");
        assert!(!message.contains('\n'), "one line: {message}");
    }
}

proptest::proptest! {
    #[test]
    fn any_text_is_read_or_refused_without_a_panic(text in "[ -~\n\t]{0,200}") {
        let _ = parse(&text, Path::new("vm.yaml"));
    }
}
