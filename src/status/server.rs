//! The status socket's server: who may talk to it, how many at once, and for how long.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::operation::Asked;
use super::patience::Patient;
use super::publisher::Publisher;
use super::routes;
use super::socket::Claim;

/// Connections served at one time; more are told so and closed.
const MAX_CONNECTIONS: usize = 64;
/// A peer has this long to send its request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(3);
/// A peer that reads nothing for this long loses its connection.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// At the end, readers have this long to take the last events.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);
/// The largest request head.
const MAX_HEAD_BYTES: usize = 16 << 10;
/// After a failing accept (no free file descriptor), how long to wait for a better time.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A client asked for an orderly stop of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StopRequest;

/// Where what clients ask for goes.
#[derive(Debug, Clone)]
pub struct Requests {
    /// Stop requests; one place is enough.
    pub stop: mpsc::Sender<StopRequest>,
    /// Operations on the machine.
    pub operations: mpsc::Sender<Asked>,
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    accepting: JoinHandle<()>,
    connections: Arc<Semaphore>,
    draining: watch::Sender<bool>,
    claim: Claim,
}

/// What every connection needs.
#[derive(Debug, Clone)]
struct Reception {
    router: Router,
    connections: Arc<Semaphore>,
    draining: watch::Receiver<bool>,
}

impl Server {
    /// Serves `publisher` on the claimed socket; what is asked for goes to `requests`. Must be called inside a tokio
    /// runtime.
    #[must_use]
    pub fn start(mut claim: Claim, publisher: Arc<Publisher>, requests: Requests) -> Self {
        let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let draining = watch::Sender::new(false);
        let reception = Reception {
            router: routes::router(publisher, requests),
            connections: Arc::clone(&connections),
            draining: draining.subscribe(),
        };
        let listener = claim.take_listener();
        let accepting = tokio::spawn(async move {
            if let Some(listener) = listener {
                accept(&listener, &reception).await;
            }
        });
        Self { accepting, connections, draining, claim }
    }

    /// Stops accepting, lets every open request and stream take its last bytes for a moment, and removes the socket.
    pub async fn finish(self) {
        self.accepting.abort();
        let _ = self.draining.send(true);
        let everyone = u32::try_from(MAX_CONNECTIONS).unwrap_or(u32::MAX);
        let _ = timeout(DRAIN_TIMEOUT, self.connections.acquire_many(everyone)).await;
        drop(self.claim);
    }
}

async fn accept(listener: &UnixListener, reception: &Reception) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => reception.receive(stream),
            Err(error) => {
                tracing::debug!(target: "nestling", "the status socket cannot accept: {error}");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

impl Reception {
    /// Serves the peer if it may talk to us and there is room for it.
    fn receive(&self, stream: UnixStream) {
        if !is_welcome(&stream) {
            return turn_away(
                &stream,
                "403 Forbidden",
                "only root and the VM's own user may use this socket",
            );
        }
        match Arc::clone(&self.connections).try_acquire_owned() {
            Ok(permit) => {
                tokio::spawn(serve(stream, self.router.clone(), self.draining.clone(), permit));
            }
            Err(_) => {
                turn_away(&stream, "503 Service Unavailable", "too many connections are open: try again");
            }
        }
    }
}

/// Root and our own user are welcome; a peer that cannot be identified is not.
fn is_welcome(stream: &UnixStream) -> bool {
    let own = nix::unistd::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == own)
}

/// Says why, if the peer's buffer takes it at once, and closes.
fn turn_away(stream: &UnixStream, status: &str, message: &str) {
    let body = serde_json::json!({ "error": message }).to_string();
    let length = body.len();
    let answer = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
    );
    let _ = stream.try_write(answer.as_bytes());
}

/// One connection, one request. A malformed one ends its connection and nothing else.
async fn serve(
    stream: UnixStream,
    router: Router,
    mut draining: watch::Receiver<bool>,
    permit: OwnedSemaphorePermit,
) {
    let io = TokioIo::new(Patient::new(stream, WRITE_TIMEOUT));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD_BYTES)
        .keep_alive(false)
        .serve_connection(io, TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = async { drop(draining.wait_for(|now| *now).await) } => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        tracing::debug!(target: "nestling", "a client of the status socket went wrong: {error}");
    }
    drop(permit);
}
