//! Sessions: the listener, and one request on each connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nestling_protocol::{Failure, FailureKind, Opening, ProtocolError, Request, Response, Versions, frame};

use super::transport::{Listener, Stream, exists, listen_at};
use super::{Agent, exec, files, forward, ready, stats};

/// The most sessions at once: with some six descriptors each, they fit the usual limit of 1024.
const MOST_SESSIONS: usize = 128;

/// How long the request may take to come.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// How long to take in what a host still sends to a session that has failed.
const DRAIN: Duration = Duration::from_secs(10);

/// The wait before listening is tried again.
const LISTEN_RETRY: Duration = Duration::from_secs(5);

/// The wait before accepting is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Listens, if this system has such sockets, and says why not if it should.
pub(super) fn listen(agent: &Agent) -> Option<Listener> {
    let address = &agent.options.listen;
    match exists(address).then(|| listen_at(address))? {
        Ok(listener) => {
            agent.listening.store(true, Ordering::Release);
            Some(listener)
        }
        Err(error) => {
            crate::say!("cannot listen for the host: {error}");
            None
        }
    }
}

/// Takes the host's connections, for ever.
pub(super) fn serve(agent: &Arc<Agent>, mut listener: Option<Listener>) {
    let listener = loop {
        match listener {
            Some(listener) => break listener,
            None if !agent.options.persistent => return,
            // A module may come later.
            None => sleep(LISTEN_RETRY),
        }
        listener = listen(agent);
    };
    loop {
        match listener.accept() {
            Ok(stream) => begin(agent, stream),
            Err(error) => {
                crate::say!("cannot accept a connection of the host: {error}");
                sleep(RETRY);
            }
        }
    }
}

/// Counts a session while it lives.
struct Counted(Arc<Agent>);

impl Counted {
    fn new(agent: &Arc<Agent>) -> Option<Self> {
        let sessions: &AtomicUsize = &agent.sessions;
        let add = |count: usize| (count < MOST_SESSIONS).then_some(count + 1);
        sessions.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).is_ok().then(|| Self(agent.clone()))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.sessions.fetch_sub(1, Ordering::Relaxed);
    }
}

fn begin(agent: &Arc<Agent>, stream: Stream) {
    let busy = |message: String| Response::Failed(Failure::new(FailureKind::Busy, message));
    let Some(counted) = Counted::new(agent) else {
        // A few bytes on a fresh connection: they fit its buffer.
        return say(&stream, &busy(format!("{MOST_SESSIONS} sessions are open: close one")));
    };
    agent.thread("session", move || {
        let agent = &counted.0;
        match request(&stream) {
            Ok(request) => answer(agent, &stream, request),
            Err(failure) => fail(&stream, failure),
        }
    });
}

/// Reads what the session is for.
fn request(stream: &Stream) -> Result<Request, Failure> {
    let bad = |error: ProtocolError| Failure::new(FailureKind::BadRequest, error.to_string());
    stream.set_read_timeout(Some(REQUEST_TIMEOUT)).map_err(|error| bad(error.into()))?;
    let Opening { version, request } = frame::read_message(&mut &*stream).map_err(bad)?;
    if !Versions::OURS.contain(version) {
        let message =
            format!("this agent speaks the versions {} of the protocol, not {version}", Versions::OURS);
        return Err(Failure::new(FailureKind::Unsupported, message));
    }
    stream.set_read_timeout(None).map_err(|error| bad(error.into()))?;
    Ok(request)
}

fn answer(agent: &Arc<Agent>, stream: &Stream, request: Request) {
    let result = match request {
        Request::Exec(request) => exec::run(agent, stream, &request),
        Request::Put { path, owner } => files::put(stream, &path, owner.as_deref()),
        Request::Get { path } => files::get(stream, &path),
        Request::Forward { host, port } => forward::run(stream, &host, port),
        Request::Stats => {
            say(stream, &Response::Stats(Box::new(stats::now())));
            Ok(())
        }
        Request::Ready => readiness(agent).map(|answer| say(stream, &answer)),
        Request::Unknown => {
            Err(Failure::new(FailureKind::Unsupported, "this agent does not know that request"))
        }
    };
    if let Err(failure) = result {
        fail(stream, failure);
    }
}

fn readiness(agent: &Agent) -> Result<Response, Failure> {
    let configuration = agent.configuration();
    let Some(ready) = &configuration.ready else {
        return Err(Failure::new(FailureKind::Unsupported, "this boot has no ready rule"));
    };
    let result = ready::check(agent, ready);
    let (ready, Ok(message) | Err(message)) = (result.is_ok(), result);
    Ok(Response::Readiness { ready, message })
}

/// Tells the host; one that is gone needs not be told.
pub(super) fn say(stream: &Stream, response: &Response) {
    drop(frame::write_message(&mut &*stream, response));
}

/// Tells the host why not, and takes in what it has sent meanwhile: closed over unread bytes, a connection is reset, and
/// the answer might be lost.
fn fail(stream: &Stream, failure: Failure) {
    say(stream, &Response::Failed(failure));
    stream.shut_write();
    let _closed = stream.wait_for_close(Instant::now() + DRAIN);
}
