//! An agent's end, over a socket pair.

use nestling_protocol::{FromAgent, FromHost, Hello, Versions, WorkloadState, frame};
use tokio::sync::mpsc::{self, Receiver};

use super::*;

struct Host {
    guest: Guest,
    events: Receiver<(AgentEvent, Moment)>,
}

impl Host {
    fn new() -> Self {
        let (tell, events) = mpsc::channel(8);
        let inside = Inside::new().unwrap();
        let configuration = Configuration { hostname: Some("pod".into()), ..Configuration::default() };
        Self { guest: Guest::listen(&inside, configuration, Clock::begin(), tell), events }
    }

    /// An agent that has connected.
    fn connect(&self) -> UnixStream {
        let (agent, ours) = UnixStream::pair().unwrap();
        receive(&self.guest.0, ours);
        agent
    }

    fn next(&mut self) -> AgentEvent {
        self.events.blocking_recv().unwrap().0
    }
}

fn hello(workload: WorkloadState) -> FromAgent {
    FromAgent::Hello(Hello {
        versions: Versions::OURS,
        agent: "0.1.0".into(),
        boot_id: String::new(),
        kernel: String::new(),
        init: true,
        capabilities: Vec::new(),
        workload,
        ready: false,
    })
}

fn joined(ended: Option<Outcome>) -> AgentEvent {
    AgentEvent::Joined { agent: "0.1.0".into(), ended }
}

#[test]
fn an_agent_is_welcomed_heard_and_told() {
    let mut host = Host::new();
    let mut agent = host.connect();
    assert!(!host.guest.is_there());
    frame::write_message(&mut agent, &hello(WorkloadState::None)).unwrap();
    let FromHost::Welcome(welcome) = frame::read_message(&mut agent).unwrap() else { panic!("no welcome") };
    assert_eq!((welcome.version, welcome.configuration.hostname.as_deref()), (1, Some("pod")));
    assert!(welcome.time_unix_ns.is_some());
    assert_eq!(host.next(), joined(None));
    for event in
        [FromAgent::Started { pid: 7 }, FromAgent::Ready, FromAgent::Exited { outcome: Outcome::Signal(11) }]
    {
        frame::write_message(&mut agent, &event).unwrap();
    }
    assert_eq!(host.next(), AgentEvent::Started { pid: 7 });
    assert_eq!(host.next(), AgentEvent::Ended(Outcome::Signal(11)));
    host.guest.stop(Duration::from_secs(3)).unwrap();
    let FromHost::Order { order, .. } = frame::read_message(&mut agent).unwrap() else { panic!("no order") };
    assert_eq!(order, Order::Stop { grace_ms: 3000 });
    drop(agent);
    assert_eq!(host.next(), AgentEvent::Left);
    assert!(host.guest.stop(Duration::ZERO).is_err());
}

#[test]
fn an_agent_that_comes_again_says_what_has_happened() {
    let mut host = Host::new();
    for _ in 0..3 {
        let mut agent = host.connect();
        frame::write_message(&mut agent, &hello(WorkloadState::Ended(Outcome::Status(7)))).unwrap();
        assert_eq!(host.next(), joined(Some(Outcome::Status(7))));
        frame::write_message(&mut agent, &FromAgent::Ending { end: nestling_protocol::End::PowerOff })
            .unwrap();
        assert_eq!(host.next(), AgentEvent::Left);
        let _: FromHost = frame::read_message(&mut agent).unwrap();
        assert!(frame::read(&mut agent).unwrap().is_none(), "closed, so that the guest may end");
        while host.guest.0.taken.load(Ordering::Acquire) {
            thread::yield_now();
        }
    }
}

#[test]
fn a_second_agent_is_turned_away_and_garbage_cuts_its_own_connection_only() {
    let mut host = Host::new();
    let mut agent = host.connect();
    let mut second = host.connect();
    assert!(frame::read(&mut second).unwrap().is_none());
    frame::write_message(&mut agent, &hello(WorkloadState::None)).unwrap();
    assert_eq!(host.next(), joined(None));
    io::Write::write_all(&mut agent, &[0xff; 64]).unwrap();
    assert_eq!(host.next(), AgentEvent::Left);
}
