//! The control connection: made, answered, and made again when it is cut.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nestling_protocol::{
    Answer, Capability, Failure, FailureKind, FromAgent, FromHost, Hello, Order, ProtocolError, Versions,
    Welcome, WorkloadState, frame,
};

use super::transport::{Stream, connect_to, exists};
use super::{Agent, Happening, lock, machine, milliseconds, stats};

/// How long the host may take to answer the hello, and to take what it is told.
const HOST_TIMEOUT: Duration = Duration::from_secs(5);

/// Waits between two tries: the first, and the longest.
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// The wait after a host has refused us.
const REFUSED_WAIT: Duration = Duration::from_secs(60);

/// How long a host that was told of the end may take to hang up.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Why there is no connection.
enum NoWelcome {
    Refused(String),
    Failed(ProtocolError),
}

impl From<ProtocolError> for NoWelcome {
    fn from(error: ProtocolError) -> Self {
        Self::Failed(error)
    }
}

/// Keeps a connection to the host, as long as the options say.
pub(super) fn keep(agent: &Arc<Agent>) {
    let begun = Instant::now();
    let (mut wait, mut said) = (FIRST_WAIT, false);
    loop {
        let error = match attempt(agent) {
            Ok(stream) => {
                wait = FIRST_WAIT;
                let error = serve(agent, &stream);
                lock(&agent.state).host = None;
                stream.shut();
                error.map(|error| error.to_string())
            }
            Err(NoWelcome::Refused(message)) => {
                wait = REFUSED_WAIT;
                Some(format!("it refuses this agent: {message}"))
            }
            Err(NoWelcome::Failed(error)) => Some(error.to_string()),
        };
        let configured = lock(&agent.state).configured;
        if !configured && !said && begun.elapsed() >= agent.options.patience {
            said = true;
            agent.happen(Happening::NoHost);
        }
        // A host that has once been there comes back.
        if !configured && said && !agent.options.persistent {
            return;
        }
        if configured && let Some(error) = error {
            crate::say!("the connection to the host: {error}");
        }
        let patience = agent.options.patience.saturating_sub(begun.elapsed());
        sleep(if configured || said { wait } else { wait.min(patience).max(FIRST_WAIT) });
        wait = (wait * 2).clamp(FIRST_WAIT, LONGEST_WAIT);
    }
}

/// Connects, says hello, and takes the welcome on.
fn attempt(agent: &Arc<Agent>) -> Result<Arc<Stream>, NoWelcome> {
    // A host that is told of us has to find us.
    if !exists(&agent.options.control) || !agent.listening.load(Ordering::Acquire) {
        return Err(NoWelcome::Failed(std::io::Error::from(std::io::ErrorKind::Unsupported).into()));
    }
    let stream = Arc::new(connect_to(&agent.options.control).map_err(ProtocolError::Io)?);
    stream.set_write_timeout(Some(HOST_TIMEOUT)).map_err(ProtocolError::Io)?;
    stream.set_read_timeout(Some(HOST_TIMEOUT)).map_err(ProtocolError::Io)?;
    let (workload, ready) = {
        let state = lock(&agent.state);
        (state.workload, state.ready)
    };
    frame::write_message(&mut &*stream, &FromAgent::Hello(hello(agent, workload, ready)))?;
    let welcome = match frame::read_message(&mut &*stream)? {
        FromHost::Welcome(welcome) => welcome,
        FromHost::Refused { message } => return Err(NoWelcome::Refused(message)),
        _ => return Err(ProtocolError::UnexpectedMessage("welcome").into()),
    };
    let theirs = Versions { oldest: welcome.version, newest: welcome.version };
    Versions::OURS.common(theirs)?;
    stream.set_read_timeout(None).map_err(ProtocolError::Io)?;
    take_on(agent, &stream, *welcome, workload, ready);
    Ok(stream)
}

