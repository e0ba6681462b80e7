//! Programs with pipes.

use std::thread;

use nestling_protocol::{Configuration, Exec, FailureKind, Input, Outcome, Program, Request, Response};

use super::host::{Guest, Ran, session_members, sh, until};

#[test]
fn output_and_errors_stay_apart_and_the_status_arrives() {
    let ran = Guest::idle().run("echo out; echo err >&2; exit 3");

    assert_eq!(ran, Ran { stdout: "out\n".into(), stderr: "err\n".into(), outcome: Outcome::Status(3) });
}

#[test]
fn a_signal_is_reported_as_one_even_without_a_name() {
    let guest = Guest::idle();

    assert_eq!(guest.run("kill -SEGV $$").outcome, Outcome::Signal(11));
    assert_eq!(guest.run("kill -40 $$").outcome, Outcome::Signal(40));
    assert_eq!(Outcome::Signal(11).exit_code(), 139);
}

#[test]
fn input_ends_when_the_host_says_so() {
    let guest = Guest::idle();
    let (mut session, _) = guest.script("cat; echo end");
    session.input(b"one ");
    session.input(b"two\n");
    session.input(b"");

    assert_eq!(session.rest().stdout, "one two\nend\n");
    assert_eq!(guest.run("cat; echo none").stdout, "none\n", "without input it is empty from the start");
}

#[test]
fn input_that_nobody_reads_is_no_error() {
    let guest = Guest::idle();
    let (mut session, _) = guest.script("exec <&-; echo closed; sleep 0.2; exit 4");
    for _ in 0..20 {
        session.input(&[b'x'; 10_000]);
    }

    assert_eq!(session.rest().outcome, Outcome::Status(4));
}

#[test]
fn megabytes_go_through_both_ways_at_once() {
    let guest = Guest::idle();
    let (session, _) = guest.script("cat");
    let mut writer = super::host::Session { stream: session.stream.try_clone().unwrap() };
    let piece: String = ('a'..='z').cycle().take(50_000).collect();
    let sent = piece.repeat(100);
    let writing = thread::spawn(move || {
        (0..100).for_each(|_| writer.input(piece.as_bytes()));
        writer.input(b"");
    });

    let ran = session.rest();

    writing.join().unwrap();
    assert!(ran.stdout == sent, "{} bytes of {}", ran.stdout.len(), sent.len());
}

#[test]
fn fifty_at_once_and_each_gets_its_own() {
    let guest = Guest::idle();
    let mut sessions: Vec<_> = (0..50)
        .map(|number| guest.script(&format!("read line; echo {number} $line; exit {number}")).0)
        .collect();
    for (number, session) in sessions.iter_mut().enumerate().rev() {
        session.input(format!("got {number}\n").as_bytes());
    }

    for (number, session) in sessions.into_iter().enumerate() {
        let ran = session.rest();
        assert_eq!(ran.stdout, format!("{number} got {number}\n"));
        assert_eq!(ran.outcome, Outcome::Status(i32::try_from(number).unwrap()));
    }
}

#[test]
fn others_work_while_one_hangs_and_one_is_never_read() {
    let guest = Guest::idle();
    let (_hangs, _) = guest.script("sleep 1000");
    let (_unread, flooding) = guest.script("yes");

    for _ in 0..5 {
        assert_eq!(guest.run("echo works").stdout, "works\n");
    }

    let status = std::fs::read_to_string(format!("/proc/{}/status", guest.pid())).unwrap();
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let kib: u64 = rss.split_whitespace().next().unwrap().parse().unwrap();
    assert!(kib < 16 << 10, "the agent holds {kib} KiB for output that nobody reads");
    assert!(!session_members(flooding).is_empty(), "it waits, and is not killed");
}

#[test]
fn the_hosts_signals_reach_the_program() {
    let guest = Guest::idle();
    let (mut session, _) =
        guest.script("trap 'echo told; exit 9' USR1; echo up; while :; do sleep 0.05; done");
    session.expect("up\n");
    session.say(&Input::Signal { signal: 999 });
    session.say(&Input::Signal { signal: 10 });

    let ran = session.rest();
    assert_eq!((ran.stdout.as_str(), ran.outcome), ("told\n", Outcome::Status(9)));
}

#[test]
fn a_background_child_does_not_keep_the_session_open() {
    let guest = Guest::idle();
    let begun = std::time::Instant::now();
    let ran = guest.run("(sleep 1; echo $$ >/dev/null; sleep 5) & echo left");

    assert_eq!((ran.stdout.as_str(), ran.outcome), ("left\n", Outcome::Status(0)));
    assert!(begun.elapsed() < std::time::Duration::from_secs(4));
}

