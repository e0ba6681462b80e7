//! A worker between a driver's rings and a device that tells the test what it is called for.

use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use super::*;
use crate::devices::virtio::queue::DeviceQueue;
use crate::devices::virtio::testing::{DATA, Driver, guest_ram, open_msix, writable};
use crate::devices::virtio::{HostSource, Listen, QueueHandler};

/// Longer than anything here can take: a test that waits so long has failed.
const LONG: Duration = Duration::from_secs(30);

/// What the device was called for.
#[derive(Debug, PartialEq, Eq)]
enum Called {
    Chain(usize),
    Host,
    Quiesce,
}

/// A device that reports each call, and waits in each chain until the test lets it go on.
struct Probe {
    told: Sender<Called>,
    go_on: Option<Receiver<()>>,
    source: Option<OwnedFd>,
    /// What the next calls for the host descriptor answer.
    answers: Vec<Listen>,
    endless: Option<Driver>,
}

impl QueueHandler for Probe {
    fn on_queue(&mut self, queues: &mut Queues, index: usize) -> Result<(), Fault> {
        let Self { told, go_on, endless, .. } = self;
        let Some(queue) = queues.get(index) else { return Ok(()) };
        queue.serve(|_, _| {
            let _ = told.send(Called::Chain(index));
            if let Some(go_on) = go_on {
                let _ = go_on.recv();
            }
            if let Some(driver) = endless.as_mut().filter(|_| index == 0) {
                driver.offer(&[writable(DATA, 1)]);
            }
            Ok(0)
        })
    }

    fn host_sources(&self) -> Vec<HostSource> {
        self.source.iter().map(|source| HostSource::new(source.as_raw_fd())).collect()
    }

    fn on_host(&mut self, _queues: &mut Queues, _source: usize) -> Result<Listen, Fault> {
        let _ = self.told.send(Called::Host);
        Ok(self.answers.pop().unwrap_or(Listen::No))
    }

    fn quiesce(&mut self, _queues: &mut Queues) -> Result<(), Fault> {
        let _ = self.told.send(Called::Quiesce);
        Ok(())
    }
}

struct Fixture {
    drivers: [Driver; 2],
    bells: [EventFd; 2],
    queues: Queues,
    probe: Probe,
    told: Receiver<Called>,
}

fn fixture() -> Fixture {
    let (memory, (_, msix)) = (guest_ram(), open_msix(2));
    let drivers = [Driver::new(&memory, 0, 8), Driver::new(&memory, 1, 8)];
    let queues = [drivers[0].device(true, &msix), drivers[1].device(true, &msix)];
    let bells = [bell(&queues[0]), bell(&queues[1])];
    let (sender, told) = channel();
    let probe = Probe { told: sender, go_on: None, source: None, answers: Vec::new(), endless: None };
    Fixture { drivers, bells, queues: Queues(queues.into_iter().map(Some).collect()), probe, told }
}

fn bell(queue: &DeviceQueue) -> EventFd {
    queue.notify().try_clone().unwrap()
}

fn spawn(probe: Probe, queues: Queues) -> (Workers, Receiver<Fault>) {
    let (faults, fault) = channel();
    let on_fault: OnFault = Box::new(move |fault| faults.send(fault).unwrap());
    let notifications = Arc::new(AtomicU64::new(0));
    (Workers::spawn("probe", Lane::all(2, probe), queues, &notifications, on_fault).unwrap(), fault)
}

/// Pauses, and waits for it.
fn rest(workers: &Workers) {
    workers.pause();
    assert!(workers.wait_for_rest(Instant::now() + LONG));
}

impl Fixture {
    fn offer(&mut self, queue: usize, chains: usize) {
        for _ in 0..chains {
            self.drivers[queue].offer(&[writable(DATA, 8)]);
        }
        self.bells[queue].write(1).unwrap();
    }
}

