//! The front end against a back end in this process: what it is told, what it may do, and how it ends.

mod fake;

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

use self::fake::{Fake, Manners, Traits};
use super::user::VhostUser;
use super::*;
use crate::devices::pci::msix::Msix;
use crate::devices::virtio::fs::{Fs, FsServer};
use crate::devices::virtio::queue::Queues;
use crate::devices::virtio::testing::{DATA, Driver, HIGH_RAM, RAM_BYTES, open_msix, writable};
use crate::devices::virtio::transport::ConfigChange;
use crate::devices::virtio::worker::Workers;
use crate::devices::virtio::{F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1, Fault, Start, VirtioDevice};
use crate::devices::wiring::mock::MockWiring;

const PROTOCOL: u64 = 1 << 30;
const GOOD: Traits = Traits {
    features: F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC | PROTOCOL,
    queues: 2,
    manners: Manners::Good,
};
const IMPATIENT: Duration = Duration::from_millis(200);
const LONG: Duration = Duration::from_secs(20);

/// Guest RAM that can be mapped by another process, with the same hole as the other tests' RAM.
fn shared_ram() -> GuestMemoryMmap {
    let file = tempfile::tempfile().unwrap();
    file.set_len(2 * RAM_BYTES).unwrap();
    let file = Arc::new(file);
    let part = |gpa: u64, offset: u64| {
        (GuestAddress(gpa), RAM_BYTES as usize, Some(FileOffset::from_arc(Arc::clone(&file), offset)))
    };
    GuestMemoryMmap::from_ranges_with_files([part(0, 0), part(HIGH_RAM, RAM_BYTES)]).unwrap()
}

fn reach(traits: Traits) -> Result<(Fake, VhostUser), VhostError> {
    let (fake, socket) = Fake::start(traits);
    let user = VhostUser::with_patience("the fake".into(), socket, 2, Box::new(()), IMPATIENT)?;
    Ok((fake, user))
}

/// A session whose back ends are these, one after the other.
fn session(backends: Vec<VhostUser>) -> Arc<Session<VhostUser>> {
    let mut backends = backends.into_iter();
    let next = move || backends.next().ok_or_else(|| VhostError::Unreachable("nobody listens".into()));
    Session::open(Box::new(next)).unwrap()
}

/// A device with two queues, started as a driver starts it.
struct Machine {
    memory: GuestMemoryMmap,
    wiring: Arc<MockWiring>,
    msix: Arc<Msix>,
    drivers: [Driver; 2],
    device: Arc<dyn VirtioDevice>,
}

impl Machine {
    fn new(session: &Arc<Session<VhostUser>>) -> Self {
        let memory = shared_ram();
        let (wiring, msix) = open_msix(3);
        let drivers = [0, 1].map(|index| Driver::new(&memory, index, 64));
        let device = Arc::new(Fs::new("tag".into(), Box::new(Arc::clone(session))));
        Self { memory, wiring, msix, drivers, device }
    }

    fn start(&self) -> Result<(Workers, Receiver<Fault>), Fault> {
        let queues = self.drivers.iter().map(|driver| Some(driver.device(true, &self.msix)));
        let mut queues = Queues(queues.collect());
        let start = Start {
            features: F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC,
            memory: &self.memory,
            queues: &mut queues,
            config: ConfigChange::unheard(&self.device),
        };
        let lanes = self.device.start(start)?;
        let (tell, fault) = channel();
        let on_fault = Box::new(move |fault| tell.send(fault).unwrap());
        let rings = Arc::new(AtomicU64::new(0));
        Ok((Workers::spawn("fake", lanes, queues, &rings, on_fault).unwrap(), fault))
    }
}

fn read_counter(file: &std::fs::File) -> Option<u64> {
    let mut bytes = [0; 8];
    let mut file = file;
    file.read_exact(&mut bytes).ok().map(|()| u64::from_ne_bytes(bytes))
}

