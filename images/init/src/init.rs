//! The life of a guest whose PID 1 we are.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use nestling_protocol::{AGENT_PORT, CONTROL_PORT, FromAgent, Outcome, Step};

use crate::agent::transport::Address;
use crate::agent::{Agent, Happening, Options, ladder};
use crate::children::Child;
use crate::cmdline::{self, Cmdline};
use crate::power::{self, End};
use crate::workload::{self, NotStarted};
use crate::{children, console, kmod, mounts, network, report, signals};

/// How often a shell that ended is started again, when there is no workload.
const SHELL_RESPAWNS: u32 = 5;

/// How long to wait for a host that is said to be there.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a stop may take that no host has ordered.
const GRACE: Duration = Duration::from_secs(10);

/// The least that everybody else gets between SIGTERM and SIGKILL.
const LEAST_GRACE: Duration = Duration::from_millis(100);

/// The whole life of the guest, in order.
pub(crate) fn boot() -> ! {
    signals::block();
    mounts::mount_all();
    let cmdline = Cmdline::read();
    kmod::load_listed();
    console::take(&cmdline);
    network::name_host(cmdline.hostname());
    network::loopback_up();
    report::greet();
    power::ctrl_alt_del_as_signal();

    let (sender, happenings) = channel();
    if let Err(error) = signals::watch(sender.clone()) {
        crate::say!("cannot wait for signals, powering off: {error}");
        power::end(End::PowerOff);
    }
    let agent = agent_options(&cmdline).map(|options| Agent::start(options, sender.clone()));
    Life { cmdline, happenings, sender, agent, running: None, shells: 0, by_host: false }.live()
}

fn agent_options(cmdline: &Cmdline) -> Option<Options> {
    let (patience, persistent) = match cmdline.agent() {
        cmdline::Agent::Off => return None,
        cmdline::Agent::On => (PATIENCE, true),
        cmdline::Agent::Auto => (Duration::ZERO, false),
    };
    Some(Options {
        listen: Address::Vsock(AGENT_PORT),
        control: Address::Vsock(CONTROL_PORT),
        init: true,
        owns_machine: true,
        patience,
        persistent,
    })
}

struct Life {
    cmdline: Cmdline,
    happenings: Receiver<Happening>,
    sender: Sender<Happening>,
    agent: Option<Arc<Agent>>,
    running: Option<Running>,
    /// How many shells have run.
    shells: u32,
    /// The host has said what this boot is for.
    by_host: bool,
}

struct Running {
    child: Child,
    shell: bool,
}

impl Life {
    fn live(mut self) -> ! {
        if self.agent.is_some() {
            self.wait_for_host();
        }
        self.begin();
        loop {
            match self.next() {
                Happening::Ended(outcome) => self.ended(outcome),
                Happening::Stop(grace) => self.stop(grace, End::PowerOff),
                Happening::Told(end) => self.told(end),
                Happening::Configured => self.configured_late(),
                Happening::NoHost | Happening::HookEnded => {}
            }
        }
    }

    fn next(&self) -> Happening {
        // The signals' thread never ends, and has a sender.
        self.happenings.recv().unwrap_or(Happening::Told(End::PowerOff))
    }

    fn wait_for_host(&mut self) {
        loop {
            match self.next() {
                Happening::Configured => {
                    self.by_host = true;
                    return;
                }
                Happening::NoHost => return,
                Happening::Stop(grace) => self.stop(grace, End::PowerOff),
                Happening::Told(end) => self.told(end),
                Happening::Ended(_) | Happening::HookEnded => {}
            }
        }
    }

    /// Starts what the guest is for: by the host's word, by the command line's, or a shell.
    fn begin(&mut self) {
        let configured = self.agent.as_ref().filter(|_| self.by_host).and_then(|agent| {
            agent.watch_ready();
            workload::start_configured(agent, &agent.configuration(), true)
        });
        let command = self.cmdline.workload(std::env::args_os().skip(1).collect());
        match configured {
            Some(started) => self.workload(started),
            None if command.is_empty() => self.shell(),
            None => self.workload(workload::start_command(&command)),
        }
    }

