//! What a request says beside its path, and the refusal of one that cannot be read: always our own words, as
//! `{"error": "…"}`.

use std::time::Duration;

use axum::extract::Request;
use axum::http::{Method, StatusCode, Uri};
use axum::response::Response;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::routes::refusal;
use crate::spec::size::parse_size;

/// The longest body of a request, in bytes.
const MAX_BODY: usize = 4 << 10;
/// A client has this long to send its body, or to go on after the switch of protocols.
pub(super) const PATIENCE: Duration = Duration::from_secs(3);

/// A size: bytes, or as people write it.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum SizeValue {
    /// Bytes.
    Bytes(u64),
    /// For example `20G`.
    Text(String),
}

impl SizeValue {
    /// The size in bytes.
    ///
    /// # Errors
    /// In words, when it is none.
    pub(super) fn bytes(&self) -> Result<u64, String> {
        match self {
            Self::Bytes(bytes) => Ok(*bytes),
            Self::Text(text) => parse_size(text).ok_or_else(|| {
                format!("`{text}` is not a size: write for example 512M, 20G or a number of bytes")
            }),
        }
    }
}

/// Reads a JSON body; `example` is one that is right.
///
/// # Errors
/// The refusal, when it is too long, does not come, or is not what the path takes.
pub(super) async fn body<T: DeserializeOwned>(request: Request, example: &str) -> Result<T, Response> {
    let body = axum::body::to_bytes(request.into_body(), MAX_BODY);
    let bytes = match timeout(PATIENCE, body).await {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(_)) => {
            let words = format!("the body breaks off or has more than {MAX_BODY} bytes: send {example}");
            return Err(refusal(StatusCode::PAYLOAD_TOO_LARGE, &words));
        }
        Err(_) => {
            let seconds = PATIENCE.as_secs();
            return Err(bad(&format!("the body did not come within {seconds} s: send {example}")));
        }
    };
    serde_json::from_slice(&bytes).map_err(|error| {
        let found = if bytes.is_empty() {
            "there is no body"
        } else if error.is_data() {
            "the body is not what this path takes"
        } else {
            "the body is no JSON"
        };
        bad(&format!("{found}: send {example}"))
    })
}

/// The refusal of a value.
pub(super) fn bad(words: &str) -> Response {
    refusal(StatusCode::BAD_REQUEST, words)
}

/// The refusal of a path that is none.
pub(super) async fn no_such_path(uri: Uri) -> Response {
    let words = format!(
        "there is nothing at {}: GET /v1/status, /v1/events, /v1/console/log and /metrics answer questions, and \
         docs/status.md has them all",
        uri.path()
    );
    refusal(StatusCode::NOT_FOUND, &words)
}

/// The refusal of a method that a path does not take. The answer's `allow` names those it takes.
pub(super) async fn no_such_method(method: Method, uri: Uri) -> Response {
    let words =
        format!("{} does not take {method}: what only asks is GET, what changes the VM is POST", uri.path());
    refusal(StatusCode::METHOD_NOT_ALLOWED, &words)
}
