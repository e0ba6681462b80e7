//! The binary as a user meets it: every kind of bad input gets one sentence with the value, the documented exit code,
//! and leaves nothing behind.
#![allow(clippy::expect_used)] // a test's helper may fail the test

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

const BAD_INPUT: i32 = 201;
const NO_INSTANCE: i32 = 211;

/// A directory with a kernel, an initrd and a disk in it (none of them a true one), and the place of the socket.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("dir");
        fs::write(dir.path().join("kernel"), "no kernel").expect("kernel");
        fs::write(dir.path().join("disk"), [0; 4096]).expect("disk");
        fs::write(dir.path().join("empty"), "").expect("empty");
        fs::create_dir(dir.path().join("folder")).expect("folder");
        let initrd = fs::File::create(dir.path().join("huge")).expect("initrd");
        initrd.set_len(1 << 30).expect("sparse");
        nix::unistd::mkfifo(&dir.path().join("pipe"), nix::sys::stat::Mode::S_IRWXU).expect("pipe");
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path()).expect("list");
        let mut names: Vec<_> =
            entries.map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// `nestling run` in this directory with these flags, a kernel, a socket and a status file.
    fn run(&self, flags: &[&str]) -> Output {
        let mut all =
            vec!["run", "--socket", "n.sock", "--status-file", "status.json", "--allow-backend", "any"];
        if !flags.iter().any(|flag| *flag == "--kernel" || flag.ends_with(".yaml")) {
            all.extend(["--kernel", "kernel"]);
        }
        all.extend(flags);
        nestling(self.dir.path(), &all)
    }
}

