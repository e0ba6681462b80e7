//! Whole lives of a machine that is not there: what it tells, and what everybody then reads.

use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use super::*;
use crate::agent::signals::{ONE_ORDER, StopSignal};
use crate::spec::plan::MachinePlan;
use crate::spec::plan::{AllowBackend, CmdlinePlan, ConsoleKind, RngPlan};
use crate::status::client::Client;
use crate::status::model::{BootStage, MachineFacts};
use crate::status::operation::{Operation, Refusal};

/// Tells its script as soon as it is started, and then waits to be stopped.
struct Scripted {
    script: Vec<MachineEvent>,
    events: Option<Sender<MachineEvent>>,
    stop_takes: Duration,
    stuck: Option<&'static str>,
    /// Told when it is dropped.
    gone: Option<Sender<()>>,
}

impl Drop for Scripted {
    fn drop(&mut self) {
        if let Some(gone) = self.gone.take() {
            gone.send(()).expect("somebody listens");
        }
    }
}

impl Vm for Scripted {
    fn start(&mut self, events: Sender<MachineEvent>) -> Result<(), EndReason> {
        for event in self.script.drain(..) {
            events.send(event).expect("the agent listens");
        }
        self.events = Some(events);
        Ok(())
    }

    fn facts(&self) -> MachineFacts {
        MachineFacts { exits_total: 7, ..MachineFacts::default() }
    }

    fn console_tail(&self) -> Vec<String> {
        vec!["Kernel panic - not syncing".to_owned()]
    }

    fn carry_out(&mut self, operation: &Operation) -> Result<(), Refusal> {
        match operation {
            Operation::Pause => {
                thread::sleep(self.stop_takes);
                Ok(())
            }
            Operation::Resume => Err(Refusal::Failed("it sleeps on".to_owned())),
            Operation::SetMemory { target_bytes: 0 } => Err(Refusal::Bad("that is too little".to_owned())),
            Operation::SetMemory { .. } => Ok(()),
            Operation::SetLink { interface, .. } => Err(Refusal::Bad(format!("no interface {interface}"))),
            Operation::ResizeDisk { disk, size_bytes } => match (disk.as_str(), size_bytes) {
                ("vda", Some(0x5_0000_0000)) | ("0", None) => Ok(()),
                _ => Err(Refusal::Bad(format!("not {size_bytes:?} for {disk}"))),
            },
        }
    }

    fn stop(&mut self) -> Result<(), String> {
        thread::sleep(self.stop_takes);
        self.events = None;
        self.stuck.map_or(Ok(()), |who| Err(who.to_owned()))
    }
}

fn machine(script: Vec<MachineEvent>) -> Scripted {
    Scripted { script, events: None, stop_takes: Duration::ZERO, stuck: None, gone: None }
}

fn slow(mut machine: Scripted, takes: Duration) -> Scripted {
    machine.stop_takes = takes;
    machine
}

fn plan(dir: &Path) -> RunPlan {
    let machine = MachinePlan {
        balloon: None,
        rng: RngPlan::default(),
        cpus: 1,
        memory_bytes: 256 << 20,
        kernel: PathBuf::from("/kernel"),
        initrd: None,
        cmdline: CmdlinePlan::Append(String::new()),
        disks: Vec::new(),
        ports: Vec::new(),
        shares: Vec::new(),
        vsock: None,
        agent: false,
        nets: Vec::new(),
        console: ConsoleKind::Virtio,
        watchdog: true,
    };
    let (socket, status_file) = (dir.join("n.sock"), Some(dir.join("status.json")));
    RunPlan { machine, socket, status_file, allow_backend: AllowBackend::Any, console_history: 1024 }
}

/// Lives a whole life on a runtime like the real one, with `beside` going on at the same time.
fn live_with<M: Vm, T>(
    build: impl FnOnce(&RunPlan) -> Result<M, EndReason> + Send + 'static,
    beside: impl AsyncFnOnce(&Path, mpsc::Sender<StopSignal>) -> T,
) -> (Exit, T, Value, TempDir) {
    let dir = tempfile::tempdir().expect("dir");
    let plan = plan(dir.path());
    let runtime = Builder::new_current_thread().enable_all().build().expect("runtime");
    let (exit, seen) = runtime.block_on(async {
        let (send_signal, signals) = mpsc::channel(2);
        let signals = Signals::from_channel(signals);
        let claim = claim(&plan.socket).expect("claim");
        let output = std::fs::File::create("/dev/null").expect("opens");
        let console = Arc::new(ConsoleHub::new(output.into(), 1024).expect("console"));
        let life = live(
            &plan,
            Clock::begin(),
            claim,
            signals,
            Ways { console, inside: Inside::new().expect("a descriptor") },
            build,
        );
        tokio::join!(life, beside(&plan.socket, send_signal))
    });
    let text = std::fs::read(dir.path().join("status.json")).expect("status file");
    (exit, seen, serde_json::from_slice(&text).expect("JSON"), dir)
}

