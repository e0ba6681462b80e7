//! The one writer of the status. Every change is made here once, and everybody reads it from here.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::clock::{Clock, Moment};
use super::events::{EventBody, EventLog, Subscription};
use super::model::{BootStage, HostBackend, MachineFacts};
use super::snapshot::{End, PlanSummary, StageReached, State, Status};

/// More warnings than this say nothing new; the events still carry each.
const MAX_WARNINGS: usize = 32;

/// Asks the machine for its facts; `None` while it is busy, and then the last known facts stand.
pub type FactSource = Box<dyn Fn() -> Option<MachineFacts> + Send + Sync>;

/// Owns the status and the event log.
pub struct Publisher {
    clock: Clock,
    status_file: Option<PathBuf>,
    inner: Mutex<Inner>,
    facts: Mutex<Option<FactSource>>,
}

struct Inner {
    status: Status,
    log: EventLog,
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher").field("state", &self.state()).finish_non_exhaustive()
    }
}

impl Publisher {
    /// Begins in state `preflight`. With a status file, the status is also kept there, whole at every moment.
    #[must_use]
    pub fn new(clock: Clock, plan: PlanSummary, status_file: Option<PathBuf>) -> Self {
        let now = clock.now();
        let mut log = EventLog::new();
        log.append(&now, &EventBody::State { state: State::Preflight });
        let status = first_status(plan, clock.beginning(), now);
        let publisher =
            Self { clock, status_file, inner: Mutex::new(Inner { status, log }), facts: Mutex::new(None) };
        publisher.save();
        publisher
    }

    /// The state changed.
    pub fn enter(&self, state: State) {
        let now = self.clock.now();
        let mut inner = self.lock();
        inner.enter(state, now);
        drop(inner);
        self.save();
    }

    /// A boot stage was reached at `at`.
    pub fn reach(&self, stage: BootStage, at: Moment) {
        let mut inner = self.lock();
        inner.log.append(&at, &EventBody::Stage { stage });
        inner.status.stages.push(StageReached { stage, at });
    }

    /// Something is not as it should be, and the VM goes on.
    pub fn warn(&self, message: &str) {
        let now = self.clock.now();
        let mut inner = self.lock();
        inner.log.append(&now, &EventBody::Warning { message });
        if inner.status.warnings.len() < MAX_WARNINGS {
            inner.status.warnings.push(message.to_owned());
        }
    }

    /// Which KVM is underneath.
    pub fn set_backend(&self, backend: HostBackend) {
        self.lock().status.backend = Some(backend);
    }

    /// From now on the machine's facts come from here.
    pub fn watch(&self, source: FactSource) {
        *lock(&self.facts) = Some(source);
    }

    /// The run ended: the facts are read a last time, and the status is final.
    pub fn finish(&self, state: State, end: &End) {
        self.refresh();
        *lock(&self.facts) = None;
        let now = self.clock.now();
        let mut inner = self.lock();
        inner.status.end = Some(end.clone());
        inner.enter(state, now.clone());
        let End { reason, exit_code, exit_name, message, .. } = end;
        inner.log.append(&now, &EventBody::Ended { reason, exit_code: *exit_code, exit_name, message });
        inner.log.close();
        drop(inner);
        self.save();
    }

    /// The state alone: no question to the machine.
    #[must_use]
    pub fn state(&self) -> State {
        self.lock().status.state
    }

    /// The whole status, with the machine's facts of this moment.
    #[must_use]
    pub fn status(&self) -> Status {
        self.refresh();
        let mut status = self.lock().status.clone();
        status.uptime_ms = self.clock.elapsed_ms();
        status
    }

    /// What happened so far, and what will.
    pub(super) fn subscribe(&self) -> Subscription {
        self.lock().log.subscribe()
    }

    /// Asks the machine, and keeps what it says.
    fn refresh(&self) {
        let facts = lock(&self.facts).as_ref().and_then(|ask| ask());
        if let Some(facts) = facts {
            self.lock().status.machine = facts;
        }
    }

    /// Puts the status into the status file. What cannot be written is told once per attempt and stops nothing.
    fn save(&self) {
        let Some(path) = &self.status_file else { return };
        let saved = serde_json::to_vec_pretty(&self.status())
            .map_err(std::io::Error::from)
            .and_then(|json| super::durable::replace(path, &json));
        if let Err(error) = saved {
            let message = format!("the status file {} cannot be written: {error}", path.display());
            tracing::warn!(target: "nestling", "{message}");
            self.warn(&message);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }
}

impl Inner {
    fn enter(&mut self, state: State, now: Moment) {
        self.log.append(&now, &EventBody::State { state });
        self.status.state = state;
        self.status.since_ms = now.ms;
        self.status.since = now.time;
    }
}

/// A panic elsewhere does not make the status unreadable.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn first_status(plan: PlanSummary, began: Moment, now: Moment) -> Status {
    Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        state: State::Preflight,
        since: now.time,
        since_ms: now.ms,
        started: began.time,
        uptime_ms: now.ms,
        stages: Vec::new(),
        end: None,
        warnings: Vec::new(),
        backend: None,
        plan,
        machine: MachineFacts::default(),
    }
}