#[test]
fn a_worker_asked_to_stop_leaves_after_the_chain_it_is_in() {
    let mut test = fixture();
    let (go_on, wait) = channel();
    test.probe.go_on = Some(wait);
    test.offer(0, 8);
    let (worker, _fault) = spawn(test.probe, test.queues);
    assert_eq!(test.told.recv_timeout(LONG).unwrap(), Called::Chain(0));
    worker.order(Order::Stop);
    drop(go_on);
    worker.stop();
    assert_eq!(test.told.iter().collect::<Vec<_>>(), [Called::Quiesce]);
    assert_eq!(test.drivers[0].used().len(), 1);
}

#[test]
fn each_doorbell_serves_its_own_queue() {
    let mut test = fixture();
    test.offer(1, 2);
    let bells = test.bells;
    let (worker, _fault) = spawn(test.probe, test.queues);
    for called in [Called::Chain(1), Called::Chain(1)] {
        assert_eq!(test.told.recv_timeout(LONG).unwrap(), called);
    }
    test.drivers[0].offer(&[writable(DATA, 8)]);
    bells[0].write(1).unwrap();
    assert_eq!(test.told.recv_timeout(LONG).unwrap(), Called::Chain(0));
    worker.stop();
    assert_eq!(test.told.iter().collect::<Vec<_>>(), [Called::Quiesce]);
}

#[test]
fn an_endless_driver_starves_neither_the_other_queue_nor_a_stop() {
    let mut test = fixture();
    test.offer(0, 8);
    test.offer(1, 1);
    // It goes on where the driver above stopped.
    test.probe.endless = Some(std::mem::replace(&mut test.drivers[0], Driver::new(&guest_ram(), 0, 8)));
    let (worker, _fault) = spawn(test.probe, test.queues);
    let mut of_the_first = 0;
    while test.told.recv_timeout(LONG).unwrap() == Called::Chain(0) {
        of_the_first += 1;
    }
    assert!(of_the_first <= 2 * 8, "the second queue waited for {of_the_first} chains of the first");
    worker.stop();
    assert_eq!(test.told.iter().last(), Some(Called::Quiesce));
}

#[test]
fn a_paused_worker_serves_nothing_until_it_is_resumed() {
    let mut test = fixture();
    test.offer(0, 1);
    let (worker, _fault) = spawn(test.probe, test.queues);
    assert_eq!(test.told.recv_timeout(LONG).unwrap(), Called::Chain(0));
    for _ in 0..3 {
        rest(&worker);
        assert_eq!(test.told.recv_timeout(LONG).unwrap(), Called::Quiesce);
        test.drivers[1].offer(&[writable(DATA, 8)]);
        test.bells[1].write(1).unwrap();
        assert!(test.told.recv_timeout(Duration::from_millis(20)).is_err(), "it rests");
        worker.resume();
        assert_eq!(test.told.recv_timeout(LONG).unwrap(), Called::Chain(1));
    }
    rest(&worker);
    worker.stop();
    assert_eq!(test.told.iter().collect::<Vec<_>>(), [Called::Quiesce], "it rested already");
}

#[test]
fn a_batch_left_for_a_pause_goes_on_afterwards() {
    let mut test = fixture();
    let (go_on, wait) = channel();
    test.probe.go_on = Some(wait);
    test.offer(0, 8);
    let (worker, _fault) = spawn(test.probe, test.queues);
    assert_eq!(test.told.recv_timeout(LONG).unwrap(), Called::Chain(0));
    worker.order(Order::Rest);
    go_on.send(()).unwrap();
    assert_eq!(test.told.recv_timeout(LONG).unwrap(), Called::Quiesce, "seven chains wait");
    rest(&worker);
    assert_eq!(test.drivers[0].used().len(), 1);
    drop(go_on);
    worker.resume();
    for _ in 0..7 {
        assert_eq!(test.told.recv_timeout(LONG).unwrap(), Called::Chain(0));
    }
    worker.stop();
}