async fn until(client: &Client<'_>, state: State) {
    while client.status().await.expect("answers").state != state {
        sleep(Duration::from_millis(5)).await;
    }
}

fn ended(reason: EndReason) -> Vec<MachineEvent> {
    vec![
        MachineEvent::Stage(BootStage::Entered),
        MachineEvent::Stage(BootStage::Kernel),
        MachineEvent::Stage(BootStage::Init),
        MachineEvent::Ended(reason),
    ]
}

#[test]
fn a_guest_that_powers_off_ends_stopped_with_zero_and_leaves_its_status() {
    let (exit, (), status, dir) =
        live_with(move |_| Ok(machine(ended(EndReason::PowerOff))), async |_, _| ());
    assert_eq!(exit, Exit::Success);
    assert_eq!(status["state"], "stopped");
    assert_eq!(status["reason"]["kind"], "power-off");
    assert_eq!(status["exit_code"], 0);
    assert_eq!(status["exits_total"], 7);
    assert_eq!(status["stages"].as_array().expect("stages").len(), 3);
    assert!(status.get("console_tail").is_none());
    assert_eq!(std::fs::read_dir(dir.path()).expect("list").count(), 1, "only the status file stays");
}

#[test]
fn a_panic_ends_failed_with_the_console_s_last_lines() {
    let reason = EndReason::GuestPanic { message: Some("Attempted to kill init!".into()) };
    let (exit, (), status, _dir) = live_with(move |_| Ok(machine(ended(reason))), async |_, _| ());
    assert_eq!(exit, Exit::GuestPanic);
    assert_eq!(status["state"], "failed");
    assert_eq!(status["message"], "the guest kernel panicked: Attempted to kill init!");
    assert_eq!(status["console_tail"][0], "Kernel panic - not syncing");
}

#[test]
fn a_machine_that_cannot_be_built_fails_with_its_reason() {
    let build =
        |_: &RunPlan| Err::<Scripted, _>(EndReason::BadInput { detail: "/kernel is no kernel".into() });
    let (exit, (), status, _dir) = live_with(build, async |_, _| ());
    assert_eq!(exit, Exit::BadInput);
    assert_eq!(status["state"], "failed");
    assert_eq!(status["message"], "/kernel is no kernel");
}

#[test]
fn threads_that_end_without_a_word_are_an_internal_error() {
    struct Silent;
    impl Vm for Silent {
        fn start(&mut self, _: Sender<MachineEvent>) -> Result<(), EndReason> {
            Ok(())
        }
        fn facts(&self) -> MachineFacts {
            MachineFacts::default()
        }
        fn console_tail(&self) -> Vec<String> {
            Vec::new()
        }
        fn carry_out(&mut self, _: &Operation) -> Result<(), Refusal> {
            Ok(())
        }
        fn stop(&mut self) -> Result<(), String> {
            Ok(())
        }
    }
    let (exit, (), status, _dir) = live_with(move |_| Ok(Silent), async |_, _| ());
    assert_eq!(exit, Exit::Internal);
    assert_eq!(status["state"], "failed");
}

