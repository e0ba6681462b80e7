//! `nestling run`, from a valid plan to an exit code.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use nestling_protocol::Configuration;
use tokio::runtime::Builder;
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::sync::oneshot;
use tokio::time::{Sleep, sleep};

use super::exit::Exit;
use super::gate::admit;
use super::guest_agent::{self, Agent};
use super::life::Life;
use super::lifecycle::LifeEvent;
use super::limits;
use super::signals::Signals;
use super::vm::{TimedEvent, Vm, bridge, create};
use super::window;
use crate::backend::console::ConsoleHub;
use crate::backend::vsock::{Inside, raise_descriptor_limit};
use crate::guest::Guest;
use crate::spec::plan::RunPlan;
use crate::status::clock::Clock;
use crate::status::durable::leave_last_words;
use crate::status::model::{EndReason, MachineEvent};
use crate::status::operation::{Asked, Operation, Refusal};
use crate::status::publisher::Publisher;
use crate::status::server::{Requests, Server, StopRequest};
use crate::status::snapshot::{End, State};
use crate::status::socket::{Claim, claim};
use crate::vmm::ConsoleIo;

/// How long a stop waits for whatever has the machine: less than the 30 seconds after which Kubernetes sends SIGKILL, more than a
/// pause and a stop take together.
const STOP_PATIENCE: Duration = Duration::from_secs(if cfg!(test) { 3 } else { 25 });
/// How long the guest's agent has for a stop, before the guest's power is cut. What the machine takes after that fits
/// Kubernetes' 30 seconds as well.
const GUEST_GRACE: Duration = Duration::from_secs(12);

/// Runs the machine of `plan` to its end, in the foreground.
///
/// # Errors
/// When the run ended before it had a socket, and with it a status: the reason is the caller's to print.
pub fn run(plan: &RunPlan, clock: Clock) -> Result<Exit, EndReason> {
    // The usual soft limit is there for programs that use select(2). Where it stays, it may be enough.
    if let Err(error) = raise_descriptor_limit() {
        tracing::debug!(target: "nestling", "the limit of open files stays as it is: {error}");
    }
    let runtime =
        Builder::new_current_thread().enable_all().build().map_err(internal).map_err(limits::name)?;
    let ended = runtime.block_on(async {
        let signals = Signals::listen().map_err(internal)?;
        let claim = claim(&plan.socket).map_err(|error| EndReason::BadInput { detail: error.to_string() })?;
        let console = ConsoleIo::of_this_process(plan.console_history).map_err(internal)?;
        let hub = Arc::clone(&console.hub);
        window::follow(&hub).map_err(internal)?;
        let inside = Inside::new().map_err(internal)?;
        let ways = Ways { console: hub, inside: inside.clone() };
        Ok(live(plan, clock, claim, signals, ways, move |plan| create(plan, console, &inside)).await)
    });
    ended.map_err(limits::name)
}

/// Says to Kubernetes why a run ended that never had a status.
pub fn refuse(reason: &EndReason) -> Exit {
    let exit = Exit::from(reason);
    let end = End {
        reason: reason.clone(),
        exit_code: exit.code(),
        exit_name: exit.name().to_owned(),
        message: reason.to_string(),
        last_exit: None,
        console_tail: Vec::new(),
    };
    leave_last_words(State::Failed, &end);
    exit
}

/// What leads into the guest.
struct Ways {
    console: Arc<ConsoleHub>,
    inside: Inside,
}

/// The whole life, with the socket up from the first state to the last event.
async fn live<M: Vm>(
    plan: &RunPlan,
    clock: Clock,
    claim: Claim,
    mut signals: Signals,
    ways: Ways,
    build: impl FnOnce(&RunPlan) -> Result<M, EndReason> + Send + 'static,
) -> Exit {
    let Ways { console, inside } = ways;
    let publisher = Arc::new(Publisher::new(clock, (&plan.machine).into(), plan.status_file.clone()));
    let (stop, stop_requests) = mpsc::channel(1);
    let (operations, asked) = mpsc::channel(1);
    let server =
        Server::start(claim, Arc::clone(&publisher), Requests { stop, operations }, Arc::clone(&console));
    let (tell, agent_events) = mpsc::channel(guest_agent::EVENTS);
    let guest = Guest::listen(&inside, Configuration::default(), clock, tell);
    let mut life = Life::begin(Arc::clone(&publisher));
    let exit = match prepare(plan, &mut life, &publisher, &mut signals, build).await {
        Ok(machine) => {
            let agent = Agent::new(guest, agent_events);
            Running { machine, life, signals, stop_requests, asked, agent, clock }.see_through().await
        }
        Err(reason) => life.finish(limits::name(reason), Vec::new()),
    };
    console.close();
    server.finish().await;
    exit
}