#[test]
fn a_back_end_is_told_everything_and_gets_doorbell_and_interrupt_themselves() {
    let (fake, user) = reach(GOOD).unwrap();
    assert_eq!(user.features(), GOOD.features & !PROTOCOL);
    let session = session(vec![user]);
    assert_eq!(session.ring_features(), F_EVENT_IDX | F_INDIRECT_DESC);
    let mut machine = Machine::new(&session);
    let (workers, _fault) = machine.start().unwrap();
    for queue in [0, 1] {
        fake.last(fake::SET_VRING_NUM, queue, |request| assert_eq!(request.u32(4), 64));
        fake.last(fake::SET_VRING_BASE, queue, |request| assert_eq!(request.u32(4), 0));
        fake.last(fake::SET_VRING_ENABLE, queue, |request| assert_eq!(request.u32(4), 1));
        assert_eq!(fake.last(fake::SET_VRING_ERR, queue, |request| request.files.len()), 1);
    }
    // The rings are where the driver put them, by way of the memory table.
    let [table, ..] = machine.drivers[1].addresses();
    let (memory_base, files) = {
        let heard = fake.heard.lock().unwrap();
        let table = heard.iter().find(|request| request.number == fake::SET_MEM_TABLE).unwrap();
        assert_eq!((table.u32(0), table.u64(8), table.u64(16)), (2, 0, RAM_BYTES));
        assert_eq!(
            (table.u64(40), table.u64(64)),
            (HIGH_RAM, RAM_BYTES),
            "behind the hole, and its place in the file"
        );
        (table.u64(24), table.files.len())
    };
    assert_eq!(files, 2);
    fake.last(fake::SET_VRING_ADDR, 1, |request| assert_eq!(request.u64(8) - memory_base, table));
    let features =
        fake.heard.lock().unwrap().iter().rfind(|r| r.number == fake::SET_FEATURES).unwrap().u64(0);
    assert_eq!(features, GOOD.features);
    // It is kicked once, to look at what was there before it.
    assert!(fake.last(fake::SET_VRING_KICK, 0, |request| read_counter(&request.files[0])).is_some());
    machine.drivers[0].offer(&[writable(DATA, 8)]);
    // A call is the interrupt: nobody of ours has to wake up for it.
    fake.last(fake::SET_VRING_CALL, 1, |request| {
        io::Write::write_all(&mut &request.files[0], &1_u64.to_ne_bytes()).unwrap();
    });
    assert_eq!((machine.wiring.raised(0), machine.wiring.raised(1)), (0, 1));
    // Masked, the call waits behind the mask, and the pending bit says so.
    machine.msix.write_table(16 + 12, &[1, 0, 0, 0]);
    fake.last(fake::SET_VRING_CALL, 1, |request| {
        io::Write::write_all(&mut &request.files[0], &1_u64.to_ne_bytes()).unwrap();
    });
    assert_eq!(machine.wiring.detached(), [1]);
    let began = Instant::now();
    while !machine.msix.is_pending(1) {
        assert!(began.elapsed() < LONG, "the pending bit never came");
        std::thread::yield_now();
    }
    machine.msix.write_table(16 + 12, &[0; 4]);
    assert_eq!((machine.wiring.raised(1), machine.msix.is_pending(1)), (1, false));
    workers.stop();
    assert_eq!(fake.count(fake::GET_VRING_BASE), 2);
}

/// Pauses, and waits for it.
fn rest(workers: &Workers) {
    workers.pause();
    assert!(workers.wait_for_rest(Instant::now() + LONG), "it does not come to rest");
}

#[test]
fn a_pause_stops_the_rings_and_they_go_on_where_they_were() {
    let (fake, user) = reach(GOOD).unwrap();
    let machine = Machine::new(&session(vec![user]));
    let (workers, _fault) = machine.start().unwrap();
    rest(&workers);
    assert_eq!(fake.count(fake::GET_VRING_BASE), 2);
    workers.resume();
    let began = Instant::now();
    while fake.count(fake::SET_VRING_ENABLE) < 4 {
        assert!(began.elapsed() < LONG, "it never went on");
        std::thread::yield_now();
    }
    fake.last(fake::SET_VRING_BASE, 1, |request| assert_eq!(request.u32(4), 5));
    workers.stop();
}

/// Whether an eventfd is waited for is a flag of the file that both sides have.
#[test]
fn one_that_wants_us_to_wait_for_its_eventfds_is_not_waited_for() {
    let (fake, user) = reach(GOOD).unwrap();
    let machine = Machine::new(&session(vec![user]));
    let (workers, _fault) = machine.start().unwrap();
    let all = [fake::SET_VRING_ERR, fake::SET_VRING_CALL, fake::SET_VRING_KICK];
    for (number, queue) in all.iter().flat_map(|number| [(*number, 0), (*number, 1)]) {
        fake.last(number, queue, |request| {
            let file = &request.files[0];
            nix::fcntl::fcntl(file, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::empty())).unwrap();
        });
    }
    // Full, so that a pause and what follows it would wait to kick again.
    fake.last(fake::SET_VRING_KICK, 0, |request| {
        let _ = read_counter(&request.files[0]);
        io::Write::write_all(&mut &request.files[0], &(u64::MAX - 1).to_ne_bytes()).unwrap();
    });
    let (done, is_done) = channel();
    std::thread::spawn(move || {
        rest(&workers);
        workers.resume();
        machine.msix.write_table(16 + 12, &[1, 0, 0, 0]);
        machine.msix.write_table(16 + 12, &[0; 4]);
        rest(&workers);
        workers.stop();
        machine.msix.forget_pending();
        done.send(()).unwrap();
    });
    is_done.recv_timeout(LONG).expect("it waits for the back end");
}

