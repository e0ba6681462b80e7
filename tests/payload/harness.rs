//! Builds a payload machine, runs it, and never waits for ever.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, OnceLock, RwLock, RwLockReadGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nestling::backend::console::ConsoleHub;
use nestling::backend::vsock::Inside;
use nestling::spec::plan::{CmdlinePlan, ConsoleKind, DiskPlan, MachinePlan, RngPlan};
use nestling::status::model::{DeviceFacts, EndReason, MachineEvent, MachineFacts};
use nestling::vmm::{ConsoleIo, Machine};

/// No scenario takes more than a few seconds, even on a busy machine that emulates ring 0.
const WATCHDOG: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;

/// Threads, descriptors and memory belong to the whole process: a test that counts them runs alone.
static PROCESS: RwLock<()> = RwLock::new(());

/// A machine to be built.
#[derive(Clone)]
pub(crate) struct Guest {
    plan: MachinePlan,
    input: Option<Arc<OwnedFd>>,
}

/// A machine that runs.
pub(crate) struct Running {
    pub(crate) machine: Machine,
    /// Its console, as clients reach it.
    pub(crate) hub: Arc<ConsoleHub>,
    events: Receiver<MachineEvent>,
    output: Arc<Output>,
    reader: Option<JoinHandle<()>>,
    _shared: Option<RwLockReadGuard<'static, ()>>,
}

/// What a machine left behind.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// How it ended.
    pub(crate) end: EndReason,
    /// The lines the guest printed.
    pub(crate) lines: Vec<String>,
    /// The counters at the end.
    pub(crate) facts: MachineFacts,
}

#[derive(Default)]
struct Output {
    state: Mutex<OutputState>,
    changed: Condvar,
}

#[derive(Default)]
struct OutputState {
    bytes: Vec<u8>,
    closed: bool,
}

impl Guest {
    /// A guest with one vCPU, 64 MiB, a UART and no disk that runs `scenario`.
    pub(crate) fn new(scenario: &str) -> Self {
        let plan = MachinePlan {
            balloon: None,
            rng: RngPlan::default(),
            cpus: 1,
            memory_bytes: 64 * MIB,
            kernel: payload().to_owned(),
            initrd: None,
            cmdline: CmdlinePlan::Replace(format!("scenario={scenario}")),
            disks: Vec::new(),
            ports: Vec::new(),
            shares: Vec::new(),
            vsock: None,
            agent: false,
            nets: Vec::new(),
            console: ConsoleKind::Serial,
            watchdog: true,
        };
        Self { plan, input: None }
    }

    pub(crate) fn cpus(mut self, cpus: u8) -> Self {
        self.plan.cpus = cpus;
        let CmdlinePlan::Replace(text) = &mut self.plan.cmdline else { unreachable!() };
        text.push_str(&format!(" cpus={cpus}"));
        self
    }

    pub(crate) fn memory_mib(mut self, mib: u64) -> Self {
        self.plan.memory_bytes = mib * MIB;
        self
    }

    pub(crate) fn disk(mut self, path: &std::path::Path, readonly: bool) -> Self {
        self.plan.disks.push(DiskPlan::image(path, readonly));
        self
    }

    /// A virtio console instead of the UART, with this input.
    pub(crate) fn virtio_console(mut self, input: Option<OwnedFd>) -> Self {
        self.plan.console = ConsoleKind::Virtio;
        self.input = input.map(Arc::new);
        self
    }

    /// Input for the UART.
    pub(crate) fn serial_input(mut self, input: OwnedFd) -> Self {
        self.input = Some(Arc::new(input));
        self
    }

    /// Builds and starts it.
    pub(crate) fn start(self) -> Running {
        let shared = PROCESS.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut running = self.start_alone();
        running._shared = Some(shared);
        running
    }

    /// The same for a test that holds [`alone`].
    pub(crate) fn start_alone(self) -> Running {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let output = Arc::new(Output::default());
        let copy = Arc::clone(&output);
        let reader = std::thread::spawn(move || copy.fill_from(File::from(reader)));
        let input = self.input.map(|input| input.try_clone().unwrap());
        let hub = Arc::new(ConsoleHub::new(writer, 64 << 10).unwrap());
        let io = ConsoleIo { hub: Arc::clone(&hub), input };
        let mut machine = Machine::new(&self.plan, io, &Inside::new().unwrap()).unwrap();
        let (sender, events): (Sender<MachineEvent>, _) = channel();
        machine.start(sender).unwrap();
        Running { machine, hub, events, output, reader: Some(reader), _shared: None }
    }

    /// Runs it to its end.
    pub(crate) fn run(self) -> Outcome {
        self.start().finish()
    }
}

