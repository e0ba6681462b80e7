//! The status socket's server: who may talk to it, how many at once, and for how long.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::{JoinHandle, yield_now};
use tokio::time::{sleep, timeout};

use super::console;
use super::idle::{Idle, Seat};
use super::operation::Asked;
use super::patience::Patient;
use super::publisher::Publisher;
use super::routes;
use super::socket::Claim;
use crate::backend::console::ConsoleHub;

/// Connections served at one time. One more gets the place of the oldest that has not asked for anything yet; where all have,
/// it is told so and closed.
const MAX_CONNECTIONS: usize = 64;
/// Connections at one time that are told that there is no room, or that they are not welcome.
const MAX_REFUSALS: usize = 16;
const BUSY: &str = "it is answering as many requests as there is room for: try again";
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
    /// Clients of the console; one that is attached has left its connection behind.
    console_clients: Arc<Semaphore>,
    draining: watch::Sender<bool>,
    claim: Claim,
}

/// What every connection needs.
#[derive(Debug, Clone)]
struct Reception {
    router: Router,
    connections: Arc<Semaphore>,
    refusals: Arc<Semaphore>,
    idle: Idle,
    draining: watch::Receiver<bool>,
}

impl Server {
    /// Serves `publisher` and `console` on the claimed socket; what is asked for goes to `requests`. Must be called inside a
    /// tokio runtime.
    #[must_use]
    pub fn start(
        mut claim: Claim,
        publisher: Arc<Publisher>,
        requests: Requests,
        console: Arc<ConsoleHub>,
    ) -> Self {
        let console_clients = Arc::new(Semaphore::new(console::MAX_CLIENTS));
        let console = console::router(console, Arc::clone(&console_clients));
        let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let draining = watch::Sender::new(false);
        let reception = Reception {
            router: routes::router(publisher, requests, console),
            connections: Arc::clone(&connections),
            refusals: Arc::new(Semaphore::new(MAX_REFUSALS)),
            idle: Idle::default(),
            draining: draining.subscribe(),
        };
        let listener = claim.take_listener();
        let accepting = tokio::spawn(async move {
            if let Some(listener) = listener {
                accept(&listener, &reception).await;
            }
        });
        Self { accepting, connections, console_clients, draining, claim }
    }

    /// Stops accepting, lets every open request and stream take its last bytes for a moment, and removes the socket.
    pub async fn finish(self) {
        self.accepting.abort();
        let _ = self.draining.send(true);
        let gone = async |places: &Semaphore, all: usize| {
            let _ = places.acquire_many(u32::try_from(all).unwrap_or(u32::MAX)).await;
        };
        let everyone = async {
            gone(&self.connections, MAX_CONNECTIONS).await;
            gone(&self.console_clients, console::MAX_CLIENTS).await;
        };
        let _ = timeout(DRAIN_TIMEOUT, everyone).await;
        drop(self.claim);
    }
}

async fn accept(listener: &UnixListener, reception: &Reception) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                reception.receive(stream);
                // What it asks is heard before the next one comes, who may need its place.
                yield_now().await;
            }
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
            let words = "only root and the VM's own user may use this socket";
            return self.turn_away(stream, StatusCode::FORBIDDEN, words);
        }
        let places = Arc::clone(&self.connections);
        let place = match Arc::clone(&places).try_acquire_owned() {
            Ok(place) => Some(place),
            Err(_) if self.idle.dismiss_oldest() => None,
            Err(_) => return self.turn_away(stream, StatusCode::SERVICE_UNAVAILABLE, BUSY),
        };
        let reception = self.clone();
        tokio::spawn(async move {
            let place = match place {
                Some(place) => place,
                None => match timeout(HEAD_TIMEOUT, places.acquire_owned()).await {
                    Ok(Ok(place)) => place,
                    _ => return reception.turn_away(stream, StatusCode::SERVICE_UNAVAILABLE, BUSY),
                },
            };
            let Self { router, idle, draining, .. } = reception;
            serve(stream, router, idle.sit_down(), draining).await;
            drop(place);
        });
    }

    /// Answers whatever it asks with a refusal. A client that is answered before it has asked hears nothing, so that takes
    /// a place too; when these are taken, it is closed at once.
    fn turn_away(&self, stream: UnixStream, code: StatusCode, words: &'static str) {
        let Ok(place) = Arc::clone(&self.refusals).try_acquire_owned() else { return };
        let router = routes::refusing(code, words);
        let (seat, draining) = (Idle::default().sit_down(), self.draining.clone());
        tokio::spawn(async move {
            serve(stream, router, seat, draining).await;
            drop(place);
        });
    }
}

/// Root and our own user are welcome; a peer that cannot be identified is not.
fn is_welcome(stream: &UnixStream) -> bool {
    let own = nix::unistd::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == own)
}

/// One connection, one request. A malformed one ends its connection and nothing else.
async fn serve(stream: UnixStream, router: Router, seat: Seat, mut draining: watch::Receiver<bool>) {
    let seat = Arc::new(seat);
    let (asking, router) = (Arc::clone(&seat), TowerToHyperService::new(router));
    let service = service_fn(move |request| {
        asking.ask();
        router.call(request)
    });
    let io = TokioIo::new(Patient::new(stream, WRITE_TIMEOUT));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(io, service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let served = tokio::select! {
        biased;
        served = connection.as_mut() => served,
        () = seat.dismissed() => return,
        () = async { drop(draining.wait_for(|now| *now).await) } => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        tracing::debug!(target: "nestling", "a client of the status socket went wrong: {error}");
    }
}
