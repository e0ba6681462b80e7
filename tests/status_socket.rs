//! The status socket, served without a VM: what it answers, and what hostile clients get.
#![allow(clippy::expect_used)] // a test's helper may fail the test

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nestling::backend::console::ConsoleHub;
use nestling::status::client::Client;
use nestling::status::clock::Clock;
use nestling::status::model::{BootStage, DeviceFacts, EndReason, MachineFacts, VcpuFacts};
use nestling::status::operation::{Asked, Operation, Refusal};
use nestling::status::probe::Probe;
use nestling::status::publisher::Publisher;
use nestling::status::server::{Requests, Server, StopRequest};
use nestling::status::snapshot::{End, PlanSummary, State};
use nestling::status::socket::claim;
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::{mpsc, oneshot};

/// A server on a thread of its own with its own runtime, as in `nestling run`.
struct Served {
    publisher: Arc<Publisher>,
    console: Arc<ConsoleHub>,
    socket: PathBuf,
    stops: mpsc::Receiver<StopRequest>,
    operations: Option<mpsc::Receiver<Asked>>,
    finish: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
    _dir: TempDir,
}

fn fake_facts(calls: u64) -> MachineFacts {
    let exits = [("io".to_owned(), 10 + calls), ("hlt".to_owned(), 2)].into_iter().collect();
    let counters = [("reads".to_owned(), 5)].into_iter().collect();
    MachineFacts {
        vcpus: vec![VcpuFacts {
            state: "running".into(),
            exits,
            kvm_exits_total: Some(99),
            ..VcpuFacts::default()
        }],
        devices: vec![DeviceFacts {
            kind: "virtio-blk".into(),
            address: "00:02.0".into(),
            counters,
            ..DeviceFacts::default()
        }],
        exits_total: 12 + calls,
        ..MachineFacts::default()
    }
}

fn serve() -> Served {
    let dir = tempfile::tempdir().expect("dir");
    let socket = dir.path().join("n.sock");
    let publisher = Arc::new(Publisher::new(Clock::begin(), PlanSummary::default(), None));
    let calls = AtomicU64::new(0);
    publisher.watch(Box::new(move || Some(fake_facts(calls.fetch_add(1, Ordering::Relaxed)))));
    let (ask_stop, stops) = mpsc::channel(1);
    let (operations, asked) = mpsc::channel(1);
    let requests = Requests { stop: ask_stop, operations };
    let (finish, finished) = oneshot::channel();
    let (ready, is_ready) = std::sync::mpsc::channel();
    let output = std::fs::File::create("/dev/null").expect("opens");
    let console = Arc::new(ConsoleHub::new(output.into(), 4096).expect("console"));
    let server_console = Arc::clone(&console);
    let (server_publisher, server_socket) = (Arc::clone(&publisher), socket.clone());
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(async {
            let server = Server::start(
                claim(&server_socket).expect("claim"),
                server_publisher,
                requests,
                server_console,
            );
            ready.send(()).expect("test waits");
            let _ = finished.await;
            server.finish().await;
        });
    });
    is_ready.recv().expect("server starts");
    let (finish, thread) = (Some(finish), Some(thread));
    Served { publisher, console, socket, stops, operations: Some(asked), finish, thread, _dir: dir }
}

impl Served {
    fn finish(&mut self) {
        drop(self.finish.take());
        if let Some(thread) = self.thread.take() {
            thread.join().expect("server ends");
        }
    }

    fn end(&self) {
        let end = End {
            reason: EndReason::PowerOff,
            exit_code: 0,
            exit_name: "success".into(),
            message: "the guest powered off".into(),
            last_exit: None,
            console_tail: Vec::new(),
        };
        self.publisher.finish(State::Stopped, &end);
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.finish();
    }
}

/// Sends bytes as they are and reads until the server closes.
fn raw(socket: &Path, request: &[u8]) -> String {
    let mut stream = UnixStream::connect(socket).expect("connect");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("timeout");
    let _ = stream.write_all(request);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

fn get(socket: &Path, path: &str) -> (String, String) {
    let answer = raw(socket, format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes());
    let (head, body) = answer.split_once("\r\n\r\n").expect("a whole answer");
    (head.to_owned(), body.to_owned())
}

fn on_client<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime").block_on(future)
}