/// A network interface whose cable is pulled.
#[test]
fn a_back_end_that_is_closed_serves_nothing_until_it_is_opened_whatever_happens_between() {
    let (fake, user) = reach(GOOD).unwrap();
    let session = session(vec![user]);
    let machine = Machine::new(&session);
    let wait_for = |number, count| {
        let began = Instant::now();
        while fake.count(number) < count {
            assert!(began.elapsed() < LONG, "{number}: {}", fake.count(number));
            std::thread::yield_now();
        }
    };
    let (workers, fault) = machine.start().unwrap();
    session.set_open(false);
    wait_for(fake::GET_VRING_BASE, 2);
    // Neither a pause nor another driver opens it.
    rest(&workers);
    workers.resume();
    workers.stop();
    machine.msix.forget_pending();
    let (workers, _fault) = machine.start().unwrap();
    assert_eq!((fake.count(fake::SET_VRING_ENABLE), fake.count(fake::GET_VRING_BASE)), (2, 2));
    session.set_open(true);
    wait_for(fake::SET_VRING_ENABLE, 4);
    session.set_open(true);
    rest(&workers);
    assert_eq!((fake.count(fake::SET_VRING_ENABLE), fake.count(fake::GET_VRING_BASE)), (4, 4));
    workers.stop();
    assert!(fault.try_recv().is_err());
}

#[test]
fn a_reset_keeps_the_connection() {
    let (fake, user) = reach(GOOD).unwrap();
    let machine = Machine::new(&session(vec![user]));
    for round in 1..=3 {
        let (workers, _fault) = machine.start().unwrap();
        workers.stop();
        machine.msix.forget_pending();
        assert_eq!((fake.count(fake::SET_OWNER), fake.count(fake::SET_MEM_TABLE)), (1, round));
    }
    assert_eq!(machine.device.backend().unwrap(), "the fake");
}

#[test]
fn one_that_dies_is_a_fault_and_the_next_start_finds_another() {
    let ((first, user), (second, other)) = (reach(GOOD).unwrap(), reach(GOOD).unwrap());
    let machine = Machine::new(&session(vec![user, other]));
    let (workers, fault) = machine.start().unwrap();
    first.hang_up();
    let error = fault.recv_timeout(LONG).unwrap();
    assert!(matches!(error, Fault::Vhost(VhostError::Gone { .. })), "{error}");
    assert_eq!(
        machine.device.backend().unwrap(),
        "the fake (lost: the fake is gone; the driver may reset the device to try again)"
    );
    workers.stop();
    let (workers, _fault) = machine.start().unwrap();
    assert_eq!(second.count(fake::SET_VRING_ENABLE), 2);
    assert_eq!(machine.device.backend().unwrap(), "the fake");
    second.hang_up();
    workers.stop();
    let nobody = machine.start().map(drop).unwrap_err();
    assert_eq!(nobody.to_string(), "nobody listens");
}

#[test]
fn one_that_lacks_something_is_refused() {
    for (traits, what) in [
        (Traits { features: PROTOCOL, ..GOOD }, "VIRTIO_F_VERSION_1"),
        (Traits { queues: 1, ..GOOD }, "queues: it has 1, and 2 are needed"),
        (Traits { queues: 0, ..GOOD }, "queues: it has 0, and 2 are needed"),
    ] {
        let error = reach(traits).map(drop).unwrap_err();
        assert_eq!(error.to_string(), format!("the fake cannot serve this device: it lacks {what}"));
    }
}