#[test]
fn each_lane_has_a_thread_and_a_fault_in_one_ends_all() {
    let mut test = fixture();
    let (told, second) = (test.probe.told.clone(), fixture().probe);
    let second = Probe { told, ..second };
    let lane = |queues: &[usize], probe| Lane { queues: queues.to_vec(), handler: Box::new(probe) };
    let (go_on, wait) = channel();
    test.probe.go_on = Some(wait);
    let lanes = vec![lane(&[0], test.probe), lane(&[1], second)];
    let (faults, fault) = channel();
    let on_fault: OnFault = Box::new(move |fault| faults.send(fault).unwrap());
    let rings = Arc::new(AtomicU64::new(0));
    let workers = Workers::spawn("probe", lanes, test.queues, &rings, on_fault).unwrap();
    let offer = |driver: &mut Driver, bell: &EventFd| {
        driver.offer(&[writable(DATA, 8)]);
        bell.write(1).unwrap();
    };
    offer(&mut test.drivers[0], &test.bells[0]);
    assert_eq!(test.told.recv_timeout(LONG).unwrap(), Called::Chain(0));
    // The first lane is held in its chain: the second one is served all the same.
    offer(&mut test.drivers[1], &test.bells[1]);
    assert_eq!(test.told.recv_timeout(LONG).unwrap(), Called::Chain(1));
    test.drivers[1].set_available(100);
    test.bells[1].write(1).unwrap();
    assert!(matches!(fault.recv_timeout(LONG), Ok(Fault::Ring(_))));
    drop(go_on);
    assert_eq!(test.told.recv_timeout(LONG).unwrap(), Called::Quiesce, "the other lane ends in order");
    workers.stop();
    // The second lane may have met the broken ring before it was rung for it.
    assert!((2..=3).contains(&rings.load(Ordering::Relaxed)), "{rings:?}");
}

#[test]
fn a_broken_ring_ends_the_worker_and_is_told_once() {
    let mut test = fixture();
    test.drivers[0].set_available(100);
    test.bells[0].write(1).unwrap();
    test.offer(1, 1);
    let (worker, fault) = spawn(test.probe, test.queues);
    let error = fault.recv_timeout(LONG).unwrap();
    assert!(matches!(error, Fault::Ring(virtio_queue::Error::InvalidAvailRingIndex)), "{error}");
    worker.stop();
    assert!(fault.recv().is_err());
}

#[test]
fn a_host_that_hung_up_while_the_guest_has_no_room_waits_for_the_guest() {
    let mut test = fixture();
    let (source, other_end) = nix::unistd::pipe().unwrap();
    drop(other_end);
    test.probe.source = Some(source);
    test.probe.answers = vec![Listen::No, Listen::Later];
    let mut bells = test.bells.into_iter();
    let (worker, _fault) = spawn(test.probe, test.queues);
    assert_eq!(test.told.recv_timeout(LONG).unwrap(), Called::Host);
    test.drivers[0].offer(&[writable(DATA, 8)]);
    bells.next().unwrap().write(1).unwrap();
    for called in [Called::Chain(0), Called::Host] {
        assert_eq!(test.told.recv_timeout(LONG).unwrap(), called);
    }
    test.drivers[1].offer(&[writable(DATA, 8)]);
    bells.next().unwrap().write(1).unwrap();
    assert_eq!(test.told.recv_timeout(LONG).unwrap(), Called::Chain(1), "no more is heard of the host");
    worker.stop();
    assert_eq!(test.told.iter().collect::<Vec<_>>(), [Called::Quiesce]);
}

#[test]
fn a_host_is_listened_to_again_once_the_guest_made_room() {
    let mut test = fixture();
    let (source, other_end) = nix::unistd::pipe().unwrap();
    nix::unistd::write(&other_end, b"x").unwrap();
    test.probe.source = Some(source);
    test.probe.answers = vec![Listen::No, Listen::Yes, Listen::Later];
    let (worker, _fault) = spawn(test.probe, test.queues);
    assert_eq!(test.told.recv_timeout(LONG).unwrap(), Called::Host);
    test.drivers[0].offer(&[writable(DATA, 8)]);
    test.bells[0].write(1).unwrap();
    for called in [Called::Chain(0), Called::Host, Called::Host] {
        assert_eq!(test.told.recv_timeout(LONG).unwrap(), called, "the byte is still there to read");
    }
    worker.stop();
}