#[test]
fn the_status_has_state_stages_and_live_facts() {
    let served = serve();
    served.publisher.enter(State::Booting);
    served.publisher.reach(BootStage::Entered, Clock::begin().now());
    let (head, body) = get(&served.socket, "/v1/status");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(head.contains("application/json"));
    let status: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(status["state"], "booting");
    assert_eq!(status["stages"][0]["stage"], "entered");
    assert_eq!(status["devices"][0]["kind"], "virtio-blk");
    let before = status["exits_total"].as_u64().expect("number");
    let (_, body) = get(&served.socket, "/v1/status");
    let after: Value = serde_json::from_str(&body).expect("JSON");
    assert!(after["exits_total"].as_u64() > Some(before), "facts are read anew for each request");
}

#[test]
fn our_own_client_reads_what_the_server_writes() {
    let mut served = serve();
    served.publisher.enter(State::Running);
    let client = Client::new(&served.socket);
    let status = on_client(client.status()).expect("status");
    assert_eq!(status.state, State::Running);
    on_client(client.stop()).expect("accepted");
    on_client(client.stop()).expect("asking twice changes nothing");
    assert_eq!(served.stops.try_recv(), Ok(StopRequest));
    assert!(served.stops.try_recv().is_err());
}

#[test]
fn probes_follow_state_and_stage() {
    let served = serve();
    let answers = |served: &Served| {
        let status = served.publisher.status();
        [Probe::Startup, Probe::Live, Probe::Ready].map(|probe| probe.holds(&status))
    };
    let now = || Clock::begin().now();
    assert_eq!(answers(&served), [false, true, false]);
    served.publisher.enter(State::Booting);
    served.publisher.reach(BootStage::Entered, now());
    assert_eq!(answers(&served), [false, true, false]);
    served.publisher.reach(BootStage::Kernel, now());
    served.publisher.enter(State::Running);
    assert_eq!(answers(&served), [true, true, false]);
    served.publisher.reach(BootStage::Init, now());
    assert_eq!(answers(&served), [true, true, true]);
    served.publisher.enter(State::Stopping);
    assert_eq!(answers(&served), [false, true, false]);
    served.end();
    assert_eq!(answers(&served), [false, false, false]);
}

#[test]
fn a_stream_replays_follows_and_delivers_the_end() {
    let mut served = serve();
    served.publisher.enter(State::Creating);
    let socket = served.socket.clone();
    let reader = std::thread::spawn(move || get(&socket, "/v1/events").1);
    std::thread::sleep(Duration::from_millis(100));
    served.publisher.warn("a disk is slow");
    served.end();
    served.finish();
    let body = reader.join().expect("reader");
    for part in [r#""state":"preflight""#, r#""state":"creating""#, "a disk is slow", r#""kind":"ended""#] {
        assert!(body.contains(part), "{part} in {body}");
    }
}

#[test]
fn a_stream_without_follow_ends_by_itself() {
    let served = serve();
    let mut lines = 0;
    let count = |bytes: &[u8]| {
        lines += bytes.iter().filter(|byte| **byte == b'\n').count();
        Ok(())
    };
    on_client(Client::new(&served.socket).events(false, count)).expect("stream");
    assert_eq!(lines, 1);
}

#[test]
fn metrics_are_openmetrics_text() {
    let served = serve();
    served.publisher.enter(State::Running);
    served.publisher.reach(BootStage::Entered, Clock::begin().now());
    let (head, body) = get(&served.socket, "/metrics");
    assert!(head.contains("application/openmetrics-text"), "{head}");
    for line in [
        r#"nestling_state{state="running"} 1"#,
        r#"nestling_exits_total{vcpu="0",reason="hlt"} 2"#,
        r#"nestling_kvm_exits_total{vcpu="0"} 99"#,
        r#"nestling_device_total{device="virtio-blk",address="00:02.0",counter="reads"} 5"#,
        r#"nestling_boot_stage_seconds{stage="entered"}"#,
        r#"nestling_memory_bytes{kind="huge"} 0"#,
        "# EOF",
    ] {
        assert!(body.contains(line), "{line} in\n{body}");
    }
}

