//! The control connection: who the agent is, what this boot is for, what happens, and what the host orders.
//!
//! The agent connects and says [`FromAgent::Hello`]; the host answers [`FromHost::Welcome`] or [`FromHost::Refused`].
//! Afterwards either end speaks when it has something to say. When the connection is cut (the host's process was
//! restarted, the VM was restored), the agent connects again, and its new hello says how far things are.

use serde::{Deserialize, Serialize};

use crate::{ByteString, Failure, Hex, Outcome, ProtocolError, Stats, session::Program};

/// The versions that one end speaks: all from `oldest` to `newest`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// The oldest.
    pub oldest: u16,
    /// The newest.
    pub newest: u16,
}

impl Versions {
    /// Those of this crate.
    pub const OURS: Self = Self { oldest: crate::OLDEST_VERSION, newest: crate::VERSION };

    /// The newest version that both ends speak.
    ///
    /// # Errors
    /// There is none.
    pub fn common(self, theirs: Self) -> Result<u16, ProtocolError> {
        let newest = self.newest.min(theirs.newest);
        if newest >= self.oldest.max(theirs.oldest) {
            Ok(newest)
        } else {
            Err(ProtocolError::NoCommonVersion { ours: self, theirs })
        }
    }

    /// Whether `version` is one of them.
    pub fn contain(self, version: u16) -> bool {
        (self.oldest..=self.newest).contains(&version)
    }
}

impl std::fmt::Display for Versions {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{} to {}", self.oldest, self.newest)
    }
}

/// What an agent can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Capability {
    /// Sessions that run a program.
    Exec,
    /// Sessions that put and get files.
    Files,
    /// Sessions that forward a TCP connection.
    Forward,
    /// Figures about the guest.
    Stats,
    /// Runs the workload that [`Configuration`] names.
    Workload,
    /// Sets the guest's clock and feeds its random number generator.
    Machine,
    /// Powers the guest off when ordered to stop.
    PowerOff,
    /// One that this version does not know.
    #[serde(other)]
    Unknown,
}

/// Where the workload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WorkloadState {
    /// Not started: there is none, or the agent waits for [`Welcome`].
    None,
    /// It runs.
    Running {
        /// Its process.
        pid: i32,
    },
    /// It has ended.
    Ended(Outcome),
}

/// The agent's first message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The versions that it speaks.
    pub versions: Versions,
    /// Its own version: `0.1.0`.
    pub agent: String,
    /// The guest's `/proc/sys/kernel/random/boot_id`: another one means that the guest has rebooted.
    #[serde(default)]
    pub boot_id: String,
    /// The guest kernel's release.
    #[serde(default)]
    pub kernel: String,
    /// Whether the agent is the guest's PID 1.
    #[serde(default)]
    pub init: bool,
    /// What it can do.
    #[serde(default)]
    pub capabilities: Vec<Capability>,
    /// Where the workload is.
    pub workload: WorkloadState,
    /// Whether the ready rule has held.
    #[serde(default)]
    pub ready: bool,
}

/// The host's answer to [`Hello`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The version that both speak from now on.
    pub version: u16,
    /// What time it is: nanoseconds since 1970. The guest's clock is set if it is off by more than a second.
    #[serde(default)]
    pub time_unix_ns: Option<u64>,
    /// Seed for the guest's random number generator; credited.
    #[serde(default)]
    pub entropy: Option<Hex>,
    /// What this boot is for. On a second connection of the same boot, what has been done already is not done again.
    #[serde(default)]
    pub configuration: Configuration,
}

/// What one boot is for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Configuration {
    /// The program that the guest is for.
    pub workload: Option<Program>,
    /// Whether the workload gets the console as its controlling terminal, so that Ctrl-C there reaches it (as PID 1 only).
    pub terminal: bool,
    /// Variables of the workload, the stop hook, ready commands and every exec; what these have themselves wins.
    pub environment: Vec<(ByteString, ByteString)>,
    /// The host name.
    pub hostname: Option<String>,
    /// When the guest counts as ready. Without, it never says so.
    pub ready: Option<Ready>,
    /// What to run before the workload is told to stop.
    pub stop_hook: Option<StopHook>,
    /// How long a stop may take when it is the guest that was told, by its power button for one; milliseconds.
    pub grace_ms: Option<u64>,
    /// What to do when the workload has ended by itself.
    pub end: Option<End>,
}