fn hello(agent: &Agent, workload: WorkloadState, ready: bool) -> Hello {
    let mut capabilities = vec![
        Capability::Exec,
        Capability::Files,
        Capability::Forward,
        Capability::Stats,
        Capability::Workload,
    ];
    if agent.options.owns_machine {
        capabilities.extend([Capability::Machine, Capability::PowerOff]);
    }
    Hello {
        versions: Versions::OURS,
        agent: env!("CARGO_PKG_VERSION").into(),
        boot_id: machine::kernel_says("random/boot_id"),
        kernel: machine::kernel_says("osrelease"),
        init: agent.options.init,
        capabilities,
        workload,
        ready,
    }
}

/// Does what a welcome says, of the configuration only what was not done before; then events may flow.
fn take_on(agent: &Arc<Agent>, stream: &Arc<Stream>, welcome: Welcome, workload: WorkloadState, ready: bool) {
    let mut problems = Vec::new();
    if let Some(entropy) = welcome.entropy {
        problems.extend(machine::add_entropy(&agent.options, &entropy.0).err());
    }
    if let Some(now) = welcome.time_unix_ns {
        problems.extend(machine::set_time(&agent.options, now).err());
    }
    let first = {
        let mut state = lock(&agent.state);
        let first = !std::mem::replace(&mut state.configured, true);
        if first {
            if let Some(name) = &welcome.configuration.hostname {
                problems.extend(machine::set_hostname(&agent.options, name).err());
            }
            *lock(&agent.configuration) = Arc::new(welcome.configuration);
        }
        state.host = Some(stream.clone());
        state.tell(&FromAgent::Configured);
        // What happened since the hello was said.
        match state.workload {
            now if now == workload => {}
            WorkloadState::None => {}
            WorkloadState::Running { pid } => state.tell(&FromAgent::Started { pid }),
            WorkloadState::Ended(outcome) => state.tell(&FromAgent::Exited { outcome }),
        }
        if state.ready && !ready {
            state.tell(&FromAgent::Ready);
        }
        for Failure { message, .. } in problems {
            state.tell(&FromAgent::Problem { message });
        }
        first
    };
    if first {
        agent.happen(Happening::Configured);
    }
}

/// Answers orders until the connection ends; why it did, if that was an error.
fn serve(agent: &Arc<Agent>, stream: &Stream) -> Option<ProtocolError> {
    loop {
        let message = match frame::read(&mut &*stream) {
            Ok(None) => return None,
            Ok(Some(frame)) => frame.message(),
            Err(error) => return Some(error),
        };
        match message {
            Ok(FromHost::Order { id, order }) => {
                let answer = obey(agent, order);
                agent.report(&FromAgent::Answer { id, answer });
            }
            Ok(FromHost::Unknown) => {}
            Ok(FromHost::Welcome(_) | FromHost::Refused { .. }) => {
                return Some(ProtocolError::UnexpectedMessage("an order"));
            }
            Err(error) => return Some(error),
        }
    }
}

fn obey(agent: &Agent, order: Order) -> Answer {
    let done = |result: Result<(), Failure>| result.map_or_else(Answer::Failed, |()| Answer::Done);
    match order {
        Order::Ping => Answer::Done,
        Order::Stop { grace_ms } => {
            agent.happen(Happening::Stop(milliseconds(grace_ms)));
            Answer::Done
        }
        Order::Stats => Answer::Stats(Box::new(stats::now())),
        Order::SetTime { unix_ns } => done(machine::set_time(&agent.options, unix_ns)),
        Order::AddEntropy { bytes } => done(machine::add_entropy(&agent.options, &bytes.0)),
        Order::Unknown => {
            Answer::Failed(Failure::new(FailureKind::Unsupported, "this agent does not know that order"))
        }
    }
}

impl Agent {
    /// The last words: tells the host how the machine ends, and waits until it has hung up, so that they arrive.
    pub(crate) fn say_farewell(&self, end: nestling_protocol::End) {
        let host = {
            let mut state = lock(&self.state);
            state.tell(&FromAgent::Ending { end });
            state.host.take()
        };
        let Some(host) = host else { return };
        host.shut_write();
        let _closed = host.wait_for_close(Instant::now() + LAST_WORDS);
    }
}