#[test]
fn a_stop_request_ends_a_running_machine_and_the_stream_sees_the_end() {
    let script = vec![MachineEvent::Stage(BootStage::Entered), MachineEvent::Stage(BootStage::Kernel)];
    let (exit, lines, status, _dir) = live_with(
        |_| Ok(machine(script)),
        async |socket, _| {
            let client = Client::new(socket);
            let mut lines = Vec::new();
            let watch = client.events(true, |bytes| {
                lines.extend_from_slice(bytes);
                Ok(())
            });
            let stop_when_running = async {
                until(&client, State::Running).await;
                client.stop().await
            };
            let (watched, stopped) = tokio::join!(watch, stop_when_running);
            watched.expect("stream");
            stopped.expect("accepted");
            String::from_utf8(lines).expect("text")
        },
    );
    assert_eq!(exit, Exit::Terminated);
    assert_eq!(status["reason"]["by"], "a request on the socket");
    let last: Value = serde_json::from_str(lines.lines().last().expect("lines")).expect("JSON");
    assert_eq!(last["kind"], "ended");
    assert_eq!(last["exit_code"], 143);
    let states: Vec<_> = lines
        .lines()
        .filter_map(|line| {
            serde_json::from_str::<Value>(line).expect("JSON")["state"].as_str().map(str::to_owned)
        })
        .collect();
    assert_eq!(states, ["preflight", "creating", "booting", "running", "stopping", "stopped"]);
}

#[test]
fn the_socket_answers_while_the_machine_takes_long_to_stop() {
    let slow = slow(machine(ended(EndReason::PowerOff)), Duration::from_millis(300));
    let (exit, (), _, _dir) =
        live_with(move |_| Ok(slow), async |socket, _| until(&Client::new(socket), State::Stopping).await);
    assert_eq!(exit, Exit::Success);
}

#[test]
fn a_signal_stops_a_guest_that_only_runs() {
    for (signal, exit) in
        [(StopSignal::Terminate, Exit::Terminated), (StopSignal::Interrupt, Exit::Interrupted)]
    {
        let script = vec![MachineEvent::Stage(BootStage::Entered)];
        let (ended, (), status, _dir) = live_with(
            move |_| Ok(machine(script)),
            async |_, signals| signals.send(signal).await.expect("heard"),
        );
        assert_eq!(ended, exit);
        assert_eq!(status["state"], "stopped");
        assert_eq!(status["reason"]["by"], signal.name());
    }
}

#[test]
fn a_second_signal_leaves_a_machine_that_does_not_stop() {
    let begun = std::time::Instant::now();
    let stuck = slow(machine(Vec::new()), Duration::from_secs(8));
    let (exit, (), status, _dir) = live_with(
        |_| Ok(stuck),
        async |socket, signals| {
            until(&Client::new(socket), State::Booting).await;
            signals.send(StopSignal::Interrupt).await.expect("heard");
            until(&Client::new(socket), State::Stopping).await;
            sleep(ONE_ORDER).await;
            signals.send(StopSignal::Terminate).await.expect("heard");
        },
    );
    assert!(begun.elapsed() < Duration::from_secs(3), "it did not wait for the machine");
    assert_eq!(exit, Exit::Terminated);
    assert_eq!(status["reason"]["by"], "SIGTERM");
}

#[test]
fn one_order_that_comes_as_two_signals_and_one_signal_after_another_end_leave_the_machine_its_time() {
    let stopping = || slow(machine(vec![MachineEvent::Stage(BootStage::Entered)]), ONE_ORDER);
    let (exit, (), status, _dir) = live_with(
        move |_| Ok(stopping()),
        async |socket, signals| {
            until(&Client::new(socket), State::Booting).await;
            signals.send(StopSignal::Interrupt).await.expect("heard");
            signals.send(StopSignal::Terminate).await.expect("heard");
        },
    );
    assert_eq!((exit, &status["reason"]["by"]), (Exit::Interrupted, &"SIGINT".into()));

    let (exit, (), status, _dir) = live_with(
        |_| Ok(slow(machine(ended(EndReason::PowerOff)), ONE_ORDER)),
        async |socket, signals| {
            until(&Client::new(socket), State::Stopping).await;
            signals.send(StopSignal::Terminate).await.expect("heard");
        },
    );
    assert_eq!((exit, &status["reason"]["kind"]), (Exit::Success, &"power-off".into()));
}

#[test]
fn a_machine_of_which_something_is_stuck_ends_killed_and_says_what() {
    for (reason, exit) in [(EndReason::PowerOff, Exit::Killed), (EndReason::Reset, Exit::GuestReset)] {
        let mut stuck = machine(ended(reason));
        stuck.stuck = Some("virtio-blk /slow.img did not finish what was begun within 15s");
        let (ended, (), status, _dir) = live_with(|_| Ok(stuck), async |_, _| ());
        assert_eq!(ended, exit);
        assert_eq!(status["state"], "failed");
        let message = status["message"].as_str().expect("text");
        assert_eq!(message.contains("/slow.img"), exit == Exit::Killed, "{message}");
    }
}