#[test]
fn every_error_is_one_sentence_of_ours_in_json() {
    let served = serve();
    served.publisher.enter(State::Running);
    let post = |path: &str, body: &str| {
        format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len())
    };
    let long = format!("{{\"target\": \"{}\"}}", "1".repeat(5000));
    for (request, code, words) in [
        ("GET /nothing HTTP/1.1\r\nhost: x\r\n\r\n".to_owned(), 404, "there is nothing at /nothing"),
        ("DELETE /v1/status HTTP/1.1\r\nhost: x\r\n\r\n".into(), 405, "/v1/status does not take DELETE"),
        ("GET /v1/stop HTTP/1.1\r\nhost: x\r\n\r\n".into(), 405, "what changes the VM is POST"),
        ("POST /v1/console/log HTTP/1.1\r\nhost: x\r\n\r\n".into(), 405, "what only asks is GET"),
        ("GET /v1/events?follow=perhaps HTTP/1.1\r\nhost: x\r\n\r\n".into(), 400, "follow=true"),
        ("GET /v1/events?folow=true HTTP/1.1\r\nhost: x\r\n\r\n".into(), 400, "follow=true"),
        ("GET /v1/console/log?tail=many HTTP/1.1\r\nhost: x\r\n\r\n".into(), 400, "tail=LINES"),
        ("GET /v1/console/attach?tail=-1 HTTP/1.1\r\nhost: x\r\n\r\n".into(), 400, "tail=LINES"),
        (post("/v1/memory", ""), 400, "there is no body: send {\"target\": \"128M\"}"),
        (post("/v1/memory", "{"), 400, "the body is no JSON: send {"),
        (post("/v1/memory", "{\"tarjet\": 1}"), 400, "the body is not what this path takes: send {"),
        (post("/v1/memory", "{\"target\": \"much\"}"), 400, "`much` is not a size: write for example 512M"),
        (post("/v1/memory", &long), 413, "more than 4096 bytes"),
        (post("/v1/disks/resize", "[]"), 400, "send {\"disk\": \"vda\", \"size\": \"20G\"}"),
        (post("/v1/disks/resize", "{\"disk\": 0, \"size\": \"big\"}"), 400, "`big` is not a size"),
        (post("/v1/console/resize", "80x24"), 400, "send {\"cols\": 80, \"rows\": 24}"),
        (post("/v1/net/%ff/up", ""), 400, "by its number"),
    ] {
        let answer = raw(&served.socket, request.as_bytes());
        assert!(answer.starts_with(&format!("HTTP/1.1 {code}")), "{request}: {answer}");
        let body = answer.split_once("\r\n\r\n").expect("body").1;
        let body: Value = serde_json::from_str(body).expect("JSON");
        let error = body["error"].as_str().expect("words");
        assert!(error.contains(words), "{request}: {error}");
        assert!(!error.contains("line 1") && !error.contains("eserialize"), "not of ours: {error}");
        assert_eq!(body.as_object().map(serde_json::Map::len), Some(1), "{body}");
    }
}

#[test]
fn a_body_that_does_not_come_is_not_waited_for() {
    let served = serve();
    let begun = Instant::now();
    let head = b"POST /v1/memory HTTP/1.1\r\nhost: x\r\ncontent-length: 20\r\n\r\n{";
    let answer = raw(&served.socket, head);
    assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("did not come within"), "{answer}");
    assert!(begun.elapsed() < Duration::from_secs(8));
}

/// The command as a user runs it.
fn nestling(arguments: &[&str], socket: &Path) -> std::process::Output {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_nestling"));
    command.args(arguments).arg("--socket").arg(socket).stdin(std::process::Stdio::null());
    command.output().expect("nestling starts")
}