    fn workload(&mut self, started: Result<Child, NotStarted>) {
        match started {
            Ok(child) => {
                if let Some(agent) = &self.agent {
                    agent.started(child.pid());
                }
                self.watch(child, false);
            }
            Err(error) => {
                console::take(&self.cmdline);
                crate::say!("{error}");
                crate::say!("workload exited with status {}", error.status());
                if let Some(agent) = &self.agent {
                    agent.not_started(error.failure());
                }
                self.end_by_itself();
            }
        }
    }

    /// A shell if there is one, started again a few times; else wait until told to stop.
    fn shell(&mut self) {
        while self.shells <= SHELL_RESPAWNS {
            if !Path::new(workload::SHELL).exists() {
                return crate::say!(
                    "no workload after `--` on the command line and no {}: waiting to be powered off",
                    workload::SHELL
                );
            }
            self.shells += 1;
            match workload::start_command(&[workload::SHELL.into()]) {
                Ok(child) => return self.watch(child, true),
                Err(error) => {
                    console::take(&self.cmdline);
                    crate::say!("{error}");
                }
            }
        }
        crate::say!("{} ended {} times: ending", workload::SHELL, SHELL_RESPAWNS + 1);
        self.end_by_itself();
    }

    fn watch(&mut self, child: Child, shell: bool) {
        workload::watch(&child, self.sender.clone());
        self.running = Some(Running { child, shell });
    }

    fn ended(&mut self, outcome: Outcome) {
        let shell = self.running.take().is_some_and(|running| running.shell);
        console::take(&self.cmdline);
        if shell {
            crate::say!("{} {outcome}", workload::SHELL);
            return self.shell();
        }
        crate::say!("workload {outcome}");
        if let Some(agent) = &self.agent {
            agent.ended(outcome);
        }
        self.end_by_itself();
    }

    /// What the host or the command line wants when the workload has ended.
    fn end_by_itself(&self) {
        let configured = self.agent.as_ref().and_then(|agent| agent.configuration().end);
        match configured {
            Some(nestling_protocol::End::Stay) => {}
            Some(nestling_protocol::End::PowerOff) => self.finish(power::GRACE, End::PowerOff),
            Some(nestling_protocol::End::Reboot) => self.finish(power::GRACE, End::Reboot),
            Some(nestling_protocol::End::Halt) => self.finish(power::GRACE, End::Halt),
            None => self.finish(power::GRACE, self.cmdline.end()),
        }
    }

    /// A signal: by the ladder if the host has said what that is, else at once.
    fn told(&self, end: End) -> ! {
        let grace = self.agent.as_ref().filter(|_| self.by_host).map(|agent| agent.grace(GRACE));
        match grace {
            Some(grace) => self.stop(grace, end),
            None => self.finish(power::GRACE, end),
        }
    }

    fn stop(&self, grace: Duration, end: End) -> ! {
        let shell = self.running.as_ref().is_some_and(|running| running.shell);
        let left = match &self.agent {
            // Nobody's workload: a shell on a console takes no notice of SIGTERM, and has nothing to put in order.
            Some(_) if shell => power::GRACE,
            Some(agent) => {
                let child = self.running.as_ref().map(|running| &running.child);
                ladder(agent, child, &self.happenings, grace)
            }
            None => power::GRACE,
        };
        self.finish((left / 2).max(LEAST_GRACE), end)
    }

    /// Everybody else, the disks, the machine.
    fn finish(&self, grace: Duration, end: End) -> ! {
        let stopping = |step| {
            if let Some(agent) = &self.agent {
                agent.report(&FromAgent::Stopping { step });
            }
        };
        stopping(Step::Others);
        // Neither a session nor a try of the ready rule starts anything from here on.
        children::close();
        power::stop_processes(grace);
        stopping(Step::Sync);
        power::leave_disks_clean();
        if let Some(agent) = &self.agent {
            agent.say_farewell(end.into());
        }
        power::stop_machine(end)
    }

    /// A host that came when all ran already: its workload is too late, unless there is none.
    fn configured_late(&mut self) {
        self.by_host = true;
        let Some(agent) = self.agent.clone() else { return };
        agent.watch_ready();
        if self.running.is_some() {
            return crate::say!("the host came late: what runs goes on, and its workload is not started");
        }
        if let Some(started) = workload::start_configured(&agent, &agent.configuration(), true) {
            self.workload(started);
        }
    }
}