#[test]
fn a_machine_that_is_kept_by_an_operation_without_end_is_left_in_bounded_time() {
    let script = vec![MachineEvent::Stage(BootStage::Entered), MachineEvent::Stage(BootStage::Kernel)];
    let kept = slow(machine(script), STOP_PATIENCE * 4);
    let (exit, (), status, _dir) = live_with(
        |_| Ok(kept),
        async |socket, signals| {
            let client = Client::new(socket);
            until(&client, State::Running).await;
            let (paused, ()) = tokio::join!(client.pause(), async {
                sleep(Duration::from_millis(50)).await;
                signals.send(StopSignal::Terminate).await.expect("heard");
            });
            paused.expect_err("it was never done");
        },
    );
    assert_eq!(exit, Exit::Killed);
    let message = status["message"].as_str().expect("text");
    assert!(
        message.starts_with("the machine was stopped by SIGTERM, but what it was asked before"),
        "{message}"
    );
}

#[test]
fn the_machine_is_gone_before_the_run_is_over() {
    for _ in 0..20 {
        let (gone, is_gone) = std::sync::mpsc::channel();
        let mut machine = machine(ended(EndReason::PowerOff));
        machine.gone = Some(gone);
        drop(live_with(|_| Ok(machine), async |_, _| ()));
        is_gone.try_recv().expect("dropped by whoever owned it");
    }
}

#[test]
fn a_signal_while_the_machine_is_being_built_ends_the_run_at_once() {
    let (release, held) = std::sync::mpsc::channel::<()>();
    let build = move |_: &RunPlan| {
        let _ = held.recv();
        Ok(machine(ended(EndReason::PowerOff)))
    };
    let (exit, (), status, _dir) = live_with(build, async |socket, signals| {
        until(&Client::new(socket), State::Creating).await;
        signals.send(StopSignal::Terminate).await.expect("sent");
    });
    assert_eq!(exit, Exit::Terminated);
    assert_eq!(status["state"], "stopped");
    assert_eq!(status["reason"]["by"], "SIGTERM");
    drop(release);
}

#[test]
fn a_pause_is_answered_when_it_is_done_and_a_stop_ends_a_paused_machine() {
    let script = vec![MachineEvent::Stage(BootStage::Entered), MachineEvent::Stage(BootStage::Kernel)];
    let slow = slow(machine(script), Duration::from_millis(50));
    let (exit, (), status, _dir) = live_with(
        |_| Ok(slow),
        async |socket, _| {
            let client = Client::new(socket);
            until(&client, State::Running).await;
            client.pause().await.expect("paused");
            assert_eq!(client.status().await.expect("answers").state, State::Paused);
            client.pause().await.expect("paused it is");
            let refused = client.resume().await.expect_err("the machine does not").to_string();
            assert!(refused.contains("it sleeps on"), "{refused}");
            assert_eq!(client.status().await.expect("answers").state, State::Paused);
            client.stop().await.expect("accepted");
            until(&client, State::Stopping).await;
            let refused = client.pause().await.expect_err("too late").to_string();
            assert!(refused.contains("being stopped"), "{refused}");
        },
    );
    assert_eq!(exit, Exit::Terminated);
    assert_eq!(status["state"], "stopped");
}

#[test]
fn a_machine_that_is_not_up_yet_is_not_paused() {
    let script = vec![MachineEvent::Stage(BootStage::Entered)];
    let (_, refused, _, _dir) = live_with(
        |_| Ok(machine(script)),
        async |socket, _| {
            let client = Client::new(socket);
            until(&client, State::Booting).await;
            let refused = client.pause().await.expect_err("not yet").to_string();
            client.stop().await.expect("accepted");
            refused
        },
    );
    assert!(refused.contains("has not come up yet"), "{refused}");
}

