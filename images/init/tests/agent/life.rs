//! Workload, orders, and the stop ladder.

use std::path::Path;
use std::time::{Duration, Instant};

use nestling_protocol::{
    Answer, Capability, Configuration, End, Failure, FailureKind, FromAgent, Hex, Order, Outcome, Program,
    Request, Response, Step, StopHook, WorkloadState,
};

use super::host::{Guest, session_members, sh, text, until};

fn workload(program: Program) -> Configuration {
    Configuration { workload: Some(program), ..Configuration::default() }
}

/// Starts it, and waits until the workload has made `up`.
fn started(scratch: &Path, configuration: Configuration) -> (Guest, i32) {
    let mut guest = Guest::start(configuration);
    let FromAgent::Started { pid } = guest.event() else { panic!("not started") };
    until("the workload is up", || scratch.join("up").exists());
    (guest, pid)
}

/// All that is said from the order to stop on.
fn stopped(guest: &mut Guest, grace: Duration) -> Vec<FromAgent> {
    guest.order(1, Order::Stop { grace_ms: u64::try_from(grace.as_millis()).unwrap() });
    let mut events = Vec::new();
    loop {
        events.push(guest.event());
        if matches!(events.last(), Some(FromAgent::Ending { .. })) {
            return events.into_iter().filter(|event| !matches!(event, FromAgent::Answer { .. })).collect();
        }
    }
}

fn stopping(step: Step) -> FromAgent {
    FromAgent::Stopping { step }
}

#[test]
fn hello_says_who_it_is() {
    let guest = Guest::idle();

    let boot_id = text(Path::new("/proc/sys/kernel/random/boot_id"));
    assert_eq!(guest.hello.boot_id, boot_id.trim());
    assert_eq!((guest.hello.agent.as_str(), guest.hello.init), (env!("CARGO_PKG_VERSION"), false));
    assert!(guest.hello.capabilities.contains(&Capability::Exec));
    assert!(!guest.hello.capabilities.contains(&Capability::PowerOff), "the machine is its host's too");
    assert_eq!(guest.hello.workload, WorkloadState::None);
}

#[test]
fn the_workloads_end_is_told() {
    for (script, outcome) in [("exit 7", Outcome::Status(7)), ("kill -SEGV $$", Outcome::Signal(11))] {
        let mut guest = Guest::start(workload(sh(script)));
        assert!(matches!(guest.event(), FromAgent::Started { .. }));
        assert_eq!(guest.event(), FromAgent::Exited { outcome });
    }
}

#[test]
fn a_workload_that_cannot_start_is_told() {
    let mut guest = Guest::start(workload(Program::new(["/no/such/thing"])));

    let FromAgent::NotStarted(failure) = guest.event() else { panic!("it started") };
    assert_eq!(failure.exit_code(), 127);
}

#[test]
fn the_machine_ends_with_its_workload_if_the_host_says_so() {
    let mut guest = Guest::start(Configuration { end: Some(End::PowerOff), ..workload(sh("exit 3")) });
    assert!(matches!(guest.event(), FromAgent::Started { .. }));
    assert_eq!(guest.event(), FromAgent::Exited { outcome: Outcome::Status(3) });
    assert_eq!(guest.event(), stopping(Step::Sync));
    assert_eq!(guest.event(), FromAgent::Ending { end: End::PowerOff });

    assert_eq!(guest.exit_code(), Some(0));
}

#[test]
fn a_workload_that_traps_term_is_given_its_time_after_the_hook() {
    let scratch = tempfile::tempdir().unwrap();
    let directory = scratch.path().display();
    let script = format!(
        "cd {directory}; trap 'echo term >>log; sleep 1; echo written >>log; sync; exit 0' TERM; \
         touch up; while :; do sleep 0.05; done"
    );
    let hook = StopHook { program: sh(&format!("echo hook >>{directory}/log")), timeout_ms: None };
    let (mut guest, pid) =
        started(scratch.path(), Configuration { stop_hook: Some(hook), ..workload(sh(&script)) });

    let events = stopped(&mut guest, Duration::from_secs(20));

    let exited = FromAgent::Exited { outcome: Outcome::Status(0) };
    let ending = FromAgent::Ending { end: End::PowerOff };
    assert_eq!(
        events,
        [stopping(Step::Hook), stopping(Step::Terminate), exited, stopping(Step::Sync), ending]
    );
    assert_eq!(text(&scratch.path().join("log")), "hook\nterm\nwritten\n");
    assert!(session_members(pid).is_empty());
    assert_eq!(guest.exit_code(), Some(0));
}

#[test]
fn a_workload_that_ignores_term_is_killed_with_all_its_children_within_the_grace() {
    let scratch = tempfile::tempdir().unwrap();
    let script = format!(
        "trap '' TERM HUP INT; (trap '' TERM; while :; do sleep 1; done) & touch {}/up; while :; do sleep 1; done",
        scratch.path().display()
    );
    let (mut guest, pid) = started(scratch.path(), workload(sh(&script)));
    let begun = Instant::now();

    let events = stopped(&mut guest, Duration::from_secs(2));

    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    assert!(begun.elapsed() >= Duration::from_millis(1500), "it had its share: {:?}", begun.elapsed());
    let exited = FromAgent::Exited { outcome: Outcome::Signal(9) };
    let ending = FromAgent::Ending { end: End::PowerOff };
    assert_eq!(
        events,
        [stopping(Step::Terminate), stopping(Step::Kill), exited, stopping(Step::Sync), ending]
    );
    assert!(session_members(pid).is_empty());
}