fn nestling(dir: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_nestling"))
        .args(arguments)
        .current_dir(dir)
        .env_remove("NESTLING_LOG")
        .env("NESTLING_TERMINATION_LOG", dir.join("no-such-file"))
        .stdin(Stdio::null())
        .output()
        .expect("nestling starts")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// One line that begins with `nestling: `, contains every part, and shows no Rust.
fn assert_one_sentence(case: &str, output: &Output, code: i32, parts: &[&str]) {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{case}: {text}");
    assert!(text.starts_with("nestling: "), "{case}: {text}");
    assert_eq!(text.trim_end().lines().count(), 1, "{case}: one sentence: {text}");
    for part in parts {
        assert!(text.contains(part), "{case}: {part:?} in {text}");
    }
    for debris in ["Err(", "Some(", "panicked", "os error", "{ ", "::"] {
        assert!(!text.contains(debris), "{case}: {debris:?} in {text}");
    }
    assert!(output.stdout.is_empty(), "{case}: stdout is the guest's");
}

#[test]
fn a_status_file_replaces_nothing_but_a_status() {
    let place = Place::new();
    for (name, found) in
        [("disk", "a file that is no status"), ("pipe", "no regular file"), ("folder", "a directory")]
    {
        let flags = ["run", "--socket", "n.sock", "--kernel", "kernel", "--status-file", name];
        let output = nestling(place.dir.path(), &flags);
        assert_one_sentence(name, &output, BAD_INPUT, &["--status-file", name, found]);
    }
    assert_eq!(fs::read(place.path("disk")).expect("disk"), [0; 4096]);
}

#[test]
fn every_bad_flag_is_one_sentence_and_leaves_nothing() {
    let place = Place::new();
    let before = place.names();
    let long = "a".repeat(120);
    let long_cmdline = "a".repeat(2048);
    for (flags, parts) in [
        (vec!["--kernel", "missing"], vec!["--kernel: ", "missing", "No such file or directory"]),
        (vec!["--kernel", "folder"], vec!["the kernel folder is a directory"]),
        (vec!["--kernel", "empty"], vec!["the kernel empty is empty"]),
        (vec!["--kernel", "pipe"], vec!["the kernel pipe is a pipe"]),
        (vec!["--kernel", "/dev/zero"], vec!["the kernel /dev/zero is a character device"]),
        (vec!["--kernel", "kernel/below"], vec!["kernel/below", "Not a directory"]),
        (vec!["--initrd", "missing"], vec!["--initrd: ", "missing", "No such file"]),
        (vec!["--initrd", "huge"], vec!["huge has 1024 MiB", "256 MiB of memory", "--memory"]),
        (vec!["--memory", "0"], vec!["--memory: 0 is too little", "32M"]),
        (vec!["--memory", "31M"], vec!["31M is too little"]),
        (vec!["--memory", "256"], vec!["a number without a unit counts bytes"]),
        (vec!["--memory", "33M"], vec!["33M", "multiple of 2 MiB", "34M"]),
        (vec!["--memory", "64Ti"], vec!["64Ti", "more than this host has"]),
        (vec!["--memory", "99999999999999999999G"], vec!["is not a size"]),
        (vec!["--memory", "1.5G"], vec!["`1.5G` is not a size", "256M"]),
        (vec!["--memory", "-1"], vec!["--memory: `-1` is not a size"]),
        (vec!["--net", "nat"], vec!["--net: mode=nat is planned", "tap=NAME"]),
        (vec!["--share", "/tmp"], vec!["--share: the share `/tmp`: it has no directory"]),
        (
            vec!["--port", "agent"],
            vec!["--port: `agent` does not describe a port: it has no path; write for"],
        ),
        (vec!["--cpus", "0"], vec!["--cpus: `0`", "1 to 32"]),
        (vec!["--cpus", "300"], vec!["--cpus: `300`", "1 to 32"]),
        (vec!["--cpus", "many"], vec!["`many`"]),
        (vec!["--disk", "missing"], vec!["--disk: ", "the disk missing", "No such file"]),
        (vec!["--disk", "path=folder"], vec!["the disk folder cannot be opened", "Is a directory"]),
        (vec!["--disk", "path=folder,readonly=true"], vec!["the disk folder is a directory"]),
        (vec!["--disk", "empty"], vec!["the disk empty has 0 bytes"]),
        (
            vec!["--disk", "path=disk,format=qcow2,io=uring"],
            vec!["the disk disk: io=uring is for raw images"],
        ),
        (vec!["--disk", "partition=disk"], vec!["is not LABEL:PATH"]),
        (vec!["--disk", "path=disk,format=vmdk"], vec!["`vmdk`", "raw"]),
        (vec!["--disk", "path=disk,ro=true"], vec!["no key `ro`"]),
        (vec!["--disk", "readonly=true"], vec!["it has no path"]),
        (vec!["--console", "vga"], vec!["--console: `vga`", "virtio or serial"]),
        (vec!["--log-format", "xml"], vec!["--log-format: `xml`", "text or json"]),
        (vec!["--cmdline", "a\nb"], vec!["--cmdline: ", "a line break at byte 1"]),
        (vec!["--cmdline", &long_cmdline], vec!["2048 bytes", "2047"]),
        (vec!["--cmdline", "a", "--cmdline-replace", "b"], vec!["exclude each other"]),
        (vec!["--", "echo", "a", "--", "b"], vec!["the command's word \"--\""]),
    ] {
        let output = place.run(&flags);
        assert_one_sentence(&flags.join(" "), &output, BAD_INPUT, &parts);
        assert_eq!(place.names(), before, "{flags:?} left something");
    }
    for (flag, path, parts) in [
        ("--socket", long.as_str(), ["has 120 bytes", "107"]),
        ("--status-file", "missing/status.json", ["missing", "No such file"]),
        ("--allow-backend", "none", ["`none`", "hardware or any"]),
        ("--watchdog", "maybe", ["`maybe`", "on or off"]),
        ("--status-file", "folder", ["a directory is there", "folder"]),
    ] {
        let output = nestling(place.dir.path(), &["run", "--kernel", "kernel", flag, path]);
        assert_one_sentence(flag, &output, BAD_INPUT, &parts);
        assert_eq!(place.names(), before, "{flag} left something");
    }
}

#[test]
fn no_kernel_at_all_says_how_to_name_one() {
    let place = Place::new();
    let output = nestling(place.dir.path(), &["run"]);
    assert_one_sentence("run", &output, BAD_INPUT, &["no kernel is given", "--kernel FILE"]);
}

#[test]
fn an_unreadable_kernel_is_told_with_the_reason() {
    let place = Place::new();
    fs::set_permissions(place.path("kernel"), fs::Permissions::from_mode(0o000)).expect("chmod");
    if nix::unistd::geteuid().is_root() {
        // Root reads everything; a dangling link is the nearest thing it cannot read.
        fs::remove_file(place.path("kernel")).expect("remove");
        symlink("loop", place.path("loop")).expect("link");
        let output = place.run(&["--kernel", "loop"]);
        assert_one_sentence("loop", &output, BAD_INPUT, &["loop", "Too many symbolic links"]);
        return;
    }
    assert_one_sentence("mode 0", &place.run(&[]), BAD_INPUT, &["Permission denied", "owner and mode"]);
}

#[test]
fn every_bad_spec_is_one_sentence_with_line_and_column() {
    let place = Place::new();
    for (text, parts) in [
        ("kernel: kernel\ncpus: 300\n", vec!["vm.yaml:2:7: `300`"]),
        ("kernel: kernel\nmemory: 0\n", vec!["vm.yaml:2:9: 0 is too little"]),
        ("kernel: missing\n", vec!["vm.yaml:1:9: the kernel missing"]),
        ("kernel: kernel\nkernle: b\n", vec!["vm.yaml:2:1: ", "(did you mean `kernel`?)"]),
        ("kernel: [a\n", vec!["vm.yaml:1:9: "]),
        ("kernel: 'a\n", vec!["vm.yaml:1:9: unclosed quote"]),
        ("kernel: kernel\n  cpus: 2\n", vec!["vm.yaml:2:7: "]),
        ("kernel: kernel\ndisk:\n  - path: missing\n", vec!["vm.yaml:3:5: the disk missing"]),
        (
            "kernel: kernel\ndisk:\n  - readonly: true\n",
            vec!["vm.yaml:3:5: the disk: it has neither a path nor partitions"],
        ),
        ("- kernel\n", vec!["vm.yaml:1:1: `key: value` lines are expected"]),
        ("kernel: kernel\nlog-format: loud\n", vec!["vm.yaml:2:13: `loud`"]),
    ] {
        fs::write(place.path("vm.yaml"), text).expect("spec");
        let before = place.names();
        assert_one_sentence(text, &place.run(&["vm.yaml"]), BAD_INPUT, &parts);
        assert_eq!(place.names(), before, "{text:?} left something");
    }
}

#[test]
fn a_spec_that_is_no_text_is_named() {
    let place = Place::new();
    fs::write(place.path("vm.yaml"), [0x7f, b'E', b'L', b'F', 0xff]).expect("spec");
    assert_one_sentence("ELF", &place.run(&["vm.yaml"]), BAD_INPUT, &["vm.yaml", "not UTF-8", "--kernel"]);
    let missing = place.run(&["other.yaml"]);
    assert_one_sentence("missing", &missing, BAD_INPUT, &["other.yaml", "No such file"]);
}

/// Needs a /dev/kvm that can be opened: the kernel is read once the node is found able.
#[test]
fn a_kernel_that_is_none_fails_the_run_and_only_the_status_file_stays() {
    let place = Place::new();
    let before = place.names();
    let output = place.run(&["--log-format", "json"]);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(BAD_INPUT), "{text}");
    let last: serde_json::Value = serde_json::from_str(text.lines().last().expect("log")).expect("JSON");
    assert_eq!(last["level"], "ERROR");
    assert!(last["message"].as_str().expect("text").contains("kernel is not an x86-64 kernel"), "{text}");
    let status: serde_json::Value =
        serde_json::from_slice(&fs::read(place.path("status.json")).expect("status file")).expect("JSON");
    assert_eq!((&status["state"], &status["exit_code"]), (&"failed".into(), &BAD_INPUT.into()));
    fs::remove_file(place.path("status.json")).expect("remove");
    assert_eq!(place.names(), before, "neither socket nor lock nor temporary file stays");
}

