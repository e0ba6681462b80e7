//! The other end of the status socket: what `nestling status`, `events` and `stop` speak with.

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::body::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{self, HeaderName};
use hyper::upgrade::Upgraded;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};

use super::console;
use super::snapshot::Status;
use crate::backend::console::WindowSize;

/// An instance that does not answer a question within this time is as good as none.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long to wait when there are more clients than the socket's queue holds.
const CONNECT_AGAIN: Duration = Duration::from_millis(20);
/// The longest answer we take.
const MAX_ANSWER_BYTES: usize = 4 << 20;

/// Why a question got no answer. Each text is one sentence with the socket's path.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there.
    #[error(
        "no VM answers on {}: {reason}; start one with `nestling run`, or name its socket with --socket",
        socket.display()
    )]
    NoInstance {
        /// The socket.
        socket: PathBuf,
        /// Why, in words.
        reason: String,
    },
    /// Somebody listens, but does not answer in time or not in our words.
    #[error("what listens on {} did not answer as a VM does: {reason}", socket.display())]
    NoAnswer {
        /// The socket.
        socket: PathBuf,
        /// Why, in words.
        reason: String,
    },
    /// What was asked for is none of what can be: another value may be.
    #[error("the VM on {} cannot take that: {reason}", socket.display())]
    BadValue {
        /// The socket.
        socket: PathBuf,
        /// The instance's own words.
        reason: String,
    },
    /// The instance cannot do it now, or not at all, or failed at it.
    #[error("the VM on {} refused: {reason}", socket.display())]
    Refused {
        /// The socket.
        socket: PathBuf,
        /// The instance's own words.
        reason: String,
    },
    /// This process cannot ask at all.
    #[error("this command cannot ask the VM: {0}")]
    Here(io::Error),
}

/// Talks to the instance on one socket; a connection per question.
#[derive(Debug)]
pub struct Client<'a> {
    socket: &'a Path,
}

impl<'a> Client<'a> {
    /// A client of the instance that listens on `socket`.
    #[must_use]
    pub fn new(socket: &'a Path) -> Self {
        Self { socket }
    }