#[test]
fn memory_is_set_by_a_size_and_what_is_none_is_refused() {
    let script = vec![MachineEvent::Stage(BootStage::Entered)];
    let (_, refused, _, _dir) = live_with(
        |_| Ok(machine(script)),
        async |socket, _| {
            let client = Client::new(socket);
            until(&client, State::Booting).await;
            client.set_memory("128M").await.expect("a size");
            let mut refused = Vec::new();
            for target in ["much", "0", ""] {
                refused.push(client.set_memory(target).await.expect_err(target).to_string());
            }
            refused.push(client.set_memory(&"x".repeat(5000)).await.expect_err("too long").to_string());
            client.stop().await.expect("accepted");
            refused
        },
    );
    let words = ["`much` is not a size", "too little", "`` is not a size", "more than 4096 bytes"];
    for (refused, words) in refused.iter().zip(words) {
        assert!(refused.contains(words), "{refused}");
    }
}

#[test]
fn a_disk_is_resized_by_name_and_size_and_what_is_none_is_refused() {
    let script = vec![MachineEvent::Stage(BootStage::Entered)];
    let (_, refused, _, _dir) = live_with(
        |_| Ok(machine(script)),
        async |socket, _| {
            let client = Client::new(socket);
            until(&client, State::Booting).await;
            client.resize_disk("vda", Some("20G")).await.expect("a size");
            client.resize_disk("0", None).await.expect("no size");
            let mut refused = Vec::new();
            for (disk, size) in [("vda", Some("large")), ("vdb", Some("1G")), ("vda", None)] {
                refused.push(client.resize_disk(disk, size).await.expect_err(disk).to_string());
            }
            client.stop().await.expect("accepted");
            refused
        },
    );
    let words = ["`large` is not a size", "not Some(1073741824) for vdb", "not None for vda"];
    for (refused, words) in refused.iter().zip(words) {
        assert!(refused.contains(words), "{refused}");
    }
}

/// Does what it is told, and counts it.
#[derive(Default)]
struct Obedient {
    events: Option<Sender<MachineEvent>>,
    done: Arc<std::sync::atomic::AtomicUsize>,
}

impl Vm for Obedient {
    fn start(&mut self, events: Sender<MachineEvent>) -> Result<(), EndReason> {
        for stage in [BootStage::Entered, BootStage::Kernel] {
            events.send(MachineEvent::Stage(stage)).expect("the agent listens");
        }
        self.events = Some(events);
        Ok(())
    }
    fn facts(&self) -> MachineFacts {
        MachineFacts::default()
    }
    fn console_tail(&self) -> Vec<String> {
        Vec::new()
    }
    fn carry_out(&mut self, _: &Operation) -> Result<(), Refusal> {
        assert!(self.events.is_some(), "nothing is asked of a machine that was stopped");
        self.done.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Ok(())
    }
    fn stop(&mut self) -> Result<(), String> {
        self.events = None;
        Ok(())
    }
}

#[test]
fn a_storm_of_pauses_from_many_clients_is_answered_and_a_signal_ends_it_in_the_middle() {
    let machine = Obedient::default();
    let done = Arc::clone(&machine.done);
    let (exit, (answered, refused), status, _dir) = live_with(
        |_| Ok(machine),
        async |socket, signals| {
            until(&Client::new(socket), State::Running).await;
            let storm: Vec<_> = (0..8)
                .map(|number| {
                    let socket = socket.to_owned();
                    tokio::spawn(async move {
                        let client = Client::new(&socket);
                        for answered in 0.. {
                            let asked = if (answered + number) % 2 == 0 {
                                client.pause().await
                            } else {
                                client.resume().await
                            };
                            if let Err(error) = asked {
                                return (answered, error.to_string());
                            }
                        }
                        unreachable!()
                    })
                })
                .collect();
            while done.load(std::sync::atomic::Ordering::Relaxed) < 800 {
                sleep(Duration::from_millis(5)).await;
            }
            signals.send(StopSignal::Terminate).await.expect("heard");
            let (mut answered, mut refused) = (0, Vec::new());
            for client in storm {
                let (count, why) = client.await.expect("each client ends");
                answered += count;
                refused.push(why);
            }
            (answered, refused)
        },
    );
    assert_eq!(exit, Exit::Terminated);
    assert_eq!(status["state"], "stopped");
    // One that was being done when the signal came may be done without an answer.
    let done = done.load(std::sync::atomic::Ordering::Relaxed);
    assert!((answered..=answered + 1).contains(&done), "{done} done, {answered} answered");
    let expected = ["is being stopped", "has ended", "no VM answers", "answer"];
    assert!(
        refused.iter().all(|why| expected.iter().any(|words| why.contains(words))),
        "each hears why: {refused:?}"
    );
}