/// What was said as JSON lines, each a message.
fn messages(output: &Output) -> Vec<String> {
    let message = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).expect(line);
        line["message"].as_str().expect("a message").to_owned()
    };
    stderr(output).lines().map(message).collect()
}

#[test]
fn what_fails_before_there_is_a_log_is_told_in_the_log_s_form() {
    let place = Place::new();
    fs::write(place.path("vm.yaml"), "kernel: missing\nlog-format: json\n").expect("spec");
    fs::write(place.path("n.sock"), "precious").expect("file");
    for (flags, part) in [
        (&["--log-format", "json", "--kernel", "missing"][..], "--kernel: the kernel missing"),
        (&["--log-format", "json", "--disk", "partition=a"], "does not describe a disk"),
        (&["--log-format", "json", "no.yaml"], "the spec no.yaml cannot be read"),
        (&["vm.yaml"], "vm.yaml:1:9: the kernel missing"),
        (&["vm.yaml", "--port", "a"], "does not describe a port"),
        (&["--log-format", "json"], "n.sock exists and is not a socket"),
    ] {
        let output = place.run(flags);
        assert_eq!(output.status.code(), Some(BAD_INPUT), "{flags:?}");
        let said = messages(&output);
        assert!(said.len() == 1 && said[0].contains(part), "{flags:?}: {said:?}");
    }
    let text = place.run(&["vm.yaml", "--log-format", "text"]);
    assert_one_sentence("the flag wins", &text, BAD_INPUT, &["the kernel missing"]);
}

