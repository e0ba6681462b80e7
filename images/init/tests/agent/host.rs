//! The host's end, as the tests need it.

use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nestling_protocol::{
    Configuration, Exec, Frame, FromAgent, FromHost, Hello, Kind, Opening, Order, Outcome, Program, Request,
    Response, VERSION, Welcome, frame,
};
use tempfile::TempDir;

/// Longer than anything here takes; what waits this long has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// An agent that runs, and the host that it is connected to.
pub(crate) struct Guest {
    pub(crate) directory: TempDir,
    agent: Child,
    listener: UnixListener,
    control: UnixStream,
    pub(crate) hello: Hello,
}

impl Guest {
    /// Starts an agent and welcomes it.
    pub(crate) fn start(configuration: Configuration) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| format!("unix:{}", directory.path().join(name).display());
        let listener = UnixListener::bind(directory.path().join("control")).unwrap();
        let agent = Command::new(env!("CARGO_BIN_EXE_nestling-init"))
            .args(["agent", "--listen", &path("agent"), "--control", &path("control")])
            .env("FROM_THE_AGENT", "yes")
            .spawn()
            .unwrap();
        let (control, hello) = welcome(&listener, configuration);
        Self { directory, agent, listener, control, hello }
    }

    /// An agent that has nothing to do but to serve sessions.
    pub(crate) fn idle() -> Self {
        Self::start(Configuration::default())
    }

    /// A path in the scratch directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The agent's process.
    pub(crate) fn pid(&self) -> u32 {
        self.agent.id()
    }

    /// The next thing that the agent says on the control connection.
    pub(crate) fn event(&mut self) -> FromAgent {
        frame::read_message(&mut self.control).unwrap()
    }

    /// Gives an order; the answer is an event.
    pub(crate) fn order(&mut self, id: u64, order: Order) {
        frame::write_message(&mut self.control, &FromHost::Order { id, order }).unwrap();
    }

    /// Writes these bytes to the control connection.
    pub(crate) fn control(&mut self, bytes: &[u8]) {
        self.control.write_all(bytes).unwrap();
    }

    /// Cuts the control connection and takes the agent's next one.
    pub(crate) fn cut(&mut self, configuration: Configuration) {
        self.control.shutdown(std::net::Shutdown::Both).unwrap();
        (self.control, self.hello) = welcome(&self.listener, configuration);
    }

    /// A new connection to the agent.
    pub(crate) fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.path("agent")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// A new session.
    pub(crate) fn session(&self, request: Request) -> Session {
        let mut stream = self.connect();
        frame::write_message(&mut stream, &Opening::from(request)).unwrap();
        Session { stream }
    }

    /// A program, started with input to come.
    pub(crate) fn exec(&self, request: Exec) -> (Session, i32) {
        let mut session = self.session(Request::Exec(request));
        match session.response() {
            Response::Started { pid } => (session, pid),
            other => panic!("not started: {other:?}"),
        }
    }

    /// A shell's script, started with input to come.
    pub(crate) fn script(&self, script: &str) -> (Session, i32) {
        self.exec(Exec { program: sh(script), stdin: true, terminal: None })
    }

    /// Runs a shell's script to its end, without input.
    pub(crate) fn run(&self, script: &str) -> Ran {
        self.exec(Exec { program: sh(script), ..Exec::default() }).0.rest()
    }

    /// Waits for the agent's own end.
    pub(crate) fn exit_code(&mut self) -> Option<i32> {
        self.agent.wait().unwrap().code()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.agent.id().cast_signed());
        let _gone = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let deadline = Instant::now() + PATIENCE;
        while matches!(self.agent.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                drop(self.agent.kill());
            }
            sleep(Duration::from_millis(5));
        }
    }
}