/// Preflight, then the machine; nothing runs yet.
async fn prepare<M: Vm>(
    plan: &RunPlan,
    life: &mut Life,
    publisher: &Publisher,
    signals: &mut Signals,
    build: impl FnOnce(&RunPlan) -> Result<M, EndReason> + Send + 'static,
) -> Result<Arc<Mutex<M>>, EndReason> {
    publisher.set_backend(admit(plan.allow_backend)?);
    life.step(LifeEvent::Admitted);
    let machine = Arc::new(Mutex::new(built(plan, signals, build).await?));
    let watched = Arc::clone(&machine);
    publisher.watch(Box::new(move || watched.try_lock().ok().map(|machine| machine.facts())));
    life.step(LifeEvent::Created);
    Ok(machine)
}

/// Builds the machine beside us, so that the socket answers and a signal is heard while a kernel is read from slow
/// storage. After a signal the thread is left to the end of the process.
async fn built<M: Vm>(
    plan: &RunPlan,
    signals: &mut Signals,
    build: impl FnOnce(&RunPlan) -> Result<M, EndReason> + Send + 'static,
) -> Result<M, EndReason> {
    let (done, is_built) = oneshot::channel();
    let plan = plan.clone();
    let work = move || drop(done.send(build(&plan)));
    thread::Builder::new().name("machine-build".into()).spawn(work).map_err(internal)?;
    tokio::select! {
        machine = is_built => machine.unwrap_or_else(|_| Err(internal("the thread that builds the machine is gone"))),
        signal = signals.next() => Err(EndReason::Stopped { by: signal.name().to_owned() }),
    }
}

/// A built machine and everything that can end it.
struct Running<M> {
    machine: Arc<Mutex<M>>,
    life: Life,
    signals: Signals,
    stop_requests: mpsc::Receiver<StopRequest>,
    asked: mpsc::Receiver<Asked>,
    agent: Agent,
    clock: Clock,
}

/// An operation that is being done beside us, and who waits for it.
struct Work {
    operation: Operation,
    done: oneshot::Receiver<Result<(), Refusal>>,
    answer: oneshot::Sender<Result<(), Refusal>>,
}

impl<M: Vm> Running<M> {
    /// Starts the machine, waits for its end whoever brings it, takes the machine down, and tells the story.
    async fn see_through(mut self) -> Exit {
        let mut reason = match self.start() {
            Ok(events) => self.wait(events).await,
            Err(reason) => reason,
        };
        self.life.step(LifeEvent::EndBegan);
        match self.take_down().await {
            Down::InOrder => {}
            Down::Left { by } => {
                tracing::warn!(target: "nestling", "{by} again: leaving without waiting for the machine");
                reason = EndReason::Stopped { by };
            }
            Down::Stuck { why } => reason = left_behind(reason, &why),
        }
        let console_tail = self.machine.try_lock().map(|machine| machine.console_tail()).unwrap_or_default();
        self.life.finish(reason, console_tail)
        // The machine goes here: nobody else has it any more, unless it is stuck.
    }

    fn start(&self) -> Result<UnboundedReceiver<TimedEvent>, EndReason> {
        let (to_us, events) = bridge(self.clock).map_err(internal)?;
        self.machine.lock().unwrap_or_else(PoisonError::into_inner).start(to_us)?;
        Ok(events)
    }

    /// Follows the machine until it ends or somebody wants it to.
    async fn wait(&mut self, mut events: UnboundedReceiver<TimedEvent>) -> EndReason {
        let mut work: Option<Work> = None;
        let mut stop: Option<Stop> = None;
        loop {
            tokio::select! {
                biased;
                event = events.recv() => match event {
                    Some((MachineEvent::Stage(stage), at)) => self.life.reach(stage, at),
                    Some((MachineEvent::Ended(reason), _)) => return self.agent.explain(reason, stop.map(|stop| stop.by), &mut self.life),
                    None => return internal("the machine's threads ended without a word"),
                },
                signal = self.signals.next() => {
                    let by = signal.name();
                    match stop {
                        None => match self.ask_guest(by) {
                            Ok(asked) => stop = Some(asked),
                            Err(reason) => return reason,
                        },
                        Some(_) if self.signals.is_one_order() => {}
                        // A second one does not wait for the guest.
                        Some(_) => return EndReason::Stopped { by: by.to_owned() },
                    }
                }
                Some(StopRequest) = self.stop_requests.recv(), if stop.is_none() => {
                    match self.ask_guest("a request on the socket") {
                        Ok(asked) => stop = Some(asked),
                        Err(reason) => return reason,
                    }
                }
                by = patience(&mut stop) => {
                    let seconds = GUEST_GRACE.as_secs();
                    let detail = format!("the machine was stopped by {by}: the guest's agent had {seconds} s to end it, and did not");
                    return EndReason::Killed { detail };
                }
                done = finished(&mut work) => {
                    let Some(Work { operation, answer, .. }) = work.take() else { continue };
                    if done.is_ok() {
                        self.take_note(&operation);
                    }
                    let _ = answer.send(done); // nobody waits any more
                }
                Some(asked) = self.asked.recv(), if work.is_none() => work = self.begin(asked),
                // The last in the order: a guest that tells without end keeps nobody from being heard.
                Some((event, at)) = self.agent.events.recv() => self.agent.hear(&event, at, &mut self.life),
            }
        }
    }