#[test]
fn workers_that_cannot_all_be_had_leave_no_thread_behind() {
    let mut test = fixture();
    // Epoll takes no /dev/null: the second lane has no way to hear its doorbell.
    let nothing = std::fs::File::open("/dev/null").unwrap();
    // SAFETY: a descriptor nobody else owns.
    let deaf = unsafe { EventFd::from_raw_fd(nothing.into_raw_fd()) };
    let interrupt = test.queues.get(1).unwrap().interrupt().clone();
    let ring = virtio_queue::QueueT::new(8).unwrap();
    test.queues.0[1] = Some(DeviceQueue::new(ring, guest_ram(), interrupt, deaf).unwrap());
    let (sender, told) = channel();
    let second =
        Probe { told: sender.clone(), go_on: None, source: None, answers: Vec::new(), endless: None };
    let lane = |index, handler| Lane { queues: vec![index], handler };
    let lanes = vec![
        lane(0, Box::new(Probe { told: sender, ..test.probe }) as Box<dyn QueueHandler>),
        lane(1, Box::new(second)),
    ];
    assert!(Workers::spawn("probe", lanes, test.queues, &Arc::default(), Box::new(|_| {})).is_err());
    let gone = Err(std::sync::mpsc::RecvTimeoutError::Disconnected);
    assert_eq!(told.recv_timeout(LONG), gone, "both handlers are gone");
}

#[test]
fn a_worker_that_does_not_come_to_rest_is_not_waited_for_without_end_and_goes_on() {
    let mut test = fixture();
    let (go_on, wait) = channel();
    test.probe.go_on = Some(wait);
    test.offer(0, 2);
    let (worker, _fault) = spawn(test.probe, test.queues);
    assert_eq!(test.told.recv_timeout(LONG).unwrap(), Called::Chain(0));
    worker.pause();
    let begun = Instant::now();
    assert!(!worker.wait_for_rest(begun + Duration::from_millis(50)), "it is in its chain");
    assert!(begun.elapsed() < LONG);
    worker.resume();
    drop(go_on);
    assert_eq!(test.told.recv_timeout(LONG).unwrap(), Called::Chain(0), "the next one, without a rest");
    worker.stop();
    assert_eq!(test.drivers[0].used().len(), 2, "nothing was lost");
}

/// A device that waits once more when it has left its queue.
struct Slow {
    told: Sender<()>,
    go_on: Receiver<()>,
}

impl Slow {
    fn wait(&self) {
        let _ = self.told.send(());
        let _ = self.go_on.recv();
    }
}

impl QueueHandler for Slow {
    fn on_queue(&mut self, queues: &mut Queues, index: usize) -> Result<(), Fault> {
        let Some(queue) = queues.get(index) else { return Ok(()) };
        let served = queue.serve(|_, _| {
            self.wait();
            Ok(0)
        });
        self.wait();
        served
    }
}

#[test]
fn a_batch_left_for_a_pause_that_is_taken_back_before_the_worker_reads_of_it_goes_on() {
    let mut test = fixture();
    test.offer(0, 3);
    let (sender, told) = channel();
    let (go_on, wait) = channel();
    let lanes = Lane::all(2, Slow { told: sender, go_on: wait });
    let worker = Workers::spawn("slow", lanes, test.queues, &Arc::default(), Box::new(|_| {})).unwrap();
    told.recv_timeout(LONG).unwrap();
    worker.pause();
    go_on.send(()).unwrap();
    told.recv_timeout(LONG).unwrap();
    assert_eq!(test.drivers[0].used().len(), 1, "it has left the queue in the middle");
    worker.resume();
    drop(go_on);
    let begun = Instant::now();
    while test.drivers[0].used().len() < 3 {
        assert!(begun.elapsed() < LONG, "two chains wait for a driver that need not ring any more");
        std::thread::sleep(Duration::from_millis(1));
    }
    worker.stop();
}