#[test]
fn a_back_end_that_breaks_the_protocol_when_it_is_reached_is_refused_in_time() {
    for number in [fake::GET_FEATURES, fake::GET_PROTOCOL_FEATURES, fake::GET_QUEUE_NUM] {
        for manners in [
            Manners::SilentAt(number),
            Manners::GoneAt(number),
            Manners::WrongAt(number),
            Manners::ShortAt(number),
        ] {
            let error = reach(Traits { manners, ..GOOD }).map(drop).unwrap_err();
            // Of half an answer, the other half is waited for.
            let should_wait = matches!(manners, Manners::SilentAt(_) | Manners::ShortAt(_));
            assert_eq!(matches!(error, VhostError::Silent { .. }), should_wait, "{manners:?}: {error}");
        }
        let manners = Manners::FilesAt(number);
        let error = reach(Traits { manners, ..GOOD }).map(drop).unwrap_err();
        assert!(matches!(error, VhostError::Refused { .. }), "{manners:?}: {error}");
    }
    for (number, message) in [
        (fake::GET_FEATURES, "the question for its features (GET_FEATURES)"),
        (fake::GET_QUEUE_NUM, "the question for its number of queues (GET_QUEUE_NUM)"),
    ] {
        let error = reach(Traits { manners: Manners::SilentAt(number), ..GOOD }).map(drop).unwrap_err();
        let sentence =
            format!("the fake is given up: for 200ms it did not answer to {message}; it hangs, or ");
        assert!(error.to_string().starts_with(&sentence), "{error}");
    }
}

#[test]
fn answers_that_are_too_long_are_found_out_at_the_next_question() {
    for number in [fake::GET_FEATURES, fake::GET_PROTOCOL_FEATURES] {
        let manners = Manners::LongAt(number);
        let error = reach(Traits { manners, ..GOOD }).map(drop).unwrap_err();
        assert!(matches!(error, VhostError::Refused { .. }), "{manners:?}: {error}");
    }
    // After the last question of all it is more than was asked for.
    let (_fake, user) = reach(Traits { manners: Manners::LongAt(fake::GET_QUEUE_NUM), ..GOOD }).unwrap();
    let error = Machine::new(&session(vec![user])).start().map(drop).unwrap_err();
    assert_eq!(error.to_string(), "nobody listens", "another one is looked for");
}

