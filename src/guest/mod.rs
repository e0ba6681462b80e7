//! The host's end of the channel to the agent in the guest (`nestling_protocol`): who is there, what it tells, what it is
//! told.
//!
//! The agent connects to [`CONTROL_PORT`] of the host, through the vsock device and [`Inside`]: no socket file, nobody in
//! between. A guest without an agent is never heard of, and runs as ever. What comes is a guest's word: it can end no more
//! than its own connection.

mod control;

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use nestling_protocol::{CONTROL_PORT, Configuration, FromHost, Order, Outcome, Step, frame};
use tokio::sync::mpsc::Sender;

use crate::backend::vsock::Inside;
use crate::status::clock::{Clock, Moment};

/// How long the agent may take to read what it is told.
const WRITE_PATIENCE: Duration = Duration::from_secs(2);
/// Bytes of stack of the thread that listens to the agent.
const STACK: usize = 256 << 10;

/// What the agent tells.
#[derive(Debug, Clone, PartialEq)]
pub enum AgentEvent {
    /// It is there.
    Joined {
        /// Its version.
        agent: String,
        /// The program the guest is for, if it has ended already: the agent was there before, and comes again.
        ended: Option<Outcome>,
    },
    /// Its connection is gone; it may come again.
    Left,
    /// The workload runs.
    Started {
        /// Its process in the guest.
        pid: i32,
    },
    /// The workload has ended; one that could not be started, as a shell would tell it.
    Ended(Outcome),
    /// A stop is at this step.
    Stopping(Step),
    /// Something went wrong, in the guest's words.
    Problem(String),
}

/// The host's end. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Guest(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    configuration: Configuration,
    clock: Clock,
    events: Sender<(AgentEvent, Moment)>,
    /// There is one agent; a second one is turned away.
    taken: AtomicBool,
    /// For orders, while there is a connection.
    writer: Mutex<Option<UnixStream>>,
}

impl Guest {
    /// Takes the agent's connections from now on; each boot is for `configuration`. What it tells arrives on `events`: when
    /// nobody takes it from there, the agent waits.
    #[must_use]
    pub fn listen(
        inside: &Inside,
        configuration: Configuration,
        clock: Clock,
        events: Sender<(AgentEvent, Moment)>,
    ) -> Self {
        let taken = AtomicBool::new(false);
        let guest = Self(Arc::new(Shared { configuration, clock, events, taken, writer: Mutex::default() }));
        let shared = Arc::downgrade(&guest.0);
        inside.serve(
            CONTROL_PORT,
            Arc::new(move |stream| {
                if let Some(shared) = shared.upgrade() {
                    receive(&shared, stream);
                }
            }),
        );
        guest
    }

    /// Whether an agent is connected.
    #[must_use]
    pub fn is_there(&self) -> bool {
        self.0.writer().is_some()
    }

    /// Orders the agent to stop the guest within `grace`.
    ///
    /// # Errors
    /// When there is none, or it does not read.
    pub fn stop(&self, grace: Duration) -> io::Result<()> {
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        self.0.say(&FromHost::Order { id: 0, order: Order::Stop { grace_ms } })
    }
}

impl Shared {
    fn writer(&self) -> MutexGuard<'_, Option<UnixStream>> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn say(&self, message: &FromHost) -> io::Result<()> {
        let mut writer = self.writer();
        let stream = writer.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        frame::write_message(stream, message).map_err(io::Error::other)
    }

    /// Tells what happened; `false` when nobody wants to know any more.
    fn tell(&self, event: AgentEvent) -> bool {
        self.events.blocking_send((event, self.clock.now())).is_ok()
    }
}

/// On the device's thread, which must not wait.
fn receive(shared: &Arc<Shared>, stream: UnixStream) {
    if shared.taken.swap(true, Ordering::AcqRel) {
        // It closes: the guest has an agent.
        return;
    }
    let listen = {
        let shared = Arc::clone(shared);
        move || {
            if let Err(error) = control::converse(&shared, stream) {
                tracing::warn!(target: "nestling", "the guest's agent was cut off: {error}");
            }
            *shared.writer() = None;
            shared.tell(AgentEvent::Left);
            shared.taken.store(false, Ordering::Release);
        }
    };
    if let Err(error) = thread::Builder::new().name("guest-agent".into()).stack_size(STACK).spawn(listen) {
        tracing::warn!(target: "nestling", "the guest's agent cannot be heard: {error}");
        shared.taken.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests;