#[test]
fn a_log_filter_that_is_none_is_refused_and_an_empty_one_is_none() {
    let place = Place::new();
    let run = |filter: &str, format: &str| {
        Command::new(env!("CARGO_BIN_EXE_nestling"))
            .args(["run", "--kernel", "missing", "--log-format", format])
            .current_dir(place.dir.path())
            .env("NESTLING_LOG", filter)
            .env("NESTLING_TERMINATION_LOG", "no-such-file")
            .output()
            .expect("nestling starts")
    };
    for filter in ["verbose", "nestling=loud", "infos,debug"] {
        let wanted = ["NESTLING_LOG: `", filter, "write error, warn, info, debug, trace or off"];
        let output = run(filter, "text");
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(BAD_INPUT), "{text}");
        assert!(wanted.iter().all(|part| text.contains(part)), "{text}");
        assert!(messages(&run(filter, "json"))[0].contains("NESTLING_LOG"));
    }
    for filter in ["", "debug", "info,nestling::vmm=trace"] {
        assert!(stderr(&run(filter, "text")).contains("the kernel missing"), "{filter}");
    }
}

#[test]
fn a_limit_of_open_files_is_named_and_no_fault_of_the_spec() {
    const PREFLIGHT_FAILED: i32 = 200;
    let place = Place::new();
    for limit in [5, 8, 10, 12, 14] {
        let script =
            format!("ulimit -n {limit}; exec \"$0\" run --kernel kernel --socket n.sock --allow-backend any");
        let output = Command::new("sh")
            .args(["-c", &script, env!("CARGO_BIN_EXE_nestling")])
            .current_dir(place.dir.path())
            .env("NESTLING_TERMINATION_LOG", "no-such-file")
            .output()
            .expect("nestling starts");
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(PREFLIGHT_FAILED), "{limit}: {text}");
        assert!(text.contains("ulimit") && text.contains("raise the limit"), "{limit}: {text}");
    }
}

/// Needs a /dev/kvm that can be opened.
#[test]
fn what_a_share_s_memory_costs_is_told_of_a_machine_that_is_there() {
    let place = Place::new();
    let text = stderr(&place.run(&["--share", "tag=data,dir=folder"]));
    assert!(text.contains("is not an x86-64 kernel") && !text.contains("guest RAM"), "{text}");
}