#[test]
fn a_hook_that_hangs_leaves_the_workload_its_half() {
    let scratch = tempfile::tempdir().unwrap();
    let script = format!(
        "trap 'sleep 0.3; exit 6' TERM; touch {}/up; while :; do sleep 0.05; done",
        scratch.path().display()
    );
    let hook = StopHook { program: sh("sleep 1000"), timeout_ms: Some(60_000) };
    let (mut guest, _) =
        started(scratch.path(), Configuration { stop_hook: Some(hook), ..workload(sh(&script)) });

    let events = stopped(&mut guest, Duration::from_secs(3));

    let problem = "the stop hook: it took too long, and is killed".to_string();
    assert!(events.contains(&FromAgent::Problem { message: problem }), "{events:?}");
    assert!(events.contains(&FromAgent::Exited { outcome: Outcome::Status(6) }), "{events:?}");
}

#[test]
fn a_second_stop_hurries_the_first() {
    let scratch = tempfile::tempdir().unwrap();
    let script = format!("trap '' TERM; touch {}/up; while :; do sleep 1; done", scratch.path().display());
    let (mut guest, _) = started(scratch.path(), workload(sh(&script)));
    let begun = Instant::now();
    guest.order(1, Order::Stop { grace_ms: 600_000 });

    let events = stopped(&mut guest, Duration::from_secs(1));

    assert!(begun.elapsed() < Duration::from_secs(10));
    assert!(events.contains(&FromAgent::Exited { outcome: Outcome::Signal(9) }), "{events:?}");
}

#[test]
fn a_grace_without_end_and_one_of_nothing_are_taken() {
    for grace in [u64::MAX, 0] {
        let scratch = tempfile::tempdir().unwrap();
        let script = format!("touch {}/up; exec sleep 1000", scratch.path().display());
        let (mut guest, _) = started(scratch.path(), workload(sh(&script)));
        guest.order(1, Order::Stop { grace_ms: grace });
        let exited = loop {
            if let FromAgent::Exited { outcome } = guest.event() {
                break outcome;
            }
        };
        let expected: &[_] =
            if grace == 0 { &[Outcome::Signal(15), Outcome::Signal(9)] } else { &[Outcome::Signal(15)] };
        assert!(expected.contains(&exited), "{exited:?}");
    }
}

#[test]
fn a_service_that_is_stopped_ends_its_workload_and_not_the_machine() {
    let scratch = tempfile::tempdir().unwrap();
    let script = format!(
        "trap 'exit 4' TERM; sleep 1000 & touch {}/up; while :; do sleep 0.05; done",
        scratch.path().display()
    );
    let (mut guest, session) = started(scratch.path(), workload(sh(&script)));
    let pid = nix::unistd::Pid::from_raw(guest.pid().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();

    assert_eq!(guest.event(), stopping(Step::Terminate));
    assert_eq!(guest.event(), FromAgent::Exited { outcome: Outcome::Status(4) });
    assert_eq!(guest.event(), stopping(Step::Sync));
    assert_eq!(guest.exit_code(), Some(0));
    assert!(session_members(session).is_empty(), "what it has left behind is gone too");
}

#[test]
fn a_connection_that_is_cut_comes_back_and_nothing_starts_twice() {
    let scratch = tempfile::tempdir().unwrap();
    let directory = scratch.path().display();
    let script = format!(
        "echo x >>{directory}/starts; touch {directory}/up; while [ -e {directory}/up ]; do sleep 0.05; done; exit 8"
    );
    let (mut guest, pid) = started(scratch.path(), workload(sh(&script)));

    guest.cut(workload(sh(&script)));
    assert_eq!(guest.hello.workload, WorkloadState::Running { pid });
    std::fs::remove_file(scratch.path().join("up")).unwrap();
    assert_eq!(guest.event(), FromAgent::Exited { outcome: Outcome::Status(8) });
    guest.cut(Configuration::default());

    assert_eq!(guest.hello.workload, WorkloadState::Ended(Outcome::Status(8)));
    assert_eq!(text(&scratch.path().join("starts")), "x\n");
}

#[test]
fn orders_are_answered() {
    let mut guest = Guest::idle();
    let mut answer = |id, order| {
        guest.order(id, order);
        match guest.event() {
            FromAgent::Answer { id: answered, answer } if answered == id => answer,
            other => panic!("{other:?}"),
        }
    };

    assert_eq!(answer(7, Order::Ping), Answer::Done);
    let Answer::Stats(stats) = answer(8, Order::Stats) else { panic!("no figures") };
    assert!(stats.memory.total > 0 && stats.uptime > 0.0);
    // The clock is right to a second, so there is nothing to do; setting another is not this agent's.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    assert_eq!(answer(9, Order::SetTime { unix_ns: u64::try_from(now.as_nanos()).unwrap() }), Answer::Done);
    let unsupported = |what: &str| {
        let message = format!("the {what} is not this agent's: it shares its host's machine");
        Answer::Failed(Failure::new(FailureKind::Unsupported, message))
    };
    assert_eq!(answer(10, Order::SetTime { unix_ns: 0 }), unsupported("clock"));
    assert_eq!(
        answer(11, Order::AddEntropy { bytes: Hex(vec![1; 32]) }),
        unsupported("random number generator")
    );
    let Answer::Failed(failure) = answer(12, Order::Unknown) else { panic!("it knows what it cannot") };
    assert_eq!(failure.kind, FailureKind::Unsupported);
}

#[test]
fn a_session_gives_figures() {
    let Response::Stats(stats) = Guest::idle().session(Request::Stats).response() else {
        panic!("no figures")
    };

    assert!(stats.memory.available <= stats.memory.total && stats.cpu.online > 0, "{stats:?}");
}
