//! Ready rules.

use std::io::{Read, Write};
use std::net::TcpListener;

use nestling_protocol::{Configuration, FromAgent, Ready, Request, Response, Rule};

use super::host::{Guest, sh};

fn with(rule: Rule) -> Configuration {
    let ready = Some(Ready { rule, every_ms: Some(20), timeout_ms: Some(2000) });
    Configuration { ready, ..Configuration::default() }
}

/// Whether it is ready now, and the sentence about it.
fn asked(guest: &Guest) -> (bool, String) {
    match guest.session(Request::Ready).response() {
        Response::Readiness { ready, message } => (ready, message),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_port_has_to_take_connections() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let mut guest = Guest::start(with(Rule::Port { host: None, port }));
    let (before, why) = asked(&guest);
    let _listener = TcpListener::bind(("127.0.0.1", port)).unwrap();

    assert_eq!(guest.event(), FromAgent::Ready);
    assert!(!before && why.starts_with(&format!("cannot connect to 127.0.0.1 port {port}")), "{why}");
    assert_eq!(asked(&guest), (true, format!("port {port} takes connections")));
}

#[test]
fn http_has_to_answer_200() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for (number, stream) in listener.incoming().enumerate() {
            let mut stream = stream.unwrap();
            let mut request = [0; 1000];
            let read = stream.read(&mut request).unwrap();
            assert!(request[..read].starts_with(b"GET /healthz?x=1 HTTP/1.1\r\n"));
            let status = if number < 2 { "503 Starting" } else { "200 OK" };
            // In pieces, as a slow server writes.
            stream.write_all(b"HTTP/1.").unwrap();
            std::thread::sleep(std::time::Duration::from_millis(20));
            stream.write_all(format!("1 {status}\r\nContent-Length: 0\r\n\r\n").as_bytes()).unwrap();
        }
    });
    let mut guest = Guest::start(with(Rule::Http { host: None, port, path: "/healthz?x=1".into() }));

    assert_eq!(guest.event(), FromAgent::Ready);
    assert_eq!(asked(&guest), (true, "GET /healthz?x=1 is answered with 200".into()));
}

#[test]
fn an_answer_that_is_not_200_is_not_ready() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            drop(stream.read(&mut [0; 1000]));
            drop(stream.write_all(b"HTTP/1.1 404 Not Found\r\n\r\n"));
        }
    });
    let guest = Guest::start(with(Rule::Http { host: None, port, path: "/".into() }));

    assert_eq!(asked(&guest), (false, "GET / is answered with \"HTTP/1.1 404 Not Found\"".into()));
}

#[test]
fn a_file_has_to_exist() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("up");
    let mut guest = Guest::start(with(Rule::File { path: file.as_os_str().into() }));
    let before = asked(&guest).0;
    std::fs::write(&file, "").unwrap();

    assert_eq!(guest.event(), FromAgent::Ready);
    assert!(!before && asked(&guest).0);
}

#[test]
fn a_command_has_to_succeed() {
    let scratch = tempfile::tempdir().unwrap();
    let count = scratch.path().join("count").display().to_string();
    let script = format!("echo x >>{count}; [ $(wc -l <{count}) -ge 3 ]");
    let mut guest = Guest::start(with(Rule::Command(sh(&script))));

    assert_eq!(guest.event(), FromAgent::Ready);
    assert_eq!(std::fs::read_to_string(&count).unwrap(), "x\nx\nx\n");
}

#[test]
fn a_command_that_hangs_is_killed() {
    let ready = Ready { rule: Rule::Command(sh("sleep 1000 & wait")), every_ms: None, timeout_ms: Some(100) };
    let guest = Guest::start(Configuration { ready: Some(ready), ..Configuration::default() });

    assert_eq!(asked(&guest), (false, "sh took too long".into()));
}

#[test]
fn the_workload_has_to_have_started() {
    let configuration = Configuration { workload: Some(sh("sleep 1000")), ..with(Rule::Started) };
    let mut guest = Guest::start(configuration);
    let mut events = [guest.event(), guest.event()];
    events.sort_by_key(|event| matches!(event, FromAgent::Ready));

    assert!(matches!(events, [FromAgent::Started { .. }, FromAgent::Ready]), "{events:?}");
}

#[test]
fn a_rule_that_is_not_known_is_a_problem_and_never_holds() {
    let mut guest = Guest::start(with(Rule::Unknown));

    let FromAgent::Problem { message } = guest.event() else { panic!("no problem") };
    assert!(message.contains("does not know the ready rule"), "{message}");
    assert!(!asked(&guest).0);
    let without = Guest::idle();
    assert_eq!(without.session(Request::Ready).failure().message, "this boot has no ready rule");
}