/// A ready rule, and how it is tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// The rule.
    pub rule: Rule,
    /// Milliseconds between two tries; 250 without.
    #[serde(default)]
    pub every_ms: Option<u64>,
    /// Milliseconds that one try may take; 1000 without.
    #[serde(default)]
    pub timeout_ms: Option<u64>,
}

/// When the guest is ready. (A line on the console is seen by the host itself.)
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Rule {
    /// The workload's process has started.
    Started,
    /// A TCP port takes connections.
    Port {
        /// An address, or a name in the guest's `/etc/hosts`; 127.0.0.1 without.
        #[serde(default)]
        host: Option<String>,
        /// The port.
        port: u16,
    },
    /// `GET path` is answered with 200.
    Http {
        /// As above.
        #[serde(default)]
        host: Option<String>,
        /// The port.
        port: u16,
        /// With its `/`.
        path: String,
    },
    /// A file exists.
    File {
        /// Its path.
        path: ByteString,
    },
    /// A program ends with status 0. `getprop sys.boot_completed`, which prints instead, is
    /// `sh -c '[ "$(getprop sys.boot_completed)" = 1 ]'`.
    Command(Program),
    /// One that this version does not know: never ready, and the agent says so.
    #[serde(other)]
    Unknown,
}

/// What runs before the workload is told to stop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopHook {
    /// The program.
    pub program: Program,
    /// How long it may take, in milliseconds; else, and at most, half of what is left for the workload.
    #[serde(default)]
    pub timeout_ms: Option<u64>,
}

/// How the machine ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum End {
    /// Off.
    PowerOff,
    /// Again.
    Reboot,
    /// The CPUs halt.
    Halt,
    /// Not at all: the agent stays for sessions.
    Stay,
}

/// A step of a stop, told when it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// The stop hook runs.
    Hook,
    /// SIGTERM to the workload.
    Terminate,
    /// SIGKILL to the workload and all of its session.
    Kill,
    /// SIGTERM, then SIGKILL to everybody else (as PID 1).
    Others,
    /// Filesystems are synced, and on the way off unmounted or made read-only.
    Sync,
    /// One that this version does not know.
    #[serde(other)]
    Unknown,
}

/// What the agent says on the control connection.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum FromAgent {
    /// The first message.
    Hello(Hello),
    /// The welcome is taken on: sessions from now on find its configuration. Said first on every connection.
    Configured,
    /// The workload runs.
    Started {
        /// Its process.
        pid: i32,
    },
    /// The workload could not be started.
    NotStarted(Failure),
    /// The workload has ended.
    Exited {
        /// How.
        outcome: Outcome,
    },
    /// The ready rule holds. Said once.
    Ready,
    /// A stop is at this step.
    Stopping {
        /// The step.
        step: Step,
    },
    /// The machine ends now. The host closes the connection when it has read this, and the agent waits a second for it:
    /// so nothing is lost.
    Ending {
        /// How.
        end: End,
    },
    /// Something went wrong that is no end: one sentence.
    Problem {
        /// The sentence.
        message: String,
    },
    /// The answer to an order.
    Answer {
        /// The order's.
        id: u64,
        /// The answer.
        answer: Answer,
    },
    /// One that this version does not know.
    #[serde(other)]
    Unknown,
}

/// The answer to an [`Order`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Answer {
    /// Done, or begun.
    Done,
    /// The figures.
    Stats(Box<Stats>),
    /// It could not be done.
    Failed(Failure),
}

/// What the host says on the control connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum FromHost {
    /// The answer to [`Hello`].
    Welcome(Box<Welcome>),
    /// The host has no use for this agent. It comes back in a minute.
    Refused {
        /// Why.
        message: String,
    },
    /// Do something, and answer.
    Order {
        /// For the answer.
        id: u64,
        /// What.
        order: Order,
    },
    /// One that this version does not know.
    #[serde(other)]
    Unknown,
}

/// What the host can order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Order {
    /// Nothing: is the agent there?
    Ping,
    /// Stop the workload and the machine within that time. Again, with less time: hurry.
    Stop {
        /// Milliseconds.
        grace_ms: u64,
    },
    /// Figures about the guest.
    Stats,
    /// What time it is (after a pause, a restore): the clock is set if it is off by more than a second.
    SetTime {
        /// Nanoseconds since 1970.
        unix_ns: u64,
    },
    /// Feed the random number generator (after a restore).
    AddEntropy {
        /// At most 4096 bytes count.
        bytes: Hex,
    },
    /// One that this version does not know: answered with `unsupported`.
    #[serde(other)]
    Unknown,
}
