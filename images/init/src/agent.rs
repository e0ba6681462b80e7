//! The agent: what the host can ask of the guest, and what it is told.
//!
//! ```text
//!  main ── the life: workload, stop, end ◀─ happenings ─┬─ signals   reaps, and turns signals into happenings
//!                                                       ├─ control   the connection to the host, and back when cut
//!                                                       ├─ workload  waits for its end
//!                                                       └─ ready     tries the rule until it holds
//!  listener ── a session thread for each connection of the host: exec, put, get, forward, stats, ready
//! ```
//!
//! Only the main thread decides anything about the guest's life; the others tell it what happens. Sessions know nothing
//! of each other, so one that hangs holds up none.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{SendError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nestling_protocol::{Configuration, Failure, FromAgent, Outcome, Program, WorkloadState};

use crate::children;
use crate::power::End;
use crate::session_end;
use crate::spawn::Plan;
use crate::users::Identity;

mod control;
mod exec;
mod files;
mod forward;
mod machine;
mod pty;
mod ready;
mod session;
mod stats;
mod stop;
pub(crate) mod transport;

pub(crate) use stop::ladder;
use transport::{Address, Stream};

/// Stacks of the agent's threads: nothing here recurses.
const STACK: usize = 256 << 10;

/// How long all sessions may take to end when the agent does.
const SESSIONS_GRACE: Duration = Duration::from_secs(4);

/// What the main thread is told.
#[derive(Debug)]
pub(crate) enum Happening {
    /// The host has said what this boot is for. Told once.
    Configured,
    /// There is no host that speaks the protocol (for now).
    NoHost,
    /// The workload has ended.
    Ended(Outcome),
    /// The stop hook has ended.
    HookEnded,
    /// The host wants the guest stopped within that time.
    Stop(Duration),
    /// A signal told this process to end the machine.
    Told(End),
}

/// How an agent is set up.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// Where it listens for sessions.
    pub(crate) listen: Address,
    /// Where the host listens for the control connection.
    pub(crate) control: Address,
    /// Whether it is the guest's PID 1.
    pub(crate) init: bool,
    /// Whether clock, host name, entropy and power are its to change: of a machine that it shares with its host, they
    /// are not.
    pub(crate) owns_machine: bool,
    /// How long to try for the host at first, before saying that there is none.
    pub(crate) patience: Duration,
    /// Whether to go on trying afterwards.
    pub(crate) persistent: bool,
}

/// What all threads of the agent share.
#[derive(Debug)]
pub(crate) struct Agent {
    options: Options,
    happenings: Sender<Happening>,
    configuration: Mutex<Arc<Configuration>>,
    state: Mutex<State>,
    listening: AtomicBool,
    sessions: AtomicUsize,
}

/// What the host is told of, and how. One lock, so that a connection that comes up misses nothing.
#[derive(Debug)]
struct State {
    host: Option<Arc<Stream>>,
    workload: WorkloadState,
    ready: bool,
    configured: bool,
}

