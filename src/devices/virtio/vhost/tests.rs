//! The front end against a back end in this process: what it is told, what it may do, and how it ends.

mod fake;

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};

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
        std::io::Write::write_all(&mut &request.files[0], &1_u64.to_ne_bytes()).unwrap();
    });
    assert_eq!((machine.wiring.raised(0), machine.wiring.raised(1)), (0, 1));
    // Masked, the call waits behind the mask, and the pending bit says so.
    machine.msix.write_table(16 + 12, &[1, 0, 0, 0]);
    fake.last(fake::SET_VRING_CALL, 1, |request| {
        std::io::Write::write_all(&mut &request.files[0], &1_u64.to_ne_bytes()).unwrap();
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

#[test]
fn a_pause_stops_the_rings_and_they_go_on_where_they_were() {
    let (fake, user) = reach(GOOD).unwrap();
    let machine = Machine::new(&session(vec![user]));
    let (workers, _fault) = machine.start().unwrap();
    workers.pause();
    assert!(workers.wait_for_rest(Instant::now() + Duration::from_secs(30)));
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
        (Traits { queues: 1, ..GOOD }, "queues"),
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
    }
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
        workers.pause();
        assert!(workers.wait_for_rest(Instant::now() + Duration::from_secs(30)));
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
        std::io::Write::write_all(&mut &request.files[0], &1_u64.to_ne_bytes()).unwrap();
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
