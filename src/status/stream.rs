//! One reader of something that goes on. Of `/v1/events`: the replay, then what comes, until the end or until the reader is
//! too slow.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Bytes, HttpBody};
use hyper::body::Frame;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::events::{Subscription, lagged_line};

/// Pieces that wait for the connection to take them; behind these the reader lags in whatever it reads.
const PIECES_IN_FLIGHT: usize = 16;

/// The response body: pieces as they come.
#[derive(Debug)]
pub(super) struct Stream {
    pieces: mpsc::Receiver<Bytes>,
}

/// Starts a stream that `feed` fills; `permit` is given back when it ends, or when the reader goes away.
pub(super) fn start<F>(
    permit: OwnedSemaphorePermit,
    feed: impl FnOnce(mpsc::Sender<Bytes>) -> F + Send + 'static,
) -> Stream
where
    F: Future<Output = ()> + Send,
{
    let (sender, pieces) = mpsc::channel(PIECES_IN_FLIGHT);
    tokio::spawn(async move {
        let reader_is_gone = sender.clone();
        tokio::select! {
            () = feed(sender) => {}
            () = reader_is_gone.closed() => {}
        }
        drop(permit);
    });
    Stream { pieces }
}

/// The event log, and with `follow` what comes after it.
pub(super) fn follow(subscription: Subscription, follow: bool, permit: OwnedSemaphorePermit) -> Stream {
    start(permit, move |sender| async move { feed(subscription, follow, &sender).await })
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

impl HttpBody for Stream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.pieces.poll_recv(cx).map(|piece| piece.map(|piece| Ok(Frame::data(piece))))
    }
}
