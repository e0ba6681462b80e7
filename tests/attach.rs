//! `nestling attach` on a pseudo terminal, to the console of a bare-metal guest: what is typed reaches the guest, what the guest
//! writes is shown, and whoever detaches finds the terminal as it was.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, its helpers too")]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nestling::backend::console::WindowSize;
use nestling::status::clock::Clock;
use nestling::status::publisher::Publisher;
use nestling::status::server::{Requests, Server};
use nestling::status::snapshot::PlanSummary;
use nestling::status::socket::claim;
use nix::pty::openpty;
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, Termios, tcgetattr};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::sync::{mpsc, oneshot};

#[path = "payload/harness.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod harness;

use harness::{Guest, Running};

const LONG: Duration = Duration::from_secs(30);
/// How an attachment's last words begin.
const LAST: &str = "\r\nnestling: ";
const FIRST_SIZE: WindowSize = WindowSize { cols: 91, rows: 17 };

fn until(what: &str, mut is: impl FnMut() -> bool) {
    let end = Instant::now() + LONG;
    while !is() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The status socket of a running guest.
struct Served {
    socket: PathBuf,
    finish: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    _dir: TempDir,
}

impl Served {
    fn new(running: &Running) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("n.sock");
        let publisher = Arc::new(Publisher::new(Clock::begin(), PlanSummary::default(), None));
        let requests = Requests { stop: mpsc::channel(1).0, operations: mpsc::channel(1).0 };
        let (finish, finished) = oneshot::channel();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let (path, hub) = (socket.clone(), Arc::clone(&running.hub));
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let server = Server::start(claim(&path).unwrap(), publisher, requests, hub);
                ready.send(()).unwrap();
                let _ = finished.await;
                server.finish().await;
            });
        });
        is_ready.recv().unwrap();
        Self { socket, finish: Some(finish), thread: Some(thread), _dir: dir }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        drop(self.finish.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A terminal with `nestling attach` in its foreground.
struct Terminal {
    keyboard: File,
    /// Kept open, so that the terminal lives on when the command has ended.
    line: OwnedFd,
    child: Child,
    shown: Arc<Mutex<String>>,
    before: Termios,
}

impl Terminal {
    fn attach(socket: &Path, arguments: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nestling"));
        command.arg("attach").args(arguments).arg("--socket").arg(socket);
        Self::run(command)
    }

    fn run(mut command: Command) -> Self {
        let pty = openpty(None, None).unwrap();
        set_size(&pty.master, FIRST_SIZE);
        let before = tcgetattr(&pty.slave).unwrap();
        let end = || Stdio::from(pty.slave.try_clone().unwrap());
        command.stdin(end()).stdout(end()).stderr(end());
        let take_terminal = || {
            nix::unistd::setsid()?;
            // SAFETY: the child's stdin is the terminal, and the call takes a number.
            let taken = unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) };
            nix::errno::Errno::result(taken)?;
            Ok(())
        };
        // SAFETY: it makes two system calls and nothing else.
        unsafe { command.pre_exec(take_terminal) };
        let child = command.spawn().unwrap();
        let keyboard = File::from(pty.master);
        let (shown, mut screen) = (Arc::new(Mutex::new(String::new())), keyboard.try_clone().unwrap());
        let copy = Arc::clone(&shown);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(len @ 1..) = screen.read(&mut buffer) {
                copy.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..len]));
            }
        });
        let terminal = Self { keyboard, line: pty.slave, child, shown, before };
        until("the terminal is in raw mode", || !terminal.local_flags().contains(LocalFlags::ICANON));
        terminal
    }

    fn local_flags(&self) -> LocalFlags {
        tcgetattr(&self.line).unwrap().local_flags
    }

    fn press(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }

    fn expect(&self, text: &str) {
        let end = Instant::now() + LONG;
        while !self.shown.lock().unwrap().contains(text) {
            assert!(Instant::now() < end, "no {text:?} in {:?}", self.shown.lock().unwrap());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits for the command's end and its last words; the terminal must be as it was.
    fn end(mut self, words: &str) -> (Option<i32>, String) {
        let child = &mut self.child;
        until("it ends", || child.try_wait().unwrap().is_some());
        let after = tcgetattr(&self.line).unwrap();
        assert_eq!(after, self.before, "the terminal is as it was");
        let code = self.child.wait().unwrap().code();
        self.expect(words);
        let shown = self.shown.lock().unwrap().clone();
        (code, shown)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn set_size(terminal: &OwnedFd, size: WindowSize) {
    let size = libc::winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the descriptor is open, and the kernel reads one `winsize`.
    let done = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    assert_eq!(done, 0);
}

#[test]
fn a_terminal_is_the_guest_s_while_attached_and_as_it_was_afterwards() {
    for guest in [Guest::new("console-echo").virtio_console(None), Guest::new("serial-echo lines=4")] {
        let mut running = guest.start();
        running.wait_for("ready");
        let served = Served::new(&running);

        let mut terminal = Terminal::attach(&served.socket, &[]);
        terminal.expect("ready");
        assert!(!terminal.local_flags().intersects(LocalFlags::ISIG | LocalFlags::ECHO));
        terminal.press("typed\n");
        terminal.expect("got typed");
        terminal.press("one\x03two\x1a\n");
        terminal.expect("got one\x03two\x1a");
        assert!(terminal.child.try_wait().unwrap().is_none(), "Ctrl-C and Ctrl-Z are the guest's");

        until("the guest has our size", || running.hub.window().size() == Some(FIRST_SIZE));
        let larger = WindowSize { cols: 203, rows: 61 };
        set_size(&terminal.keyboard.try_clone().unwrap().into(), larger);
        until("and the new one", || running.hub.window().size() == Some(larger));

        terminal.press("last\x1dunsaid\n");
        let (code, shown) = terminal.end(LAST);
        assert_eq!(code, Some(0));
        assert!(shown.ends_with("detached; the VM goes on\r\n"), "{shown:?}");

        let mut terminal = Terminal::attach(&served.socket, &["--escape", "ctrl-q", "--no-history"]);
        terminal.press("\x1d\n");
        terminal.expect("got last\x1d");
        assert!(!terminal.shown.lock().unwrap().contains("typed"), "no history was asked for");
        let pid = Pid::from_raw(terminal.child.id().try_into().unwrap());
        kill(pid, Signal::SIGTERM).unwrap();
        let (code, shown) = terminal.end(LAST);
        assert_eq!(code, Some(143));
        assert!(shown.ends_with("detached by a signal; the VM goes on\r\n"), "{shown:?}");

        let mut terminal = Terminal::attach(&served.socket, &[]);
        terminal.press("end\n");
        terminal.expect("got end");
        let end = running.end();
        running.hub.close();
        let (code, shown) = terminal.end(LAST);
        assert_eq!(code, Some(0));
        assert!(shown.ends_with("the VM has ended\r\n"), "{shown:?}");
        drop(served);
        assert_eq!(running.take_down(end).values("got").last(), Some(&"end"));
    }
}

#[test]
fn the_way_out_of_a_run_works_when_the_guest_takes_no_keys() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_nestling"));
    command.args(["run", "--allow-backend", "any", "--memory", "64M"]);
    command.arg("--kernel").arg(harness::payload()).args(["--cmdline-replace", "scenario=ending how=halt"]);
    command.arg("--socket").arg(dir.path().join("n.sock"));
    let mut terminal = Terminal::run(command);
    terminal.expect("boot stage entered");
    terminal.press("nobody reads this\n\x03");
    terminal.press("\x01x");
    let (code, shown) = terminal.end("exit code 143");
    assert_eq!(code, Some(143), "{shown}");
}