fn welcome(listener: &UnixListener, configuration: Configuration) -> (UnixStream, Hello) {
    let (mut control, _) = listener.accept().unwrap();
    control.set_read_timeout(Some(PATIENCE)).unwrap();
    let FromAgent::Hello(hello) = frame::read_message(&mut control).unwrap() else { panic!("no hello") };
    let welcome = Welcome { version: VERSION, configuration, ..Welcome::default() };
    frame::write_message(&mut control, &FromHost::Welcome(Box::new(welcome))).unwrap();
    let configured: FromAgent = frame::read_message(&mut control).unwrap();
    assert_eq!(configured, FromAgent::Configured);
    (control, hello)
}

/// A session's connection.
pub(crate) struct Session {
    pub(crate) stream: UnixStream,
}

/// What came of a program.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ran {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) outcome: Outcome,
}

impl Session {
    pub(crate) fn frame(&mut self) -> Frame {
        frame::read(&mut self.stream).unwrap().expect("the agent closed the session")
    }

    pub(crate) fn response(&mut self) -> Response {
        self.frame().message().unwrap()
    }

    /// The response that is a failure.
    pub(crate) fn failure(&mut self) -> nestling_protocol::Failure {
        match self.response() {
            Response::Failed(failure) => failure,
            other => panic!("no failure: {other:?}"),
        }
    }

    pub(crate) fn input(&mut self, bytes: &[u8]) {
        frame::write(&mut self.stream, Kind::Stdin, bytes).unwrap();
    }

    pub(crate) fn say(&mut self, input: &nestling_protocol::Input) {
        frame::write_message(&mut self.stream, input).unwrap();
    }

    /// Reads output until it holds `text`, and returns it all.
    pub(crate) fn expect(&mut self, text: &str) -> String {
        let mut output = Vec::new();
        loop {
            let so_far = String::from_utf8_lossy(&output).into_owned();
            let frame =
                frame::read(&mut self.stream).unwrap_or_else(|error| panic!("after {so_far:?}: {error}"));
            let frame = frame.unwrap_or_else(|| panic!("after {so_far:?}: closed"));
            assert_eq!(frame.kind, Kind::Stdout, "after {so_far:?}: {frame:?}");
            output.extend(frame.payload);
            let output = String::from_utf8_lossy(&output);
            if output.contains(text) {
                return output.into_owned();
            }
        }
    }

    /// All output that is left, and the end.
    pub(crate) fn rest(mut self) -> Ran {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let (mut out_ended, mut err_ended) = (false, false);
        loop {
            let frame = self.frame();
            match frame.kind {
                Kind::Stdout => {
                    assert!(!out_ended, "output after its end");
                    out_ended = frame.payload.is_empty();
                    stdout.extend(frame.payload);
                }
                Kind::Stderr => {
                    assert!(!err_ended, "errors after their end");
                    err_ended = frame.payload.is_empty();
                    stderr.extend(frame.payload);
                }
                Kind::Message => {
                    let Response::Exited { outcome } = frame.message().unwrap() else { panic!("{frame:?}") };
                    assert!(out_ended, "the program's end came before that of its output");
                    assert_eq!(frame::read(&mut self.stream).unwrap(), None);
                    let [stdout, stderr] = [stdout, stderr].map(|bytes| String::from_utf8(bytes).unwrap());
                    return Ran { stdout, stderr, outcome };
                }
                kind => panic!("a {kind} frame"),
            }
        }
    }
}

/// A shell's script as a program.
pub(crate) fn sh(script: &str) -> Program {
    Program::new(["sh", "-c", script])
}

/// Waits until that is so.
pub(crate) fn until(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        sleep(Duration::from_millis(10));
    }
}

/// The living processes of that session, by name.
pub(crate) fn session_members(session: i32) -> Vec<String> {
    let stats = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| std::fs::read_to_string(entry.ok()?.path().join("stat")).ok());
    let of_session = stats.filter(|stat| {
        let Some((_, fields)) = stat.rsplit_once(") ") else { return false };
        let fields: Vec<_> = fields.split(' ').collect();
        fields[0] != "Z" && fields[3] == session.to_string()
    });
    of_session.collect()
}

/// What a shell wrote to a file.
pub(crate) fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}