impl Running {
    /// Waits until the machine says that it ended.
    pub(crate) fn end(&mut self) -> EndReason {
        loop {
            match self.events.recv_timeout(WATCHDOG) {
                Ok(MachineEvent::Ended(reason)) => return reason,
                Ok(_) => {}
                Err(error) => panic!(
                    "the machine did not end: {error}; exits {:?}; it printed:\n{}",
                    self.machine.facts().exits,
                    self.output.text()
                ),
            }
        }
    }

    /// Waits until the guest has printed a line that is exactly `line`.
    pub(crate) fn wait_for(&self, line: &str) {
        let deadline = Instant::now() + WATCHDOG;
        let mut state = self.output.state.lock().unwrap();
        while !state.lines().iter().any(|seen| seen == line) {
            let left = deadline.saturating_duration_since(Instant::now());
            let text = String::from_utf8_lossy(&state.bytes).into_owned();
            assert!(!left.is_zero() && !state.closed, "{line:?} was not printed, but:\n{text}");
            state = self.output.changed.wait_timeout(state, left).unwrap().0;
        }
    }

    /// Waits for the end, takes the machine down and returns what is left.
    pub(crate) fn finish(mut self) -> Outcome {
        let end = self.end();
        self.take_down(end)
    }

    /// Takes a machine down whose end was `end`.
    pub(crate) fn take_down(mut self, end: EndReason) -> Outcome {
        self.machine.stop().unwrap();
        let facts = self.machine.facts();
        let Self { machine, hub, output, reader, .. } = self;
        drop(machine);
        // The last to have our end of the pipe.
        drop(hub);
        reader.unwrap().join().unwrap();
        let lines = output.state.lock().unwrap().lines();
        Outcome { end, lines, facts }
    }
}

impl Outcome {
    /// Asserts that it powered off, and returns the rest of the lines that start with `key `.
    pub(crate) fn values(&self, key: &str) -> Vec<&str> {
        assert_eq!(self.end, EndReason::PowerOff, "{:#?}", self.lines);
        let values = self.lines.iter().filter_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
        values.collect()
    }

    /// The one value of `key`.
    pub(crate) fn value(&self, key: &str) -> &str {
        let values = self.values(key);
        assert_eq!(values.len(), 1, "{key}: {:#?}", self.lines);
        values[0]
    }

    /// The facts of the `nth` device of a kind.
    pub(crate) fn device(&self, kind: &str, nth: usize) -> &DeviceFacts {
        self.facts.devices.iter().filter(|device| device.kind == kind).nth(nth).unwrap()
    }

    /// Exits that a guest caused; a signal from outside is none.
    pub(crate) fn guest_exits(&self) -> u64 {
        self.facts.exits_total - self.facts.exits.get("interrupted").copied().unwrap_or(0)
    }
}

impl Output {
    fn fill_from(&self, mut pipe: File) {
        let mut buffer = [0; 4096];
        while let Ok(len @ 1..) = pipe.read(&mut buffer) {
            self.state.lock().unwrap().bytes.extend_from_slice(&buffer[..len]);
            self.changed.notify_all();
        }
        self.state.lock().unwrap().closed = true;
        self.changed.notify_all();
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.state.lock().unwrap().bytes).into_owned()
    }
}

impl OutputState {
    fn lines(&self) -> Vec<String> {
        String::from_utf8_lossy(&self.bytes).lines().map(str::to_owned).collect()
    }
}

/// Keeps every other machine of this process from running.
pub(crate) fn alone() -> std::sync::RwLockWriteGuard<'static, ()> {
    PROCESS.write().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// The payload: the file `NESTLING_PAYLOAD` names, or built now, in a directory of its own because the outer cargo holds
/// the lock of the usual one.
pub(crate) fn payload() -> &'static PathBuf {
    static PAYLOAD: OnceLock<PathBuf> = OnceLock::new();
    PAYLOAD.get_or_init(|| std::env::var_os("NESTLING_PAYLOAD").map_or_else(build_payload, PathBuf::from))
}

fn build_payload() -> PathBuf {
    const TRIPLE: &str = "x86_64-unknown-linux-gnu";
    let workspace = env!("CARGO_MANIFEST_DIR");
    let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("payload");
    let status = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--package", "nestling-payload", "--features", "freestanding"])
        .args(["--profile", "payload", "--target", TRIPLE, "--target-dir"])
        .arg(&target)
        .current_dir(workspace)
        .status()
        .unwrap();
    assert!(status.success(), "the payload does not build");
    target.join(TRIPLE).join("payload").join("nestling-payload")
}

/// Sectors of a [`disk_image`].
pub(crate) const DISK_SECTORS: u64 = 128;

/// A disk whose sectors each begin with their number plus 1000.
pub(crate) fn disk_image() -> tempfile::NamedTempFile {
    let mut image = vec![0; DISK_SECTORS as usize * 512];
    for (number, sector) in (1000_u64..).zip(image.chunks_mut(512)) {
        sector[..8].copy_from_slice(&number.to_le_bytes());
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), image).unwrap();
    file
}
