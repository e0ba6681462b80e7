//! One reader of `/v1/events`: the replay, then what comes, until the end or until the reader is too slow.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Bytes, HttpBody};
use hyper::body::Frame;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::events::{Subscription, lagged_line};

/// Lines that wait for the connection to take them; behind these the reader lags in the event log's own broadcast.
const LINES_IN_FLIGHT: usize = 16;

/// The response body: lines as they come.
#[derive(Debug)]
pub(super) struct EventStream {
    lines: mpsc::Receiver<Bytes>,
}

/// Starts the stream; `permit` is given back when it ends.
pub(super) fn follow(subscription: Subscription, follow: bool, permit: OwnedSemaphorePermit) -> EventStream {
    let (sender, lines) = mpsc::channel(LINES_IN_FLIGHT);
    tokio::spawn(async move {
        tokio::select! {
            () = feed(subscription, follow, &sender) => {}
            () = sender.closed() => {}
        }
        drop(permit);
    });
    EventStream { lines }
}

/// Sends everything in order. A closed channel means that the reader went away.
async fn feed(subscription: Subscription, follow: bool, sender: &mpsc::Sender<Bytes>) {
    for line in subscription.replay {
        if sender.send(line).await.is_err() {
            return;
        }
    }
    let Some(mut live) = subscription.live.filter(|_| follow) else { return };
    loop {
        let (line, is_last) = match live.recv().await {
            Ok(line) => (line, false),
            Err(RecvError::Lagged(missed)) => (lagged_line(missed), true),
            Err(RecvError::Closed) => return,
        };
        if sender.send(line).await.is_err() || is_last {
            return;
        }
    }
}

impl HttpBody for EventStream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.lines.poll_recv(cx).map(|line| line.map(|line| Ok(Frame::data(line))))
    }
}
