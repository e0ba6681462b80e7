//! The event log: a bounded ring that everybody may replay, and a broadcast of what comes next.

use std::collections::VecDeque;

use axum::body::Bytes;
use serde::Serialize;
use tokio::sync::broadcast;

use super::clock::Moment;
use super::model::{BootStage, EndReason};
use super::snapshot::State;

/// Events kept for replay, and events a slow reader may lag behind.
const CAPACITY: usize = 256;

/// What happened. `kind` in the JSON.
#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub(super) enum EventBody<'a> {
    /// The state changed.
    State { state: State },
    /// A boot stage was reached.
    Stage { stage: BootStage },
    /// Something is not as it should be; the VM goes on.
    Warning { message: &'a str },
    /// The run ended; nothing comes after this.
    Ended { reason: &'a EndReason, exit_code: u8, exit_name: &'a str, message: &'a str },
    /// This reader was too slow and missed events: the stream ends here, and only for this reader.
    Lagged { missed: u64 },
}

/// One line of the stream.
#[derive(Debug, Serialize)]
struct Event<'a> {
    /// Counts up by one; a gap means that something was missed.
    #[serde(skip_serializing_if = "Option::is_none")]
    seq: Option<u64>,
    #[serde(flatten)]
    at: Option<&'a Moment>,
    #[serde(flatten)]
    body: &'a EventBody<'a>,
}

/// What happened so far and what will happen, without a gap between the two.
#[derive(Debug)]
pub(super) struct Subscription {
    pub(super) replay: Vec<Bytes>,
    /// `None` once the log is closed.
    pub(super) live: Option<broadcast::Receiver<Bytes>>,
}

/// The ring and its broadcast.
#[derive(Debug)]
pub(super) struct EventLog {
    next_seq: u64,
    ring: VecDeque<Bytes>,
    live: Option<broadcast::Sender<Bytes>>,
}

impl EventLog {
    pub(super) fn new() -> Self {
        Self { next_seq: 1, ring: VecDeque::new(), live: Some(broadcast::Sender::new(CAPACITY)) }
    }

    pub(super) fn append(&mut self, at: &Moment, body: &EventBody<'_>) {
        let line = line(&Event { seq: Some(self.next_seq), at: Some(at), body });
        self.next_seq += 1;
        if self.ring.len() == CAPACITY {
            self.ring.pop_front();
        }
        self.ring.push_back(line.clone());
        if let Some(live) = &self.live {
            let _ = live.send(line); // an error only says that nobody listens
        }
    }

    pub(super) fn subscribe(&self) -> Subscription {
        let live = self.live.as_ref().map(broadcast::Sender::subscribe);
        Subscription { replay: self.ring.iter().cloned().collect(), live }
    }

    /// Ends every stream once it has delivered what is in the log.
    pub(super) fn close(&mut self) {
        self.live = None;
    }
}

/// The line that tells a reader it was too slow.
pub(super) fn lagged_line(missed: u64) -> Bytes {
    line(&Event { seq: None, at: None, body: &EventBody::Lagged { missed } })
}

fn line(event: &Event<'_>) -> Bytes {
    // These types always serialise; an empty line would be skipped by every reader of NDJSON.
    let mut json = serde_json::to_vec(event).unwrap_or_default();
    json.push(b'\n');
    json.into()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn moment() -> Moment {
        Moment { ms: 5, time: "t".into() }
    }

    fn parse(line: &Bytes) -> Value {
        serde_json::from_slice(line).expect("JSON")
    }

    #[test]
    fn an_event_is_one_line_of_json() {
        let mut log = EventLog::new();
        log.append(&moment(), &EventBody::Warning { message: "a\nb" });
        let line = &log.subscribe().replay[0];
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
        let wanted =
            serde_json::json!({"seq": 1, "ms": 5, "time": "t", "kind": "warning", "message": "a\nb"});
        assert_eq!(parse(line), wanted);
    }

    #[test]
    fn the_ring_forgets_the_oldest_and_never_a_number() {
        let mut log = EventLog::new();
        for _ in 0..CAPACITY + 10 {
            log.append(&moment(), &EventBody::State { state: State::Running });
        }
        let replay = log.subscribe().replay;
        assert_eq!(replay.len(), CAPACITY);
        assert_eq!(parse(&replay[0])["seq"], 11);
    }

    #[test]
    fn a_closed_log_still_replays() {
        let mut log = EventLog::new();
        log.append(&moment(), &EventBody::State { state: State::Stopped });
        log.close();
        let subscription = log.subscribe();
        assert_eq!(subscription.replay.len(), 1);
        assert!(subscription.live.is_none());
    }
}
