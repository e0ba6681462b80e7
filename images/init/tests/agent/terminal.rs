//! Programs with a terminal.

use nestling_protocol::{Exec, Input, Outcome, Program, TerminalSize};

use super::host::{Guest, Session, session_members, sh, until};

const SIZE: TerminalSize = TerminalSize { rows: 24, columns: 80 };

/// An interactive shell; what it prompts is known.
fn shell(guest: &Guest) -> (Session, i32) {
    let env = vec![("PS1".into(), "> ".into())];
    let program = Program { env, ..Program::new(["sh", "-i"]) };
    let (mut session, pid) = guest.exec(Exec { program, terminal: Some(SIZE), stdin: true });
    session.expect("> ");
    (session, pid)
}

#[test]
fn a_shell_sees_its_terminals_size_and_every_change() {
    let guest = Guest::idle();
    let (mut session, _) = shell(&guest);
    session.input(b"stty size\n");
    session.expect("24 80\r\n");
    session.say(&Input::Resize(TerminalSize { rows: 50, columns: 132 }));
    session.input(b"stty size\n");
    session.expect("50 132\r\n");
    session.input(b"exit 5\n");

    assert_eq!(session.rest().outcome, Outcome::Status(5));
}

#[test]
fn ctrl_c_ends_the_program_and_not_the_shell() {
    let guest = Guest::idle();
    let (mut session, pid) = shell(&guest);
    session.input(b"sleep 1000\n");
    // Before it has executed, it may not be the terminal's foreground yet.
    until("it sleeps", || session_members(pid).iter().any(|stat| stat.contains("(sleep)")));
    session.input(b"\x03");
    session.expect("> ");
    session.input(b"echo back-$((1 + 1))\n");
    session.expect("\r\nback-2\r\n");
    session.input(b"exit\n");

    session.rest();
}

#[test]
fn a_program_that_catches_winch_is_told() {
    let guest = Guest::idle();
    let program = sh("trap 'stty size; exit 3' WINCH; echo up; while :; do sleep 0.05; done");
    let (mut session, _) = guest.exec(Exec { program, terminal: Some(SIZE), stdin: true });
    session.expect("up\r\n");
    session.say(&Input::Resize(TerminalSize { rows: 1, columns: 2 }));

    let ran = session.rest();
    assert_eq!((ran.stdout.as_str(), ran.outcome), ("1 2\r\n", Outcome::Status(3)));
}

#[test]
fn the_end_of_the_input_is_the_terminals() {
    let guest = Guest::idle();
    let (mut session, _) = guest.exec(Exec {
        program: sh("stty -echo; echo up; cat; tty; echo $TERM"),
        terminal: Some(SIZE),
        stdin: true,
    });
    session.expect("up\r\n");
    session.input(b"line\n");
    session.input(b"");

    let stdout = session.rest().stdout;
    assert!(stdout.starts_with("line\r\n/dev/pts/") && stdout.ends_with("\r\nxterm\r\n"), "{stdout:?}");
}

#[test]
fn a_host_that_vanishes_hangs_the_terminal_up() {
    let guest = Guest::idle();
    let (mut session, pid) = shell(&guest);
    session.input(b"sleep 1000 &\n");
    session.input(b"(trap '' HUP; sleep 2000)\n");
    until("all run", || session_members(pid).len() >= 3);
    drop(session);

    until("nothing is left", || session_members(pid).is_empty());
}