#[test]
fn one_that_speaks_unasked_is_a_fault_of_its_own_name() {
    let (fake, user) = reach(GOOD).unwrap();
    let machine = Machine::new(&session(vec![user]));
    let (workers, fault) = machine.start().unwrap();
    // A request to us on the main socket, as if a channel for those had been agreed on.
    fake.say(&[1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    let error = fault.recv_timeout(LONG).unwrap();
    assert!(matches!(error, Fault::Vhost(VhostError::Unasked { .. })), "{error}");
    workers.stop();
}

#[test]
fn one_that_died_while_no_driver_used_it_is_replaced_before_the_next_driver_notices() {
    let ((first, user), (second, other)) = (reach(GOOD).unwrap(), reach(GOOD).unwrap());
    let machine = Machine::new(&session(vec![user, other]));
    let (workers, _fault) = machine.start().unwrap();
    workers.stop();
    machine.msix.forget_pending();
    first.hang_up();
    let (workers, _fault) = machine.start().unwrap();
    assert_eq!(second.count(fake::SET_VRING_ENABLE), 2);
    assert_eq!(machine.device.backend().unwrap(), "the fake");
    workers.stop();
}

#[test]
fn the_status_does_not_wait_while_another_one_is_reached() {
    let (first, user) = reach(GOOD).unwrap();
    let (reaching, is_reaching) = channel();
    let (let_go, may_go) = channel::<()>();
    let mut first_user = Some(user);
    let next = move || {
        first_user.take().ok_or_else(|| {
            reaching.send(()).unwrap();
            let _ = may_go.recv();
            VhostError::Unreachable("nobody listens".into())
        })
    };
    let machine = Machine::new(&Session::open(Box::new(next)).unwrap());
    first.hang_up();
    std::thread::scope(|threads| {
        let starting = threads.spawn(|| machine.start().map(drop).unwrap_err().to_string());
        is_reaching.recv_timeout(LONG).unwrap();
        let (tell, told) = channel();
        let machine = &machine;
        threads.spawn(move || tell.send(machine.device.backend().unwrap()).unwrap());
        let said = told.recv_timeout(Duration::from_secs(2));
        drop(let_go);
        assert_eq!(
            said.unwrap(),
            "the fake (lost: the fake is gone; the driver may reset the device to try again)"
        );
        assert_eq!(starting.join().unwrap(), "nobody listens");
    });
    assert_eq!(machine.device.backend().unwrap(), "the fake (lost: nobody listens)");
}

/// A back end may write what it likes into the used rings and the interrupts' eventfds: that is the guest's to sort out, and
/// neither a pause nor the end of the machine looks at it.
#[test]
fn a_storm_of_calls_and_garbage_in_the_rings_holds_up_neither_a_pause_nor_the_end() {
    let (fake, user) = reach(GOOD).unwrap();
    let mut machine = Machine::new(&session(vec![user]));
    let (workers, fault) = machine.start().unwrap();
    for driver in &mut machine.drivers {
        let [_, _, used] = driver.addresses();
        machine.memory.write_slice(&[0xff; 4 + 8 * 64], GuestAddress(used)).unwrap();
    }
    machine.msix.write_table(16 + 12, &[1, 0, 0, 0]);
    let call = fake.last(fake::SET_VRING_CALL, 1, |request| request.files[0].try_clone().unwrap());
    let storm = || {
        for _ in 0..20_000 {
            io::Write::write_all(&mut &call, &1_u64.to_ne_bytes()).unwrap();
        }
    };
    std::thread::scope(|threads| {
        threads.spawn(storm);
        for _ in 0..10 {
            rest(&workers);
            workers.resume();
        }
    });
    workers.stop();
    assert!(fault.try_recv().is_err(), "nothing of that is a fault");
    assert!(fake.count(fake::GET_VRING_BASE) >= 2);
}

#[test]
fn a_back_end_that_breaks_the_protocol_later_ends_the_device_and_nothing_hangs() {
    for number in [fake::SET_FEATURES, fake::SET_MEM_TABLE, fake::SET_VRING_ADDR, fake::SET_VRING_ENABLE] {
        for manners in [
            Manners::SilentAt(number),
            Manners::GoneAt(number),
            Manners::WrongAt(number),
            Manners::FailsAt(number),
        ] {
            let (_fake, user) = reach(Traits { manners, ..GOOD }).unwrap();
            let machine = Machine::new(&session(vec![user]));
            let error = machine.start().map(drop).unwrap_err();
            assert!(matches!(error, Fault::Vhost(_)), "{manners:?}: {error}");
            assert!(machine.device.backend().unwrap().contains("lost"), "{manners:?}");
        }
    }
    for manners in [
        Manners::SilentAt(fake::GET_VRING_BASE),
        Manners::GoneAt(fake::GET_VRING_BASE),
        Manners::WrongAt(fake::GET_VRING_BASE),
    ] {
        let (_fake, user) = reach(Traits { manners, ..GOOD }).unwrap();
        let machine = Machine::new(&session(vec![user]));
        let (workers, fault) = machine.start().unwrap();
        rest(&workers);
        assert!(matches!(fault.recv_timeout(LONG).unwrap(), Fault::Vhost(_)));
        workers.stop();
    }
}

#[test]
fn a_ring_it_finds_broken_is_the_guest_s_fault_and_it_stays() {
    let (fake, user) = reach(GOOD).unwrap();
    let machine = Machine::new(&session(vec![user]));
    let (workers, fault) = machine.start().unwrap();
    fake.last(fake::SET_VRING_ERR, 0, |request| {
        io::Write::write_all(&mut &request.files[0], &1_u64.to_ne_bytes()).unwrap();
    });
    assert!(matches!(fault.recv_timeout(LONG).unwrap(), Fault::Vhost(VhostError::Ring { .. })));
    workers.stop();
    let (workers, _fault) = machine.start().unwrap();
    assert_eq!(fake.count(fake::SET_OWNER), 1);
    workers.stop();
}

#[test]
fn memory_that_is_not_shared_is_an_error() {
    let (_fake, user) = reach(GOOD).unwrap();
    let mut machine = Machine::new(&session(vec![user]));
    machine.memory = crate::devices::virtio::testing::guest_ram();
    let error = machine.start().map(drop).unwrap_err();
    assert!(error.to_string().contains("guest memory, which has to be shared"), "{error}");
}

#[test]
fn a_device_that_does_not_open_is_told_with_its_path_and_the_mend() {
    let told = |errno| {
        let cause = io::Error::from_raw_os_error(errno);
        let (path, module, without) = ("/dev/vhost-net", "vhost_net", "leave out vhost=on");
        VhostError::NoDevice { path, module, without, cause }.to_string()
    };
    for (errno, words) in [
        (libc::ENOENT, "/dev/vhost-net is not there: give the pod the device"),
        (libc::EPERM, "/dev/vhost-net may not be opened here: "),
        (libc::EMFILE, "/dev/vhost-net cannot be opened (Too many open files"),
    ] {
        let told = told(errno);
        assert!(told.starts_with(words) && told.contains("modprobe vhost_net"), "{told}");
        assert!(told.ends_with("or leave out vhost=on") && !told.contains("os error"), "{told}");
    }
}