#[test]
fn output_of_a_child_that_ends_soon_is_not_lost() {
    let ran = Guest::idle().run("(sleep 0.1; echo late) & echo first");

    assert_eq!(ran.stdout, "first\nlate\n");
}

#[test]
fn a_host_that_vanishes_leaves_no_process() {
    let guest = Guest::idle();
    let scripts = [
        // One that would end by itself when its input does, one with children in the background, one that is deaf.
        "cat",
        "sleep 1000 & sleep 1000 & wait",
        "trap '' HUP TERM; (trap '' HUP TERM; while :; do sleep 1; done) & while :; do sleep 1; done",
        "kill -STOP $$",
    ];
    let sessions: Vec<_> = scripts.map(|script| guest.script(script)).into();
    until("all children run", || session_members(sessions[2].1).len() >= 3);
    let pids: Vec<i32> = sessions.iter().map(|(_, pid)| *pid).collect();
    drop(sessions);

    for (pid, script) in pids.into_iter().zip(scripts) {
        until(&format!("nothing of {script:?} is left"), || session_members(pid).is_empty());
    }
    assert_eq!(guest.run("echo on").stdout, "on\n");
}

#[test]
fn environment_directory_and_user_are_as_asked() {
    let environment = vec![("BOOT".into(), "boot".into()), ("BOTH".into(), "boot".into())];
    let guest = Guest::start(Configuration { environment, ..Configuration::default() });
    let env = vec![("BOTH".into(), "own".into())];
    let program = Program {
        env,
        cwd: Some("/usr".into()),
        ..sh("echo $FROM_THE_AGENT $BOOT $BOTH $PWD; command -v ls >/dev/null && echo found")
    };

    let ran = guest.exec(Exec { program, ..Exec::default() }).0.rest();

    assert_eq!(ran.stdout, "yes boot own /usr\nfound\n");
}

#[test]
fn a_user_is_taken_on_with_its_groups_and_home() {
    let guest = Guest::idle();
    let program = Program { user: Some("nobody".into()), ..sh("id -un; id -gn; echo $USER $HOME") };
    let mut session = guest.session(Request::Exec(Exec { program, ..Exec::default() }));

    match session.response() {
        Response::Started { .. } => {
            let own = std::fs::read_to_string("/etc/passwd").unwrap();
            let home =
                own.lines().find(|line| line.starts_with("nobody:")).unwrap().split(':').nth(5).unwrap();
            let group = std::process::Command::new("id").args(["-gn", "nobody"]).output().unwrap().stdout;
            let group = String::from_utf8(group).unwrap();
            assert_eq!(session.rest().stdout, format!("nobody\n{group}nobody {home}\n"));
        }
        Response::Failed(failure) => {
            assert!(!nix::unistd::geteuid().is_root(), "{failure}");
            assert_eq!(
                failure.message,
                "cannot start sh: its user cannot be taken on: Operation not permitted"
            );
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_cannot_start_says_why() {
    let guest = Guest::idle();
    let failure =
        |program: Program| guest.session(Request::Exec(Exec { program, ..Exec::default() })).failure();

    let missing = failure(Program::new(["no-such-program"]));
    assert_eq!((missing.kind, missing.exit_code()), (FailureKind::NotFound, 127));
    assert!(missing.message.starts_with("cannot start no-such-program: it, or the interpreter"), "{missing}");
    let data = failure(Program::new(["/etc/passwd"]));
    assert_eq!((data.kind, data.exit_code()), (FailureKind::Denied, 126));
    let nowhere = failure(Program { cwd: Some("/no/where".into()), ..sh("true") });
    assert_eq!(
        nowhere.message,
        "cannot start sh: its directory /no/where cannot be entered: No such file or directory"
    );
    let nobody = failure(Program { user: Some("no-such-user".into()), ..sh("true") });
    assert_eq!(nobody.message, "the guest has no user no-such-user");
    assert_eq!(failure(Program::default()).kind, FailureKind::NotFound);
}

#[test]
fn orphans_and_strangers_cost_no_outcome() {
    let guest = Guest::idle();
    // Many short ones at once: each status must reach its own session, whoever is reaped first.
    thread::scope(|scope| {
        for number in 0..8 {
            let guest = &guest;
            scope.spawn(move || {
                for round in 0..10 {
                    let status = number * 10 + round;
                    let ran = guest.run(&format!("(sleep 0.01 &); exit {status}"));
                    assert_eq!(ran.outcome, Outcome::Status(status));
                }
            });
        }
    });
}