    /// Has the guest's agent end the guest. The error is the end that follows at once, because there is none to do it.
    fn ask_guest(&self, by: &str) -> Result<Stop, EndReason> {
        let by = by.to_owned();
        if self.life.state() != State::Running || self.agent.guest.stop(GUEST_GRACE).is_err() {
            return Err(EndReason::Stopped { by });
        }
        tracing::info!(target: "nestling", "{by}: the guest has {} s to end", GUEST_GRACE.as_secs());
        Ok(Stop { by, patience: Box::pin(sleep(GUEST_GRACE)) })
    }

    /// Has an operation done beside us, so that the socket answers and a signal is heard meanwhile.
    fn begin(&self, asked: Asked) -> Option<Work> {
        let Asked { operation, answer } = asked;
        if answer.is_closed() {
            // Who asked has gone, while others were before it.
            return None;
        }
        if let Some(why) = operation.denied_in(self.life.state()) {
            let _ = answer.send(Err(Refusal::NotNow(why.to_owned()))); // nobody waits any more
            return None;
        }
        let (tell, done) = oneshot::channel();
        let (machine, to_do) = (Arc::clone(&self.machine), operation.clone());
        let work = move || {
            let done = machine.lock().unwrap_or_else(PoisonError::into_inner).carry_out(&to_do);
            drop(machine);
            let _ = tell.send(done); // the machine is on its way down
        };
        match thread::Builder::new().name("machine-request".into()).spawn(work) {
            Ok(_) => Some(Work { operation, done, answer }),
            Err(error) => {
                let _ = answer.send(Err(Refusal::Failed(format!("there is no thread for it: {error}"))));
                None
            }
        }
    }

    /// What an operation that is done changes in the VM's life.
    fn take_note(&mut self, operation: &Operation) {
        match operation {
            Operation::Pause => self.life.step(LifeEvent::Paused),
            Operation::Resume => self.life.step(LifeEvent::Resumed),
            Operation::SetMemory { .. } | Operation::SetLink { .. } | Operation::ResizeDisk { .. } => {}
        }
    }

    /// Stops the machine beside us, so that the socket stays up and a second signal is heard.
    async fn take_down(&mut self) -> Down {
        let (done, is_down) = oneshot::channel();
        let machine = Arc::clone(&self.machine);
        let stopper =
            thread::Builder::new().name("machine-stop".into()).stack_size(256 << 10).spawn(move || {
                let stopped = machine.lock().unwrap_or_else(PoisonError::into_inner).stop();
                drop(machine);
                let _ = done.send(stopped);
            });
        if stopper.is_err() {
            // No thread to be had: stop here, deaf for the while it takes.
            return Down::from(self.machine.lock().unwrap_or_else(PoisonError::into_inner).stop());
        }
        tokio::select! {
            stopped = is_down => Down::from(stopped.unwrap_or_else(|_| Err("the thread that stops it is gone".into()))),
            signal = self.signals.again() => Down::Left { by: signal.name().to_owned() },
            () = sleep(STOP_PATIENCE) => {
                let why = format!("what it was asked before did not end within {STOP_PATIENCE:?}");
                Down::Stuck { why }
            }
        }
    }
}

/// How the machine was taken down.
#[derive(Debug)]
enum Down {
    /// Every thread of it is gone.
    InOrder,
    /// Somebody did not want to wait.
    Left { by: String },
    /// Something of it did not end in time.
    Stuck { why: String },
}

impl From<Result<(), String>> for Down {
    fn from(stopped: Result<(), String>) -> Self {
        match stopped {
            Ok(()) => Self::InOrder,
            Err(why) => Self::Stuck { why },
        }
    }
}

/// The reason of an end whose machine had to be left behind. One that nobody wished says more than that.
fn left_behind(reason: EndReason, why: &str) -> EndReason {
    let detail = format!(
        "{reason}, but {why}: it was left behind. What the guest had flushed is safe, later writes to that device may be lost"
    );
    if reason.is_orderly() {
        return EndReason::Killed { detail };
    }
    tracing::warn!(target: "nestling", "{detail}");
    reason
}

/// A stop that the guest's agent was asked for.
struct Stop {
    by: String,
    patience: Pin<Box<Sleep>>,
}

/// Who wished the stop whose time is up; never, when there is none.
async fn patience(stop: &mut Option<Stop>) -> String {
    match stop {
        Some(Stop { by, patience }) => {
            patience.as_mut().await;
            std::mem::take(by)
        }
        None => std::future::pending().await,
    }
}

/// The end of the work that is under way; never, when none is.
async fn finished(work: &mut Option<Work>) -> Result<(), Refusal> {
    match work {
        Some(work) => {
            let gone = |_| Err(Refusal::Failed("the thread that did it is gone".to_owned()));
            (&mut work.done).await.unwrap_or_else(gone)
        }
        None => std::future::pending().await,
    }
}

fn internal(error: impl std::fmt::Display) -> EndReason {
    EndReason::Internal { detail: error.to_string() }
}

#[cfg(test)]
#[path = "run_tests.rs"]
mod tests;
