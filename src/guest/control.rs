//! One control connection, from the agent's hello to its end.

use std::os::unix::net::UnixStream;
use std::time::{SystemTime, UNIX_EPOCH};

use nestling_protocol::{
    FromAgent, FromHost, Hello, Hex, Outcome, ProtocolError, Versions, Welcome, WorkloadState, frame,
};

use super::{AgentEvent, Shared, WRITE_PATIENCE};
use crate::backend::random;

/// The longest sentence of the guest's that is repeated.
const SENTENCE: usize = 400;
/// Bytes of seed that an agent gets.
const SEED: usize = 64;

/// Hears the agent out.
pub(super) fn converse(shared: &Shared, mut stream: UnixStream) -> Result<(), ProtocolError> {
    let FromAgent::Hello(hello) = frame::read_message(&mut stream)? else {
        return Err(ProtocolError::UnexpectedMessage("a hello"));
    };
    welcome(shared, &stream, &hello)?;
    let ended = match hello.workload {
        WorkloadState::Ended(outcome) => Some(outcome),
        WorkloadState::None | WorkloadState::Running { .. } => None,
    };
    let mut goes_on = shared.tell(AgentEvent::Joined { agent: short(&hello.agent), ended });
    while goes_on {
        let Some(frame) = frame::read(&mut stream)? else { return Ok(()) };
        goes_on = match frame.message()? {
            FromAgent::Hello(_) => return Err(ProtocolError::UnexpectedMessage("something new")),
            FromAgent::Started { pid } => shared.tell(AgentEvent::Started { pid }),
            FromAgent::NotStarted(failure) => {
                shared.tell(AgentEvent::Problem(short(&failure.message)))
                    && shared.tell(AgentEvent::Ended(Outcome::Status(failure.exit_code())))
            }
            FromAgent::Exited { outcome } => shared.tell(AgentEvent::Ended(outcome)),
            FromAgent::Stopping { step } => shared.tell(AgentEvent::Stopping(step)),
            FromAgent::Problem { message } => shared.tell(AgentEvent::Problem(short(&message))),
            // All before it was heard: the agent waits for this connection's end.
            FromAgent::Ending { .. } => return Ok(()),
            // There is no ready rule yet, and nothing was ordered that has an answer.
            FromAgent::Configured | FromAgent::Ready | FromAgent::Answer { .. } | FromAgent::Unknown => true,
        };
    }
    Ok(())
}

fn welcome(shared: &Shared, stream: &UnixStream, hello: &Hello) -> Result<(), ProtocolError> {
    let version = Versions::OURS.common(hello.versions)?;
    let writer = stream.try_clone()?;
    writer.set_write_timeout(Some(WRITE_PATIENCE))?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok();
    let welcome = Welcome {
        version,
        time_unix_ns: now.and_then(|now| u64::try_from(now.as_nanos()).ok()),
        entropy: seed(),
        configuration: shared.configuration.clone(),
    };
    *shared.writer() = Some(writer);
    Ok(shared.say(&FromHost::Welcome(Box::new(welcome)))?)
}

fn seed() -> Option<Hex> {
    let mut seed = vec![0; SEED];
    random::fill(&mut seed).is_ok().then_some(Hex(seed))
}

fn short(text: &str) -> String {
    text.chars().take(SENTENCE).collect()
}
