//! The stop ladder: the hook, SIGTERM, SIGKILL, each with its share of the grace.
//!
//! ```text
//!  0                                               grace
//!  ├── hook ──┤                                       │   at most half of what is the workload's
//!  ├──────────┴── workload after SIGTERM ───┤ KILL    │   four fifths, or all but two seconds
//!  │                                        ├─ others ┤   the rest of the guest, sync, unmount
//! ```

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use nestling_protocol::{FromAgent, Outcome, Step, StopHook};

use super::{Agent, Happening, milliseconds};
use crate::children::Child;
use crate::{session_end, spawn};

/// The most that is kept back for the end.
const RESERVE: Duration = Duration::from_secs(2);

/// How long a killed workload may take to be gone.
const KILLED: Duration = Duration::from_secs(1);

/// A stop that is under way.
struct Stop<'a> {
    happenings: &'a Receiver<Happening>,
    begun: Instant,
    grace: Duration,
    /// How the workload ended, once it has.
    outcome: Option<Outcome>,
}

/// Runs the hook, ends the workload, and returns what of the grace is left for the rest.
pub(crate) fn ladder(
    agent: &Arc<Agent>,
    workload: Option<&Child>,
    happenings: &Receiver<Happening>,
    grace: Duration,
) -> Duration {
    let outcome = workload.and_then(Child::outcome);
    let mut stop = Stop { happenings, begun: Instant::now(), grace, outcome };
    if let Some(hook) = &agent.configuration().stop_hook {
        agent.report(&FromAgent::Stopping { step: Step::Hook });
        run_hook(agent, hook, &mut stop);
    }
    if let Some(workload) = workload {
        end_workload(agent, workload, &mut stop);
    }
    (stop.begun + stop.grace).saturating_duration_since(Instant::now())
}

impl Stop<'_> {
    /// What may go by until the workload is killed.
    fn workloads(&self) -> Duration {
        self.grace - RESERVE.min(self.grace / 5)
    }

    /// Waits for what `is` says, at most until what `until` says of the stop: a second order to stop may bring that
    /// nearer. False when the time is over.
    fn wait(&mut self, is: impl Fn(&Happening) -> bool, until: impl Fn(&Self) -> Duration) -> bool {
        loop {
            let deadline = self.begun + until(self);
            let happening =
                match self.happenings.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                    Ok(happening) => happening,
                    Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return false,
                };
            match happening {
                Happening::Stop(grace) => {
                    self.grace = self.grace.min(self.begun.elapsed().saturating_add(grace));
                }
                Happening::Ended(outcome) => self.outcome = Some(outcome),
                _ => {}
            }
            if is(&happening) {
                return true;
            }
        }
    }
}

fn run_hook(agent: &Arc<Agent>, hook: &StopHook, stop: &mut Stop) {
    let problem = |message: String| {
        crate::say!("the stop hook: {message}");
        agent.report(&FromAgent::Problem { message: format!("the stop hook: {message}") });
    };
    let plan = match agent.plan(&hook.program, [0, 1, 2], false) {
        Ok(plan) => plan,
        Err(failure) => return problem(failure.message),
    };
    let child = match spawn::spawn(&plan) {
        Ok(child) => child,
        Err(error) => return problem(error.to_string()),
    };
    let (waited, happenings) = (child.clone(), agent.happenings.clone());
    agent.thread("hook", move || {
        waited.wait();
        drop(happenings.send(Happening::HookEnded));
    });
    let own = hook.timeout_ms.map_or(Duration::MAX, milliseconds);
    let ended = stop
        .wait(|happening| matches!(happening, Happening::HookEnded), |stop| own.min(stop.workloads() / 2));
    match child.outcome() {
        Some(Outcome::Status(0)) => {}
        Some(outcome) => problem(outcome.to_string()),
        None if ended => {}
        None => {
            problem("it took too long, and is killed".into());
            session_end::kill(&child);
        }
    }
}

fn end_workload(agent: &Arc<Agent>, workload: &Child, stop: &mut Stop) {
    let ended = |happening: &Happening| matches!(happening, Happening::Ended(_));
    if stop.outcome.is_none() {
        agent.report(&FromAgent::Stopping { step: Step::Terminate });
        // To the program alone, as container runtimes do: it decides what its children are told. One that is stopped
        // has to go on to hear it.
        for signal in [libc::SIGTERM, libc::SIGCONT] {
            if let Err(error) = workload.signal(signal) {
                crate::say!("cannot signal the workload: {}", error.desc());
            }
        }
        stop.wait(ended, Stop::workloads);
    }
    if stop.outcome.is_none() {
        agent.report(&FromAgent::Stopping { step: Step::Kill });
        session_end::kill(workload);
        let until = stop.begun.elapsed() + KILLED;
        stop.wait(ended, |_| until);
    }
    if let Some(outcome) = stop.outcome {
        agent.ended(outcome);
    }
}