    /// Asks for the whole status.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn status(&self) -> Result<Status, ClientError> {
        let body = self.ask(Method::GET, "/v1/status").await?;
        serde_json::from_slice(&body).map_err(|error| self.no_answer(error.to_string()))
    }

    /// Asks for an orderly stop; returns when the request is accepted, not when the machine is down.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn stop(&self) -> Result<(), ClientError> {
        self.ask(Method::POST, "/v1/stop").await.map(|_| ())
    }

    /// Has vCPUs and devices rest; returns when they do.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn pause(&self) -> Result<(), ClientError> {
        self.ask(Method::POST, "/v1/pause").await.map(|_| ())
    }

    /// Plugs the cable of a network interface in or out; `interface` is its number or its tap's name.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn set_link(&self, interface: &str, up: bool) -> Result<(), ClientError> {
        let (interface, end) = (path_segment(interface), if up { "up" } else { "down" });
        self.ask(Method::POST, &format!("/v1/net/{interface}/{end}")).await.map(|_| ())
    }

    /// Has them go on.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn resume(&self) -> Result<(), ClientError> {
        self.ask(Method::POST, "/v1/resume").await.map(|_| ())
    }

    /// Sets how much of its RAM the guest should do with, written as for `--memory`. The guest gets there in its own time.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn set_memory(&self, target: &str) -> Result<(), ClientError> {
        let body = serde_json::json!({ "target": target }).to_string();
        self.ask_with(Method::POST, "/v1/memory", body.into()).await.map(|_| ())
    }

    /// Makes a disk larger; without a size, it has the size of its image from now on. `disk` is its serial number, its name
    /// in the guest or its number; the size is written as for `nestling disk create`.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn resize_disk(&self, disk: &str, size: Option<&str>) -> Result<(), ClientError> {
        let body = serde_json::json!({ "disk": disk, "size": size }).to_string();
        self.ask_with(Method::POST, "/v1/disks/resize", body.into()).await.map(|_| ())
    }

    /// Reads the event log, and with `follow` what comes after it; every piece of text goes to `sink` as it arrives.
    ///
    /// # Errors
    /// See [`ClientError`]; and an error of `sink` ends the reading as if the log had ended.
    pub async fn events(
        &self,
        follow: bool,
        sink: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<(), ClientError> {
        let path = if follow { "/v1/events" } else { "/v1/events?follow=false" };
        let response = self.in_time(self.request(Method::GET, path)).await?;
        let response = self.accepted(response).await?;
        self.pour(response, sink).await
    }

    /// Every piece of a response's body goes to `sink` as it arrives.
    async fn pour(
        &self,
        mut response: Response<Incoming>,
        mut sink: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<(), ClientError> {
        while let Some(frame) = response.frame().await {
            let frame = frame.map_err(|error| self.no_answer(error.to_string()))?;
            if frame.data_ref().is_some_and(|data| sink(data).is_err()) {
                break;
            }
        }
        Ok(())
    }

    /// Reads what the guest wrote to its console, the last `tail` lines of it if that is given, and with `follow` what comes
    /// after it. `on_start` learns how many bytes of the beginning are gone; every piece goes to `sink` as it arrives.
    ///
    /// # Errors
    /// See [`ClientError`]; and an error of `sink` ends the reading as if the console had ended.
    pub async fn console_log(
        &self,
        follow: bool,
        tail: Option<usize>,
        on_start: impl FnOnce(u64),
        sink: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<(), ClientError> {
        let tail = tail.map(|lines| format!("&tail={lines}")).unwrap_or_default();
        let path = format!("/v1/console/log?follow={follow}{tail}");
        let response = self.in_time(self.request(Method::GET, &path)).await?;
        let response = self.accepted(response).await?;
        let missed = response.headers().get(console::MISSED).and_then(|value| value.to_str().ok());
        on_start(missed.and_then(|missed| missed.parse().ok()).unwrap_or(0));
        self.pour(response, sink).await
    }

    /// Attaches to the console: a stream of what the guest writes, from its last `tail` lines on, and of what it is to read.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn attach(&self, tail: usize) -> Result<Upgraded, ClientError> {
        self.in_time(async {
            let path = format!("/v1/console/attach?tail={tail}");
            let switch = [(header::CONNECTION, "upgrade"), (header::UPGRADE, console::PROTOCOL)];
            let response = self.send(Method::GET, &path, &switch, Bytes::new()).await?;
            if response.status() != StatusCode::SWITCHING_PROTOCOLS {
                self.accepted(response).await?;
                return Err(self.no_answer("it does not switch to the console's protocol".to_owned()));
            }
            hyper::upgrade::on(response).await.map_err(|error| self.no_answer(error.to_string()))
        })
        .await
    }

    /// Tells the console the size of the terminal that shows it.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn resize(&self, size: WindowSize) -> Result<(), ClientError> {
        let body = serde_json::to_vec(&size).map_err(|error| self.no_answer(error.to_string()))?;
        self.in_time(async {
            let response = self.send(Method::POST, "/v1/console/resize", &[], body.into()).await?;
            self.accepted(response).await.map(|_| ())
        })
        .await
    }

    /// One question, one whole answer, in time.
    async fn ask(&self, method: Method, path: &str) -> Result<Bytes, ClientError> {
        self.ask_with(method, path, Bytes::new()).await
    }

    /// The same with a body.
    async fn ask_with(&self, method: Method, path: &str, body: Bytes) -> Result<Bytes, ClientError> {
        self.in_time(async {
            let response = self.send(method, path, &[], body).await?;
            self.whole_body(self.accepted(response).await?).await
        })
        .await
    }

    async fn in_time<T>(
        &self,
        answer: impl Future<Output = Result<T, ClientError>>,
    ) -> Result<T, ClientError> {
        match timeout(PATIENCE, answer).await {
            Ok(answer) => answer,
            Err(_) => Err(self.no_answer(format!("nothing came within {} s", PATIENCE.as_secs()))),
        }
    }

    async fn request(&self, method: Method, path: &str) -> Result<Response<Incoming>, ClientError> {
        self.send(method, path, &[], Bytes::new()).await
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(HeaderName, &str)],
        body: Bytes,
    ) -> Result<Response<Incoming>, ClientError> {
        let stream = self.connect().await.map_err(|error| self.no_instance(&error))?;
        let request = Request::builder().method(method).uri(path).header("host", "nestling");
        let request = headers
            .iter()
            .fold(request, |request, (name, value)| request.header(name, *value))
            .body(Full::new(body))
            .map_err(|error| self.no_answer(error.to_string()))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.no_answer(error.to_string()))?;
        tokio::spawn(connection.with_upgrades());
        sender.send_request(request).await.map_err(|error| self.no_answer(error.to_string()))
    }

    /// Connects; a queue that is full has room again as soon as the instance has a moment.
    async fn connect(&self) -> io::Result<UnixStream> {
        loop {
            match UnixStream::connect(self.socket).await {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => sleep(CONNECT_AGAIN).await,
                connected => return connected,
            }
        }
    }

    /// A response of success, or the instance's own words of refusal.
    async fn accepted(&self, response: Response<Incoming>) -> Result<Response<Incoming>, ClientError> {
        let code = response.status();
        if code.is_success() {
            return Ok(response);
        }
        let body = self.whole_body(response).await?;
        let words = serde_json::from_slice::<serde_json::Value>(&body).ok();
        let error = words.as_ref().and_then(|words| words.get("error")?.as_str());
        let reason = error.map_or_else(|| format!("HTTP {code}"), str::to_owned);
        let socket = self.socket.to_owned();
        Err(match code {
            StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE => {
                ClientError::BadValue { socket, reason }
            }
            _ => ClientError::Refused { socket, reason },
        })
    }

    async fn whole_body(&self, response: Response<Incoming>) -> Result<Bytes, ClientError> {
        let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await;
        body.map(http_body_util::Collected::to_bytes).map_err(|error| self.no_answer(error.to_string()))
    }

    fn no_instance(&self, error: &io::Error) -> ClientError {
        let reason = match error.kind() {
            io::ErrorKind::NotFound => "there is no such socket".to_owned(),
            io::ErrorKind::ConnectionRefused if !self.is_socket() => "that is no socket".to_owned(),
            io::ErrorKind::ConnectionRefused => "its process is gone".to_owned(),
            _ => crate::spec::in_words(error),
        };
        ClientError::NoInstance { socket: self.socket.to_owned(), reason }
    }

    fn is_socket(&self) -> bool {
        self.socket.metadata().is_ok_and(|metadata| metadata.file_type().is_socket())
    }

    pub(crate) fn no_answer(&self, reason: String) -> ClientError {
        ClientError::NoAnswer { socket: self.socket.to_owned(), reason }
    }
}

/// A word as one segment of a path (RFC 3986 §2.1).
fn path_segment(word: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    let encode =
        |byte: u8| if is_plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    word.bytes().map(encode).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_word_stays_one_segment() {
        assert_eq!(super::path_segment("tap-0.a_b"), "tap-0.a_b");
        assert_eq!(super::path_segment("a/b?c%#é "), "a%2Fb%3Fc%25%23%C3%A9%20");
    }
}