/// A time that the host gives: a day at most, so that no sum with it overflows.
fn milliseconds(number: u64) -> Duration {
    Duration::from_millis(number.min(24 * 60 * 60 * 1000))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Agent {
    /// Starts it: listens, and tries for the host. [`Happening::Configured`] or [`Happening::NoHost`] follows.
    pub(crate) fn start(options: Options, happenings: Sender<Happening>) -> Arc<Self> {
        let state = State { host: None, workload: WorkloadState::None, ready: false, configured: false };
        let agent = Arc::new(Self {
            options,
            happenings,
            configuration: Mutex::default(),
            state: Mutex::new(state),
            listening: AtomicBool::new(false),
            sessions: AtomicUsize::new(0),
        });
        // First of all, so that a host that is told of us finds us.
        let (of_listener, listener) = (agent.clone(), session::listen(&agent));
        agent.thread("listener", move || session::serve(&of_listener, listener));
        let of_control = agent.clone();
        if !agent.thread("control", move || control::keep(&of_control)) {
            agent.happen(Happening::NoHost);
        }
        agent
    }

    /// Runs `work` on a thread of its own; false, and a sentence, when there can be none.
    fn thread(&self, name: &str, work: impl FnOnce() + Send + 'static) -> bool {
        match std::thread::Builder::new().name(name.into()).stack_size(STACK).spawn(work) {
            Ok(_) => true,
            Err(error) => {
                crate::say!("cannot start the thread {name}: {error}");
                false
            }
        }
    }

    fn happen(&self, happening: Happening) {
        if let Err(SendError(happening)) = self.happenings.send(happening) {
            crate::say!("too late, all is ending: {happening:?}");
        }
    }

    /// What this boot is for; empty until the host has said it.
    pub(crate) fn configuration(&self) -> Arc<Configuration> {
        lock(&self.configuration).clone()
    }

    /// Tells the host, if there is one; who is not there learns the state from the next hello.
    pub(crate) fn report(&self, event: &FromAgent) {
        lock(&self.state).tell(event);
    }

    /// The workload runs.
    pub(crate) fn started(&self, pid: i32) {
        let mut state = lock(&self.state);
        state.workload = WorkloadState::Running { pid };
        state.tell(&FromAgent::Started { pid });
    }

    /// The workload could not be started; for the rest, as if it had ended like that.
    pub(crate) fn not_started(&self, failure: Failure) {
        let mut state = lock(&self.state);
        state.workload = WorkloadState::Ended(Outcome::Status(failure.exit_code()));
        state.tell(&FromAgent::NotStarted(failure));
    }

    /// The workload has ended.
    pub(crate) fn ended(&self, outcome: Outcome) {
        let mut state = lock(&self.state);
        state.workload = WorkloadState::Ended(outcome);
        state.tell(&FromAgent::Exited { outcome });
    }

    /// How long a stop may take that the guest itself was told of.
    pub(crate) fn grace(&self, usual: Duration) -> Duration {
        self.configuration().grace_ms.map_or(usual, milliseconds)
    }

    fn workload(&self) -> WorkloadState {
        lock(&self.state).workload
    }

    /// Ends everything that was started: for an agent that ends while the machine goes on.
    pub(crate) fn end_all(&self) {
        let all = children::close();
        all.iter().for_each(session_end::ask);
        let deadline = Instant::now() + SESSIONS_GRACE;
        let is_over = || self.sessions.load(Ordering::Relaxed) == 0 && !session_end::is_under_way();
        while !is_over() && Instant::now() < deadline {
            sleep(Duration::from_millis(5));
        }
        // Those too whose leader has ended already: it may have had a child that was just being born.
        all.iter().for_each(session_end::kill);
    }

    /// Tries the ready rule, if there is one, until it holds.
    pub(crate) fn watch_ready(self: &Arc<Self>) {
        let agent = self.clone();
        if self.configuration().ready.is_some() {
            self.thread("ready", move || ready::watch(&agent));
        }
    }

    /// What to start for `program`: with the boot's environment under its own.
    pub(crate) fn plan(&self, program: &Program, streams: [i32; 3], terminal: bool) -> Result<Plan, Failure> {
        let identity = program.user.as_deref().map(Identity::find).transpose()?;
        let configuration = self.configuration();
        let configured = configuration.environment.iter().chain(&program.env);
        let configured = configured
            .map(|(name, value)| (name.as_os_str().to_os_string(), value.as_os_str().to_os_string()));
        let mut environment = base_environment(identity.as_ref());
        environment.extend(configured);
        Ok(Plan {
            argv: program.argv.iter().map(|word| word.as_os_str().to_os_string()).collect(),
            environment,
            directory: program.cwd.as_ref().map(|directory| PathBuf::from(directory.as_os_str())),
            identity,
            streams,
            terminal,
        })
    }
}

/// What every program gets: our own environment (as PID 1, what the kernel's command line sets), a PATH, and HOME and
/// USER of whom it runs as.
pub(crate) fn base_environment(identity: Option<&Identity>) -> BTreeMap<OsString, OsString> {
    let mut environment: BTreeMap<OsString, OsString> = std::env::vars_os().collect();
    environment.insert("PATH".into(), crate::spawn::PATH.into());
    let own = identity.is_none().then(Identity::own).flatten();
    if let Some(Identity { name, home, .. }) = identity.or(own.as_ref()) {
        environment.insert("HOME".into(), home.clone().unwrap_or_else(|| "/".into()).into());
        if let Some(name) = name {
            environment.insert("USER".into(), name.into());
        }
    } else if environment.get(&OsString::from("HOME")).is_none_or(|home| home == "/")
        && std::path::Path::new("/root").is_dir()
    {
        environment.insert("HOME".into(), "/root".into());
    }
    environment
}

impl State {
    fn tell(&mut self, event: &FromAgent) {
        let Some(host) = &self.host else { return };
        if let Err(error) = nestling_protocol::frame::write_message(&mut &**host, event) {
            // Half a frame may have gone: this connection is of no use any more, and its reader makes another.
            crate::say!("cannot tell the host: {error}");
            host.shut();
            self.host = None;
        }
    }
}
