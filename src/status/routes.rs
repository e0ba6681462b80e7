//! What the status socket answers: one function per path, errors as `{"error": "…"}`.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, Request, State as Shared};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::map_response;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::{Semaphore, oneshot};

use super::asking::{self, SizeValue};
use super::operation::{Asked, Operation, Refusal};
use super::publisher::Publisher;
use super::server::{Requests, StopRequest};
use super::{metrics, stream};

/// Event streams at one time; each keeps its connection.
const MAX_STREAMS: usize = 16;

/// What the routes share.
#[derive(Debug, Clone)]
pub(super) struct Api {
    publisher: Arc<Publisher>,
    requests: Requests,
    streams: Arc<Semaphore>,
}

/// The body of `/v1/memory`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct MemoryRequest {
    target: SizeValue,
}

/// The body of `/v1/disks/resize`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ResizeRequest {
    disk: DiskName,
    size: Option<SizeValue>,
}

/// Which disk: its number, or a word for it.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum DiskName {
    Index(u64),
    Text(String),
}

/// The query of `/v1/events`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct EventsQuery {
    #[serde(default = "yes")]
    follow: bool,
}

fn yes() -> bool {
    true
}

/// The router of one VM; `console` has the routes of its console.
pub(super) fn router(publisher: Arc<Publisher>, requests: Requests, console: Router) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/events", get(events))
        .route("/v1/stop", post(request_stop))
        .route("/v1/pause", post(|api| ask_for(api, Operation::Pause)))
        .route("/v1/resume", post(|api| ask_for(api, Operation::Resume)))
        .route("/v1/memory", post(set_memory))
        .route("/v1/net/{interface}/up", post(|api, interface| set_link(api, interface, true)))
        .route("/v1/net/{interface}/down", post(|api, interface| set_link(api, interface, false)))
        .route("/v1/disks/resize", post(resize_disk))
        .route("/metrics", get(openmetrics))
        .with_state(Api { publisher, requests, streams: Arc::new(Semaphore::new(MAX_STREAMS)) })
        .merge(console)
        .fallback(asking::no_such_path)
        .method_not_allowed_fallback(asking::no_such_method)
        .layer(map_response(say_last))
}

/// Refuses whatever is asked.
pub(super) fn refusing(code: StatusCode, words: &'static str) -> Router {
    Router::new().fallback(move || async move { refusal(code, words) }).layer(map_response(say_last))
}

/// One connection has one request; only a connection that is switched to another protocol goes on.
async fn say_last(mut response: Response) -> Response {
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

async fn status(Shared(api): Shared<Api>) -> Response {
    answer(StatusCode::OK, &api.publisher.status())
}

async fn events(Shared(api): Shared<Api>, query: Result<Query<EventsQuery>, QueryRejection>) -> Response {
    let follow = match query {
        Ok(Query(query)) => query.follow,
        Err(_) => return asking::bad("the query of this path is follow=true, or follow=false to not wait"),
    };
    let Ok(permit) = api.streams.clone().try_acquire_owned() else {
        return refusal(
            StatusCode::SERVICE_UNAVAILABLE,
            "too many clients follow the events: end one of them",
        );
    };
    let body = Body::new(stream::follow(api.publisher.subscribe(), follow, permit));
    typed(StatusCode::OK, "application/x-ndjson", body)
}

async fn openmetrics(Shared(api): Shared<Api>) -> Response {
    match metrics::encode(&api.publisher.status()) {
        Ok(text) => typed(StatusCode::OK, metrics::CONTENT_TYPE, text.into()),
        Err(error) => refusal(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

/// Asks for a stop. Asking again while the machine is on its way down changes nothing.
async fn request_stop(Shared(api): Shared<Api>) -> Response {
    if api.publisher.state().is_final() {
        return refusal(StatusCode::CONFLICT, "the machine has already ended");
    }
    let _ = api.requests.stop.try_send(StopRequest); // full: somebody asked before us, and one stop is enough
    answer(StatusCode::ACCEPTED, &json!({ "state": api.publisher.state() }))
}

/// Sets how much of its RAM the guest should do with: `{"target": "128M"}`, or bytes as a number.
async fn set_memory(api: Shared<Api>, request: Request) -> Result<Response, Response> {
    let MemoryRequest { target } = asking::body(request, r#"{"target": "128M"}"#).await?;
    let target_bytes = target.bytes().map_err(|words| asking::bad(&words))?;
    Ok(ask_for(api, Operation::SetMemory { target_bytes }).await)
}

/// Plugs the cable of a network interface in or out.
async fn set_link(api: Shared<Api>, interface: Result<Path<String>, PathRejection>, up: bool) -> Response {
    match interface {
        Ok(Path(interface)) => ask_for(api, Operation::SetLink { interface, up }).await,
        Err(_) => asking::bad("the interface's name is not UTF-8: name it by its number, as in /v1/net/0/up"),
    }
}

/// Makes a disk larger: `{"disk": "vda", "size": "20G"}`; without a size, it has the size of its image from now on.
async fn resize_disk(api: Shared<Api>, request: Request) -> Result<Response, Response> {
    let ResizeRequest { disk, size } = asking::body(request, r#"{"disk": "vda", "size": "20G"}"#).await?;
    let disk = match disk {
        DiskName::Index(index) => index.to_string(),
        DiskName::Text(text) => text,
    };
    let size_bytes = size.as_ref().map(SizeValue::bytes).transpose().map_err(|words| asking::bad(&words))?;
    Ok(ask_for(api, Operation::ResizeDisk { disk, size_bytes }).await)
}

/// Has an operation done, and answers with the state when it is.
async fn ask_for(Shared(api): Shared<Api>, operation: Operation) -> Response {
    // While the machine is built or taken down nobody listens; who does looks again.
    if let Some(why) = operation.denied_in(api.publisher.state()) {
        return refusal(StatusCode::CONFLICT, why);
    }
    let (answer_to, answered) = oneshot::channel();
    let asked = Asked { operation, answer: answer_to };
    let waiting = async {
        api.requests.operations.send(asked).await.ok()?;
        answered.await.ok()
    };
    match waiting.await {
        Some(Ok(())) => answer(StatusCode::OK, &json!({ "state": api.publisher.state() })),
        Some(Err(refused)) => refusal(code_of(&refused), &refused.to_string()),
        None => refusal(StatusCode::CONFLICT, "the machine has ended"),
    }
}

fn code_of(refused: &Refusal) -> StatusCode {
    match refused {
        Refusal::NotNow(_) | Refusal::Cannot(_) => StatusCode::CONFLICT,
        Refusal::Bad(_) => StatusCode::BAD_REQUEST,
        Refusal::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

pub(super) fn answer(code: StatusCode, value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(json) => typed(code, "application/json", json.into()),
        Err(error) => refusal(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

pub(super) fn refusal(code: StatusCode, message: &str) -> Response {
    typed(code, "application/json", json!({ "error": message }).to_string().into())
}

fn typed(code: StatusCode, content_type: &'static str, body: Body) -> Response {
    (code, [(header::CONTENT_TYPE, HeaderValue::from_static(content_type))], body).into_response()
}
