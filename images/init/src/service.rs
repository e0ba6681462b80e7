//! The agent as a service of a guest that has an init of its own.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use nestling_protocol::{AGENT_PORT, CONTROL_PORT, End, FromAgent, Step};

use crate::agent::transport::Address;
use crate::agent::{Agent, Happening, Options, ladder};
use crate::children::Child;
use crate::{power, session_end, signals, workload};

/// How long a stop may take when it is this service that is stopped.
const GRACE: Duration = Duration::from_secs(10);

/// What a stopped workload's children get between SIGTERM and SIGKILL.
const REST_GRACE: Duration = Duration::from_secs(1);

/// How to use it.
const USAGE: &str =
    "usage: nestling-init agent [--listen vsock:PORT|unix:PATH] [--control vsock:PORT|unix:PATH]";

/// Runs it, to the end of the machine or of the service.
pub(crate) fn run(arguments: impl Iterator<Item = String>) -> u8 {
    let options = match parse(arguments) {
        Ok(options) => options,
        Err(message) => {
            crate::say!("{message}\n{USAGE}");
            return 2;
        }
    };
    signals::block();
    // No directory is kept from being unmounted.
    drop(std::env::set_current_dir("/"));
    let (sender, happenings) = channel();
    if let Err(error) = signals::watch(sender.clone()) {
        crate::say!("cannot wait for signals: {error}");
        return 1;
    }
    let owns_machine = options.owns_machine;
    let agent = Agent::start(options, sender.clone());
    let mut running: Option<Child> = None;
    let (end, left) = loop {
        let Ok(happening) = happenings.recv() else { return 1 };
        match happening {
            Happening::Configured => {
                agent.watch_ready();
                running = begin(&agent);
                if let Some(child) = &running {
                    workload::watch(child, sender.clone());
                }
                if let (None, Some(end)) = (&running, ends_by_itself(&agent)) {
                    break (Some(end), GRACE);
                }
            }
            Happening::Ended(outcome) => {
                running = None;
                crate::say!("workload {outcome}");
                agent.ended(outcome);
                if let Some(end) = ends_by_itself(&agent) {
                    break (Some(end), GRACE);
                }
            }
            Happening::Stop(grace) => {
                break (Some(power::End::PowerOff), ladder(&agent, running.as_ref(), &happenings, grace));
            }
            Happening::Told(_) => {
                break (None, ladder(&agent, running.as_ref(), &happenings, agent.grace(GRACE)));
            }
            Happening::NoHost | Happening::HookEnded => {}
        }
    };
    if let Some(child) = &running {
        // The workload was stopped; what it has left behind goes with it.
        session_end::end(child, left.min(REST_GRACE));
    }
    let machine_goes_on = end.is_none() || !owns_machine;
    if machine_goes_on {
        agent.end_all();
    }
    agent.report(&FromAgent::Stopping { step: Step::Sync });
    nix::unistd::sync();
    let Some(end) = end else { return 0 };
    agent.say_farewell(end.into());
    if owns_machine { ask_init(end, left) } else { 0 }
}

/// The options; a Unix socket means that the machine is the host's too.
fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Options, String> {
    let (mut listen, mut control) = (Address::Vsock(AGENT_PORT), Address::Vsock(CONTROL_PORT));
    while let Some(argument) = arguments.next() {
        let target = match argument.as_str() {
            "--listen" => &mut listen,
            "--control" => &mut control,
            other => return Err(format!("{other} is no option of the agent")),
        };
        let value = arguments.next().ok_or_else(|| format!("{argument} needs an address"))?;
        *target = value.parse()?;
    }
    let owns_machine = [&listen, &control].iter().all(|address| matches!(address, Address::Vsock(_)));
    Ok(Options { listen, control, init: false, owns_machine, patience: Duration::ZERO, persistent: true })
}

/// Starts the workload, if the host has named one.
fn begin(agent: &Arc<Agent>) -> Option<Child> {
    match workload::start_configured(agent, &agent.configuration(), false)? {
        Ok(child) => {
            agent.started(child.pid());
            Some(child)
        }
        Err(error) => {
            crate::say!("{error}");
            agent.not_started(error.failure());
            None
        }
    }
}

/// How the machine is to end when the workload has: not at all, unless the host says so.
fn ends_by_itself(agent: &Agent) -> Option<power::End> {
    let configuration = agent.configuration();
    configuration.workload.as_ref()?;
    match configuration.end? {
        End::PowerOff => Some(power::End::PowerOff),
        End::Reboot => Some(power::End::Reboot),
        End::Halt => Some(power::End::Halt),
        End::Stay => None,
    }
}

/// Has the guest's own init end the machine; should that not be possible, the kernel.
fn ask_init(end: power::End, patience: Duration) -> u8 {
    let word = match end {
        power::End::PowerOff => "poweroff",
        power::End::Reboot => "reboot",
        power::End::Halt => "halt",
    };
    for command in [&["systemctl", "--no-block", word][..], &[word]] {
        let command: Vec<_> = command.iter().map(std::ffi::OsString::from).collect();
        let deadline = std::time::Instant::now() + patience.max(Duration::from_secs(1));
        let asked = workload::start_command(&command).ok().and_then(|child| child.wait_until(deadline));
        if asked == Some(nestling_protocol::Outcome::Status(0)) {
            return 0;
        }
    }
    crate::say!("neither systemctl nor {word} ends the machine: asking the kernel");
    power::stop_machine(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> Result<Options, String> {
        parse(words.iter().map(|word| (*word).to_string()))
    }

    #[test]
    fn without_options_it_is_vsock_and_the_machine_is_its_own() {
        let options = parsed(&[]).unwrap();

        assert_eq!((options.listen, options.control), (Address::Vsock(700), Address::Vsock(700)));
        assert!(options.owns_machine && options.persistent && !options.init);
    }

    #[test]
    fn over_a_unix_socket_the_machine_is_not_its_own() {
        assert!(!parsed(&["--listen", "unix:/a", "--control", "unix:/b"]).unwrap().owns_machine);
        assert!(!parsed(&["--control", "unix:/b"]).unwrap().owns_machine);
        assert!(!parsed(&["--listen", "unix:/a"]).unwrap().owns_machine);
    }

    #[test]
    fn what_is_no_option_is_named() {
        assert_eq!(parsed(&["--port"]).unwrap_err(), "--port is no option of the agent");
        assert_eq!(parsed(&["--listen"]).unwrap_err(), "--listen needs an address");
        assert_eq!(parsed(&["--listen", "tcp:1"]).unwrap_err(), "tcp:1 is neither vsock:PORT nor unix:PATH");
    }
}
