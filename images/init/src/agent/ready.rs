//! Ready rules: tried until one holds, and on demand.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nestling_protocol::{FromAgent, Outcome, Program, Ready, Rule, WorkloadState};

use super::{Agent, forward, lock, milliseconds};
use crate::{session_end, spawn};

const EVERY: Duration = Duration::from_millis(250);
const TIMEOUT: Duration = Duration::from_secs(1);

/// Tries faster than this would be the guest's main work.
const FASTEST: Duration = Duration::from_millis(10);

/// The longest first line of an HTTP answer that is read.
const LONGEST_LINE: u64 = 1024;

/// Tries the boot's rule until it holds, and tells the host.
pub(super) fn watch(agent: &Arc<Agent>) {
    let configuration = agent.configuration();
    let Some(ready) = &configuration.ready else { return };
    if ready.rule == Rule::Unknown {
        let message = "this agent does not know the ready rule: the guest will never be ready".into();
        return agent.report(&FromAgent::Problem { message });
    }
    let every = ready.every_ms.map_or(EVERY, milliseconds).max(FASTEST);
    while check(agent, ready).is_err() {
        sleep(every);
    }
    let mut state = lock(&agent.state);
    state.ready = true;
    state.tell(&FromAgent::Ready);
}

/// Tries a rule once; why it does not hold, or how it does: one sentence.
pub(super) fn check(agent: &Agent, ready: &Ready) -> Result<String, String> {
    let deadline = Instant::now() + ready.timeout_ms.map_or(TIMEOUT, milliseconds);
    match &ready.rule {
        Rule::Started => match agent.workload() {
            WorkloadState::None => Err("the workload has not started".into()),
            _ => Ok("the workload has started".into()),
        },
        Rule::Port { host, port } => {
            connected(host.as_deref(), *port, deadline).map(|_| format!("port {port} takes connections"))
        }
        Rule::Http { host, port, path } => http(host.as_deref(), *port, path, deadline),
        Rule::File { path } => match std::fs::metadata(path.as_os_str()) {
            Ok(_) => Ok(format!("{path} exists")),
            Err(error) => Err(format!("{path}: {error}")),
        },
        Rule::Command(program) => command(agent, program, deadline),
        Rule::Unknown => Err("this agent does not know the ready rule".into()),
    }
}

fn left(deadline: Instant) -> Result<Duration, String> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err("it took too long".into()) } else { Ok(left) }
}

fn connected(host: Option<&str>, port: u16, deadline: Instant) -> Result<TcpStream, String> {
    let host = host.unwrap_or("127.0.0.1");
    let mut last = format!("{host} is not known in the guest");
    for address in forward::addresses(host) {
        match TcpStream::connect_timeout(&SocketAddr::new(address, port), left(deadline)?) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = format!("cannot connect to {address} port {port}: {error}"),
        }
    }
    Err(last)
}

fn http(host: Option<&str>, port: u16, path: &str, deadline: Instant) -> Result<String, String> {
    if path.contains(|c: char| c.is_control() || c == ' ') || !path.starts_with('/') {
        return Err(format!("{path:?} is no path of a URL"));
    }
    let mut stream = connected(host, port, deadline)?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {}:{port}\r\nConnection: close\r\n\r\n",
        host.unwrap_or("127.0.0.1")
    );
    let said = |error: std::io::Error| format!("port {port}: {error}");
    stream.set_write_timeout(Some(left(deadline)?)).map_err(said)?;
    stream.write_all(request.as_bytes()).map_err(said)?;
    let mut line = Vec::new();
    let mut piece = [0; 256];
    while !line.contains(&b'\n') && (line.len() as u64) < LONGEST_LINE {
        stream.set_read_timeout(Some(left(deadline)?)).map_err(said)?;
        match stream.read(&mut piece).map_err(said)? {
            0 => break,
            read => line.extend_from_slice(piece.get(..read).unwrap_or_default()),
        }
    }
    let line = String::from_utf8_lossy(&line);
    let line = line.lines().next().unwrap_or_default();
    match line.split(' ').nth(1) {
        Some("200") if line.starts_with("HTTP/") => Ok(format!("GET {path} is answered with 200")),
        _ => Err(format!("GET {path} is answered with {line:?}")),
    }
}

fn command(agent: &Agent, program: &Program, deadline: Instant) -> Result<String, String> {
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null");
    let null = null.map_err(|error| format!("cannot open /dev/null: {error}"))?.into();
    let plan = agent.plan(program, spawn::raw([&null; 3]), false).map_err(|failure| failure.message)?;
    let child = spawn::spawn(&plan).map_err(|error| error.to_string())?;
    let name = plan.argv.first().map_or(OsStr::new(""), |name| name.as_os_str()).display();
    match child.wait_until(deadline) {
        Some(Outcome::Status(0)) => Ok(format!("{name} ended with status 0")),
        Some(outcome) => Err(format!("{name} {outcome}")),
        None => {
            session_end::kill(&child);
            Err(format!("{name} took too long"))
        }
    }
}