#[test]
fn each_kind_of_refusal_has_its_own_exit_code() {
    let mut served = serve();
    served.publisher.enter(State::Running);
    let (socket, mut operations) = (served.socket.clone(), served.operations.take().expect("operations"));
    let machine = std::thread::spawn(move || {
        while let Some(Asked { operation, answer }) = operations.blocking_recv() {
            let _ = answer.send(match operation {
                Operation::Pause => Err(Refusal::NotNow("it sleeps".into())),
                Operation::Resume => Ok(()),
                Operation::SetMemory { .. } => Err(Refusal::Cannot("it has no balloon".into())),
                Operation::SetLink { interface, up } if interface == "t/0" && up => Ok(()),
                Operation::SetLink { interface, .. } => {
                    Err(Refusal::Bad(format!("no interface {interface}")))
                }
                Operation::ResizeDisk { .. } => Err(Refusal::Failed("no space".into())),
            });
        }
    });
    for (arguments, code, words) in [
        (&["resume"][..], 0, ""),
        (&["link", "t/0", "up"], 0, ""),
        (&["link", "eth0", "up"], 201, "cannot take that: no interface eth0"),
        (&["memory", "lots"], 201, "`lots` is not a size"),
        (&["memory", "64M"], 212, "refused: it has no balloon"),
        (&["pause"], 212, "refused: it sleeps"),
        (&["disk", "resize", "vda", "2G"], 212, "refused: no space"),
    ] {
        let output = nestling(arguments, &socket);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
        assert!(text.contains(words) && text.lines().count() <= 1, "{arguments:?}: {text}");
    }
    served.end();
    assert_eq!(nestling(&["stop"], &socket).status.code(), Some(212), "it has ended and still answers");
    served.finish();
    assert_eq!(nestling(&["stop"], &socket).status.code(), Some(211), "none answers");
    machine.join().expect("ends");
}

#[test]
fn a_stop_after_the_end_is_a_conflict() {
    let served = serve();
    served.end();
    let refusal = on_client(Client::new(&served.socket).stop()).expect_err("ended").to_string();
    assert!(refusal.contains("the machine has already ended"), "{refusal}");
}

#[test]
fn garbage_ends_its_own_connection_only() {
    let served = serve();
    let big_head = format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(1 << 20));
    let big_body =
        format!("POST /v1/stop HTTP/1.1\r\ncontent-length: 10000000\r\n\r\n{}", "z".repeat(10_000_000));
    let mut noise = Vec::new();
    for number in 0..100_000_u32 {
        noise.extend_from_slice(&number.wrapping_mul(2_654_435_761).to_le_bytes());
    }
    let endless_chunk =
        b"POST /v1/stop HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFFF\r\n".as_slice();
    let requests = [
        noise.as_slice(),
        b"\0\0\0\0",
        b"\r\n\r\n\r\n",
        big_head.as_bytes(),
        big_body.as_bytes(),
        endless_chunk,
    ];
    for request in requests {
        raw(&served.socket, request);
        assert!(get(&served.socket, "/v1/status").0.starts_with("HTTP/1.1 200"));
    }
}