#[test]
fn a_flag_wins_over_the_spec() {
    let place = Place::new();
    fs::write(place.path("vm.yaml"), "kernel: kernel\ncpus: 300\n").expect("spec");
    let output = place.run(&["vm.yaml", "--cpus", "0"]);
    assert_one_sentence("flag", &output, BAD_INPUT, &["--cpus: `0`"]);
}

#[test]
fn a_socket_in_use_is_refused_with_its_owner_and_left_alone() {
    let place = Place::new();
    let _live = UnixListener::bind(place.path("n.sock")).expect("bind");
    let before = place.names();
    let owner = format!("process {}", std::process::id());
    assert_one_sentence("live", &place.run(&[]), BAD_INPUT, &["n.sock is in use by", &owner, "--socket"]);
    assert_eq!(place.names(), before);
}

#[test]
fn a_file_in_the_socket_s_place_is_refused_and_left_alone() {
    let place = Place::new();
    fs::write(place.path("n.sock"), "precious").expect("file");
    assert_one_sentence("file", &place.run(&[]), BAD_INPUT, &["n.sock exists and is not a socket"]);
    assert_eq!(fs::read_to_string(place.path("n.sock")).expect("kept"), "precious");
}

#[test]
fn a_socket_path_below_a_file_is_refused() {
    let place = Place::new();
    let output = nestling(place.dir.path(), &["run", "--kernel", "kernel", "--socket", "disk/n.sock"]);
    assert_one_sentence("below", &output, BAD_INPUT, &["directory disk", "--socket"]);
}

#[test]
fn the_termination_log_gets_the_reason_of_bad_input() {
    let place = Place::new();
    fs::write(place.path("log"), "x".repeat(5000)).expect("log");
    let output = Command::new(env!("CARGO_BIN_EXE_nestling"))
        .args(["run", "--kernel", "missing"])
        .current_dir(place.dir.path())
        .env("NESTLING_TERMINATION_LOG", place.path("log"))
        .output()
        .expect("nestling starts");
    assert_eq!(output.status.code(), Some(BAD_INPUT));
    let words: serde_json::Value =
        serde_json::from_slice(&fs::read(place.path("log")).expect("log")).expect("JSON");
    assert_eq!(words["state"], "failed");
    assert_eq!(words["exit_code"], 201);
    assert_eq!(words["reason"]["kind"], "bad-input");
    assert!(words["message"].as_str().expect("text").contains("missing"));
}

#[test]
fn without_an_instance_every_client_command_says_so() {
    let place = Place::new();
    drop(UnixListener::bind(place.path("dead.sock")).expect("bind"));
    for (socket, why) in [
        ("none.sock", "there is no such socket"),
        ("dead.sock", "its process is gone"),
        ("disk", "that is no socket"),
    ] {
        for command in [
            vec!["status"],
            vec!["status", "--json"],
            vec!["status", "--probe", "live"],
            vec!["events"],
            vec!["events", "--follow"],
            vec!["stop"],
        ] {
            let arguments = [command.clone(), vec!["--socket", socket]].concat();
            let output = nestling(place.dir.path(), &arguments);
            assert_one_sentence(
                &arguments.join(" "),
                &output,
                NO_INSTANCE,
                &["no VM answers on", socket, why],
            );
        }
    }
}

#[test]
fn usage_errors_are_bad_input_and_help_is_not() {
    let place = Place::new();
    for arguments in [vec![], vec!["fly"], vec!["run", "--wings"], vec!["status", "--probe", "happy"]] {
        let output = nestling(place.dir.path(), &arguments);
        assert_eq!(output.status.code(), Some(BAD_INPUT), "{arguments:?}");
        assert!(!stderr(&output).is_empty());
        assert!(output.stdout.is_empty());
    }
    for (arguments, part) in [
        (vec!["--help"], "run"),
        (vec!["--version"], env!("CARGO_PKG_VERSION")),
        (vec!["run", "--help"], "Examples:"),
        (vec!["status", "--help"], "startupProbe"),
    ] {
        let output = nestling(place.dir.path(), &arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        assert!(String::from_utf8_lossy(&output.stdout).contains(part), "{arguments:?}");
    }
}
