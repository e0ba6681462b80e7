//! The guest's console over the status socket: its history, a two-way attachment, the size of its window.

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, Request, State as Shared};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;

use super::asking;
use super::routes::{answer, refusal};
use super::stream;
use crate::backend::console::history::Reader;
use crate::backend::console::{ConsoleHub, WindowSize};

/// Clients at one time that follow the console or are attached to it.
pub(super) const MAX_CLIENTS: usize = 16;
/// The protocol that an attachment is switched to: the console's bytes, both ways.
pub const PROTOCOL: &str = "nestling-console";
/// The number of the first byte that a log begins with.
pub const FIRST: HeaderName = HeaderName::from_static("nestling-console-first");
/// How many bytes before that one were asked for and are no longer there.
pub const MISSED: HeaderName = HeaderName::from_static("nestling-console-missed");
/// Input taken from a client at once.
const INPUT_BYTES: usize = 4096;

/// What these routes share.
#[derive(Debug, Clone)]
struct Desk {
    hub: Arc<ConsoleHub>,
    clients: Arc<Semaphore>,
}

/// The console's routes; each client that stays holds one of `clients`.
pub(super) fn router(hub: Arc<ConsoleHub>, clients: Arc<Semaphore>) -> Router {
    Router::new()
        .route("/v1/console/log", get(log))
        .route("/v1/console/attach", get(attach))
        .route("/v1/console/resize", post(resize))
        .with_state(Desk { hub, clients })
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct LogQuery {
    /// Stay, until the console ends.
    #[serde(default)]
    follow: bool,
    /// From this byte on.
    since: Option<u64>,
    /// Only the last lines.
    tail: Option<usize>,
}

async fn log(Shared(desk): Shared<Desk>, query: Result<Query<LogQuery>, QueryRejection>) -> Response {
    let Ok(Query(LogQuery { follow, since, tail })) = query else {
        return asking::bad(
            "the query of this path is follow=true, and since=BYTE or tail=LINES, both numbers",
        );
    };
    let history = desk.hub.history();
    let asked = match (since, tail) {
        (Some(_), Some(_)) => {
            return asking::bad("`since` and `tail` exclude each other: give one of them");
        }
        (Some(since), None) => since,
        (None, Some(lines)) => history.start_of_last(lines),
        (None, None) => 0,
    };
    let Ok(permit) = desk.clients.clone().try_acquire_owned() else { return too_many() };
    let first = asked.max(history.start()).min(history.total());
    let reader = history.read(first, follow);
    let body = Body::new(stream::start(permit, |sender| async move { feed(reader, &sender).await }));
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream")),
        (FIRST, HeaderValue::from(first)),
        (MISSED, HeaderValue::from(first.saturating_sub(asked))),
    ];
    (StatusCode::OK, headers, body).into_response()
}

async fn feed(mut reader: Reader, sender: &mpsc::Sender<Bytes>) {
    while let Some(piece) = reader.next().await {
        let note = (piece.missed > 0).then(|| note(piece.missed));
        for bytes in note.into_iter().chain([piece.bytes]) {
            if sender.send(bytes.into()).await.is_err() {
                return; // the reader went away
            }
        }
    }
}

/// What a client that was too slow sees in place of what it missed.
fn note(missed: u64) -> Vec<u8> {
    format!("\r\n[nestling: {missed} bytes of the console were missed here]\r\n").into_bytes()
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AttachQuery {
    /// Begin with the last lines of the history.
    #[serde(default)]
    tail: usize,
}

async fn attach(
    Shared(desk): Shared<Desk>,
    query: Result<Query<AttachQuery>, QueryRejection>,
    mut request: Request,
) -> Response {
    let tail = match query {
        Ok(Query(query)) => query.tail,
        Err(_) => return asking::bad("the query of this path is tail=LINES, a number"),
    };
    let switch = [
        (header::CONNECTION, HeaderValue::from_static("upgrade")),
        (header::UPGRADE, HeaderValue::from_static(PROTOCOL)),
    ];
    if !asks_for_switch(request.headers()) {
        let words = format!("this path needs the headers `connection: upgrade` and `upgrade: {PROTOCOL}`");
        return (switch, refusal(StatusCode::UPGRADE_REQUIRED, &words)).into_response();
    }
    let Ok(permit) = desk.clients.clone().try_acquire_owned() else { return too_many() };
    let upgrade = hyper::upgrade::on(&mut request);
    // From this moment on: what comes while the protocol is switched is not missed.
    let history = desk.hub.history();
    let reader = history.read(history.start_of_last(tail), true);
    tokio::spawn(async move {
        if let Ok(Ok(connection)) = timeout(asking::PATIENCE, upgrade).await {
            converse(TokioIo::new(connection), &desk.hub, reader).await;
        }
        drop(permit);
    });
    (StatusCode::SWITCHING_PROTOCOLS, switch).into_response()
}

fn asks_for_switch(headers: &HeaderMap) -> bool {
    let holds = |name: HeaderName, wanted: &str| {
        let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|word| word.trim().eq_ignore_ascii_case(wanted))
    };
    holds(header::CONNECTION, "upgrade") && holds(header::UPGRADE, PROTOCOL)
}

/// Carries bytes both ways until the console or the client ends. A client that closes its side is gone.
async fn converse(connection: TokioIo<hyper::upgrade::Upgraded>, hub: &ConsoleHub, mut reader: Reader) {
    let (mut from_client, mut to_client) = tokio::io::split(connection);
    let output = async {
        while let Some(piece) = reader.next().await {
            if piece.missed > 0 {
                to_client.write_all(&note(piece.missed)).await?;
            }
            to_client.write_all(&piece.bytes).await?;
            to_client.flush().await?;
        }
        to_client.shutdown().await
    };
    let input = async {
        let mut buffer = [0; INPUT_BYTES];
        while let Ok(len @ 1..) = from_client.read(&mut buffer).await {
            hub.input().put(buffer.get(..len).unwrap_or_default()).await;
        }
    };
    tokio::select! {
        written = output => if let Err(error) = written {
            tracing::debug!(target: "nestling", "an attached client went wrong: {error}");
        },
        () = input => {}
    }
}

async fn resize(Shared(desk): Shared<Desk>, request: Request) -> Result<Response, Response> {
    let size: WindowSize = asking::body(request, r#"{"cols": 80, "rows": 24}"#).await?;
    if size.cols == 0 || size.rows == 0 {
        return Err(asking::bad("a window has at least one column and one row"));
    }
    desk.hub.window().set(size);
    Ok(answer(StatusCode::OK, &size))
}

fn too_many() -> Response {
    refusal(
        StatusCode::SERVICE_UNAVAILABLE,
        "too many clients follow the console or are attached to it: end one of them",
    )
}