#[test]
fn idle_connections_however_many_keep_no_probe_out() {
    let served = serve();
    served.publisher.enter(State::Running);
    let idle: Vec<_> = (0..300).map(|_| UnixStream::connect(&served.socket).expect("connect")).collect();
    let begun = Instant::now();
    for _ in 0..10 {
        let output = nestling(&["status", "--probe", "live"], &served.socket);
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert!(begun.elapsed() < Duration::from_millis(2500), "nobody waits until an idle one is cut");
    drop(idle);
}

#[test]
fn idle_connections_are_few_and_the_oldest_goes_first() {
    let served = serve();
    let connect = || {
        let stream = UnixStream::connect(&served.socket).expect("connect");
        stream.set_read_timeout(Some(Duration::from_secs(2))).expect("timeout");
        stream
    };
    let mut idle: Vec<_> = (0..65).map(|_| connect()).collect();
    assert_eq!(idle[0].read(&mut [0]).expect("it is closed"), 0);
    idle[1].write_all(b"GET /v1/status HTTP/1.1\r\nhost: x\r\n\r\n").expect("the second asks");
    let mut answer = [0; 12];
    idle[1].read_exact(&mut answer).expect("and is answered");
    assert_eq!(&answer, b"HTTP/1.1 200");
}

#[test]
fn requests_that_are_being_answered_are_bounded() {
    let mut served = serve();
    served.publisher.enter(State::Running);
    // A machine that takes its time: every request waits for it.
    let operations = served.operations.take().expect("operations");
    let asking: Vec<_> = (0..64)
        .map(|_| {
            let mut stream = UnixStream::connect(&served.socket).expect("connect");
            stream.write_all(b"POST /v1/pause HTTP/1.1\r\nhost: x\r\n\r\n").expect("ask");
            stream
        })
        .collect();
    let begun = Instant::now();
    let refused = loop {
        let answer = raw(&served.socket, b"GET /v1/status HTTP/1.1\r\nhost: x\r\n\r\n");
        if answer.starts_with("HTTP/1.1 503") {
            break answer;
        }
        assert!(begun.elapsed() < Duration::from_secs(5), "there is no bound: {answer}");
    };
    assert!(refused.contains("try again") && refused.ends_with('}'), "{refused}");
    assert_eq!(nestling(&["status"], &served.socket).status.code(), Some(212), "busy is not absent");
    drop(operations);
    drop(asking);
}

#[test]
fn a_slow_head_is_cut() {
    let served = serve();
    let mut stream = UnixStream::connect(&served.socket).expect("connect");
    let begun = Instant::now();
    for byte in b"GET /v1/status HTTP/1.1\r\nhost: x".iter().cycle() {
        if stream.write_all(&[*byte]).is_err() || begun.elapsed() > Duration::from_secs(8) {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(begun.elapsed() < Duration::from_secs(6), "a head that drips is not for ever");
}

#[test]
fn streams_are_bounded_apart_from_questions() {
    let served = serve();
    let streams: Vec<_> = (0..16)
        .map(|_| {
            let mut stream = UnixStream::connect(&served.socket).expect("connect");
            stream.write_all(b"GET /v1/events HTTP/1.1\r\nhost: x\r\n\r\n").expect("ask");
            let mut first = [0; 12];
            stream.read_exact(&mut first).expect("head");
            stream
        })
        .collect();
    assert!(get(&served.socket, "/v1/events").0.starts_with("HTTP/1.1 503"));
    assert!(get(&served.socket, "/v1/status").0.starts_with("HTTP/1.1 200"));
    drop(streams);
    let begun = Instant::now();
    while !get(&served.socket, "/v1/events?follow=false").0.starts_with("HTTP/1.1 200") {
        assert!(begun.elapsed() < Duration::from_secs(5), "closed streams give their place back");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_stream_that_never_reads_is_told_that_it_lags() {
    let served = serve();
    let mut stream = UnixStream::connect(&served.socket).expect("connect");
    stream.write_all(b"GET /v1/events HTTP/1.1\r\nhost: x\r\n\r\n").expect("ask");
    std::thread::sleep(Duration::from_millis(100));
    let text = "x".repeat(1000);
    for _ in 0..5_000 {
        served.publisher.warn(&text);
    }
    let mut answer = Vec::new();
    stream.set_read_timeout(Some(Duration::from_secs(5))).expect("timeout");
    stream.read_to_end(&mut answer).expect("the stream is ended");
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.contains(r#""kind":"lagged""#));
    assert!(answer.len() < 4 << 20, "{} bytes", answer.len());
}

#[test]
fn an_idle_client_delays_the_end_by_a_second_at_most() {
    let mut served = serve();
    let _idle = UnixStream::connect(&served.socket).expect("connect");
    std::thread::sleep(Duration::from_millis(50));
    let begun = Instant::now();
    served.end();
    served.finish();
    assert!(begun.elapsed() < Duration::from_secs(2));
    assert!(!served.socket.exists());
}

/// Opens an attachment by hand and returns the stream after the switch, with what of it came along.
fn attach(socket: &Path, query: &str) -> UnixStream {
    let mut stream = UnixStream::connect(socket).expect("connect");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("timeout");
    let request = format!(
        "GET /v1/console/attach{query} HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: nestling-console\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).expect("write");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("a head");
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).expect("text");
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    assert!(head.contains("upgrade: nestling-console") && head.contains("connection: upgrade"), "{head}");
    assert!(!head.contains("close"), "{head}");
    stream
}

fn read_text(stream: &mut UnixStream, len: usize) -> String {
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes).expect("enough bytes");
    String::from_utf8(bytes).expect("text")
}

/// What clients typed, when at least `len` bytes of it have come.
fn typed(console: &ConsoleHub, len: usize) -> String {
    let start = Instant::now();
    let mut typed = Vec::new();
    while typed.len() < len {
        typed.extend(console.input().read(len));
        assert!(start.elapsed() < Duration::from_secs(10), "only {} bytes came", typed.len());
        std::thread::sleep(Duration::from_millis(1));
    }
    String::from_utf8(typed).expect("text")
}

#[test]
fn the_console_log_is_replayed_from_any_place() {
    let served = serve();
    served.console.write(b"one\r\ntwo\r\nthree\r\n");
    let log = |query: &str| get(&served.socket, &format!("/v1/console/log{query}"));
    let (head, body) = log("");
    assert!(
        head.contains("nestling-console-first: 0") && head.contains("nestling-console-missed: 0"),
        "{head}"
    );
    assert!(head.contains("application/octet-stream"), "{head}");
    assert!(body.contains("one\r\ntwo\r\nthree\r\n"), "{body}");
    let (head, body) = log("?tail=1");
    assert!(
        head.contains("nestling-console-first: 10") && body.contains("three") && !body.contains("two"),
        "{body}"
    );
    let (_, body) = log("?since=5");
    assert!(body.contains("two") && !body.contains("one"), "{body}");
    served.console.write(&[b'x'; 5000]);
    let (head, _) = log("?since=17");
    assert!(head.contains("nestling-console-first: 921"), "{head}");
    assert!(head.contains("nestling-console-missed: 904"), "{head}");
    let (head, _) = log("?since=99999999");
    assert!(head.contains("nestling-console-first: 5017"), "{head}");
    for query in ["?since=1&tail=1", "?since=x", "?tail=-1", "?follow=maybe", "?color=red"] {
        let (head, body) = log(query);
        assert!(head.starts_with("HTTP/1.1 400") && body.contains("error"), "{query}: {head}");
    }
}

#[test]
fn a_follower_gets_what_comes_until_the_console_ends() {
    let served = serve();
    served.console.write(b"before\n");
    let (console, socket) = (Arc::clone(&served.console), served.socket.clone());
    let (started, has_started) = std::sync::mpsc::channel();
    let follower = std::thread::spawn(move || {
        let mut text = Vec::new();
        let sink = |bytes: &[u8]| {
            text.extend_from_slice(bytes);
            let _ = started.send(());
            Ok(())
        };
        let client = Client::new(&socket);
        on_client(client.console_log(true, None, |missed| assert_eq!(missed, 0), sink)).expect("follows");
        String::from_utf8(text).expect("text")
    });
    has_started.recv().expect("the replay comes");
    for _ in 0..100 {
        console.write(b"live\n");
    }
    console.close();
    assert_eq!(follower.join().expect("ends"), format!("before\n{}", "live\n".repeat(100)));
}

#[test]
fn an_attached_client_reads_and_types() {
    let served = serve();
    served.console.write(b"old\nprompt> ");
    let mut client = attach(&served.socket, "?tail=1");
    assert_eq!(read_text(&mut client, 8), "prompt> ");
    client.write_all(b"ls\r").expect("types");
    assert_eq!(typed(&served.console, 3), "ls\r");
    let mut second = attach(&served.socket, "");
    served.console.write(b"files");
    assert_eq!(read_text(&mut client, 5), "files");
    assert_eq!(read_text(&mut second, 5), "files");
    second.write_all(b"too").expect("types");
    assert_eq!(typed(&served.console, 3), "too");
    served.console.close();
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).expect("the end comes");
    assert!(rest.is_empty());
}

#[test]
fn a_client_that_types_more_than_the_guest_reads_waits_and_still_sees_output() {
    let served = serve();
    let client = attach(&served.socket, "");
    let mut typist = client.try_clone().expect("clone");
    // More than the socket holds.
    let data: String = (0..2_000_000).map(|n| char::from(b'a' + (n % 26) as u8)).collect();
    let expected = data.clone();
    let typing = std::thread::spawn(move || typist.write_all(data.as_bytes()));
    let mut reader = client;
    served.console.write(b"meanwhile");
    assert_eq!(read_text(&mut reader, 9), "meanwhile");
    assert!(!typing.is_finished(), "the guest takes nothing, so neither do we");
    assert_eq!(typed(&served.console, expected.len()), expected);
    typing.join().expect("ends").expect("all was taken");
}

#[test]
fn a_client_that_does_not_read_misses_bytes_and_is_told_how_many() {
    let served = serve();
    let mut slow = attach(&served.socket, "");
    served.console.write(b"start");
    assert_eq!(read_text(&mut slow, 5), "start");
    let begin = Instant::now();
    for _ in 0..4096 {
        served.console.write(&[b'x'; 1024]);
    }
    assert!(begin.elapsed() < Duration::from_secs(5), "the guest does not wait for it");
    served.console.write(b"END");
    let mut text = String::new();
    while !text.ends_with("END") {
        let mut buffer = [0; 65536];
        let len = slow.read(&mut buffer).expect("more");
        assert_ne!(len, 0, "it is still attached");
        text.push_str(std::str::from_utf8(&buffer[..len]).expect("text"));
    }
    let missed: u64 = text
        .split("[nestling: ")
        .skip(1)
        .map(|rest| rest.split_once(" bytes").expect("a count").0.parse::<u64>().expect("a number"))
        .sum();
    let got = text.matches('x').count() as u64;
    assert_eq!(missed + got, 4096 * 1024);
    assert!(missed > 0);
    assert_eq!(served.console.history().missed(), missed);
}

#[test]
fn only_a_client_that_asks_for_the_switch_is_attached() {
    let served = serve();
    let (head, body) = get(&served.socket, "/v1/console/attach");
    assert!(head.starts_with("HTTP/1.1 426") && head.contains("upgrade: nestling-console"), "{head}");
    assert!(body.contains("upgrade"), "{body}");
    let other = raw(
        &served.socket,
        b"GET /v1/console/attach HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
    );
    assert!(other.starts_with("HTTP/1.1 426"), "{other}");
    let (head, _) = get(&served.socket, "/v1/status");
    assert!(head.contains("connection: close"), "every other connection ends with its answer: {head}");
}

#[test]
fn the_number_of_console_clients_is_bounded_and_places_come_back() {
    let served = serve();
    let mut clients: Vec<_> = (0..16).map(|_| attach(&served.socket, "")).collect();
    let (head, _) = get(&served.socket, "/v1/console/log?follow=true");
    assert!(head.starts_with("HTTP/1.1 503"), "{head}");
    clients.pop();
    let start = Instant::now();
    while get(&served.socket, "/v1/console/log").0.starts_with("HTTP/1.1 503") {
        assert!(start.elapsed() < Duration::from_secs(10), "the place does not come back");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(get(&served.socket, "/v1/status").0.starts_with("HTTP/1.1 200"));
}

#[test]
fn the_size_of_the_window_is_told() {
    let served = serve();
    let size = nestling::backend::console::WindowSize { cols: 132, rows: 43 };
    on_client(Client::new(&served.socket).resize(size)).expect("told");
    assert_eq!(served.console.window().size(), Some(size));
    for body in ["", "{}", "{\"cols\":0,\"rows\":1}", "{\"cols\":70000,\"rows\":1}", "\"80x24\""] {
        let length = body.len();
        let request =
            format!("POST /v1/console/resize HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n{body}");
        let answer = raw(&served.socket, request.as_bytes());
        assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("error"), "{body}: {answer}");
    }
    let endless = b"POST /v1/console/resize HTTP/1.1\r\nhost: x\r\ncontent-length: 20\r\n\r\n{";
    let start = Instant::now();
    let answer = raw(&served.socket, endless);
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert!(start.elapsed() < Duration::from_secs(8), "a body that does not come is not waited for");
    assert_eq!(served.console.window().size(), Some(size));
}

#[test]
fn the_end_waits_until_attached_clients_have_the_last_bytes() {
    let mut served = serve();
    let mut client = attach(&served.socket, "");
    served.console.write(b"reboot: Power down\r\n");
    served.console.close();
    served.finish();
    let mut text = String::new();
    client.read_to_string(&mut text).expect("the end comes");
    assert_eq!(text, "reboot: Power down\r\n");
}
