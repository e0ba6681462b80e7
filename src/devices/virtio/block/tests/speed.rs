//! How much of a file's speed is left on the way through the device: a measurement, which `make bench` prints.
//!
//! The file is in the page cache, so that nothing is measured but the way. A driver in memory keeps 32 requests under way and
//! sleeps until it is interrupted, as Linux's does; the worker has its own thread and engine.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, fence};
use std::time::Instant;

use io_uring::{IoUring, opcode, types};
use vmm_sys_util::eventfd::EventFd;

use super::*;
use crate::devices::virtio::testing::Driver;
use crate::devices::virtio::worker::Workers;
use crate::devices::virtio::{F_EVENT_IDX, F_VERSION_1};
use crate::devices::wiring::mock::MockWiring;

const FILE_BYTES: u64 = 64 << 20;
const DEPTH: usize = 32;
const ROUNDS: usize = 9;
const RING: u16 = 256;

const HEADERS: u64 = 0x10_0000;
const STATUSES: u64 = 0x11_0000;
const DATA: u64 = 0x20_0000;
const SLOT: u64 = 128 << 10;

/// Requests of one kind: so large, at these offsets.
struct Load {
    bytes: u64,
    offsets: Vec<u64>,
}

/// What some requests took.
#[derive(Default)]
struct Cost {
    per_second: f64,
    cpu_us: f64,
}

impl Load {
    fn random(bytes: u64, count: usize) -> Self {
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % (FILE_BYTES / bytes) * bytes
        };
        Self { bytes, offsets: (0..count).map(|_| next()).collect() }
    }

    fn sequential(bytes: u64, count: usize) -> Self {
        Self { bytes, offsets: (0..count as u64).map(|number| number * bytes % FILE_BYTES).collect() }
    }

    fn timed(&self, work: impl FnOnce(&Self)) -> Cost {
        let (start, cpu) = (Instant::now(), cpu_seconds());
        work(self);
        let count = self.offsets.len() as f64;
        Cost {
            per_second: count / start.elapsed().as_secs_f64(),
            cpu_us: (cpu_seconds() - cpu) * 1e6 / count,
        }
    }
}

/// What all threads have spent, in the kernel too.
fn cpu_seconds() -> f64 {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).unwrap();
    let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    seconds(usage.user_time()) + seconds(usage.system_time())
}

/// One system call for each read.
fn by_pread(file: &File, load: &Load) {
    let mut buffer = vec![0; load.bytes as usize];
    for &offset in &load.offsets {
        file.read_exact_at(&mut buffer, offset).unwrap();
        assert_eq!(buffer[..8], offset.to_le_bytes());
    }
}

/// As many at once as the driver has; those that are done are replaced by new ones in one system call.
fn by_uring(file: &File, load: &Load) {
    let mut ring = IoUring::new(DEPTH as u32).unwrap();
    let mut buffers = vec![vec![0_u8; load.bytes as usize]; DEPTH];
    let mut expected = [0_u64; DEPTH];
    let mut free: Vec<usize> = (0..DEPTH).collect();
    let (mut offsets, mut done) = (load.offsets.iter(), 0);
    while done < load.offsets.len() {
        while let Some(slot) = free.pop() {
            let Some(&offset) = offsets.next() else { break };
            expected[slot] = offset;
            let memory = buffers[slot].as_mut_ptr();
            let read =
                opcode::Read::new(types::Fd(file.as_raw_fd()), memory, load.bytes as u32).offset(offset);
            // SAFETY: the buffer outlives its request, which is waited for.
            unsafe { ring.submission().push(&read.build().user_data(slot as u64)) }.unwrap();
        }
        ring.submit_and_wait(1).unwrap();
        for completion in ring.completion() {
            let slot = completion.user_data() as usize;
            assert_eq!(completion.result() as u64, load.bytes);
            assert_eq!(buffers[slot][..8], expected[slot].to_le_bytes());
            free.push(slot);
            done += 1;
        }
    }
}

/// A disk whose driver is this thread.
struct Guest {
    memory: GuestMemoryMmap,
    driver: Driver,
    wiring: Arc<MockWiring>,
    interrupt: EventFd,
    doorbell: EventFd,
    workers: Option<Workers>,
    available: u16,
    used: u16,
    doorbells: u64,
    interrupts: u64,
    requests: u64,
}

impl Guest {
    fn new(image: &std::path::Path) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 16 << 20)]).unwrap();
        let driver = Driver::new(&memory, 0, RING);
        let (wiring, msix) = open_msix(1);
        let queue = driver.device(true, &msix);
        let doorbell = queue.notify().try_clone().unwrap();
        let mut queues = Queues(vec![Some(queue)]);
        let disk = Arc::new(RawDisk::open(image, Access::READ).unwrap());
        let block: Arc<dyn VirtioDevice> = Arc::new(Block::new(disk, BlockOptions::default()).unwrap());
        let config = ConfigChange::unheard(&block);
        let features = F_VERSION_1 | F_EVENT_IDX | F_FLUSH;
        let start = Start { features, memory: &memory, queues: &mut queues, config };
        let lanes = block.start(start).unwrap();
        let on_fault = Box::new(|fault| panic!("{fault}"));
        let workers = Workers::spawn("speed", lanes, queues, &Arc::new(AtomicU64::new(0)), on_fault).unwrap();
        let interrupt = wiring.interrupt(0);
        let mut guest = Self {
            memory,
            driver,
            wiring,
            interrupt,
            doorbell,
            workers: Some(workers),
            available: 0,
            used: 0,
            doorbells: 0,
            interrupts: 0,
            requests: 0,
        };
        guest.set_used_event();
        guest
    }

    fn put<T: vm_memory::ByteValued>(&self, value: T, address: u64) {
        self.memory.write_obj(value, GuestAddress(address)).unwrap();
    }

    fn get<T: vm_memory::ByteValued>(&self, address: u64) -> T {
        self.memory.read_obj(GuestAddress(address)).unwrap()
    }

    /// Each slot's chain is written once; a request changes its sector.
    fn describe(&self, bytes: u64) {
        for slot in 0..DEPTH as u64 {
            let first = 3 * slot as u16;
            self.put(0_u64, HEADERS + 16 * slot);
            self.driver.store(first, HEADERS + 16 * slot, 16, 1, first + 1);
            self.driver.store(first + 1, DATA + SLOT * slot, bytes as u32, 1 | 2, first + 2);
            self.driver.store(first + 2, STATUSES + slot, 1, 2, 0);
        }
    }

    fn set_used_event(&mut self) {
        self.driver.set_used_event(self.used);
        fence(Ordering::SeqCst);
    }

    fn run(&mut self, load: &Load) {
        self.describe(load.bytes);
        let [_, available, used] = self.driver.addresses();
        let mut expected = [0_u64; DEPTH];
        let mut free: Vec<usize> = (0..DEPTH).collect();
        let (mut offsets, mut done) = (load.offsets.iter(), 0);
        while done < load.offsets.len() {
            let before = self.available;
            while let Some(slot) = free.pop() {
                let Some(&offset) = offsets.next() else { break };
                expected[slot] = offset;
                self.put(offset / SECTOR, HEADERS + 16 * slot as u64 + 8);
                self.put(UNTOUCHED, STATUSES + slot as u64);
                self.put(3 * slot as u16, available + 4 + 2 * u64::from(self.available % RING));
                self.available = self.available.wrapping_add(1);
            }
            if self.available != before {
                self.memory.store(self.available, GuestAddress(available + 2), Ordering::Release).unwrap();
                fence(Ordering::SeqCst);
                // virtio 1.2 §2.7.10: the device wants to know when the index passes its event.
                let event = self.driver.avail_event();
                if self.available.wrapping_sub(event).wrapping_sub(1) < self.available.wrapping_sub(before) {
                    self.doorbell.write(1).unwrap();
                    self.doorbells += 1;
                }
            }
            self.wait(used);
            let now: u16 = self.memory.load(GuestAddress(used + 2), Ordering::Acquire).unwrap();
            while self.used != now {
                let slot = self.get::<u32>(used + 4 + 8 * u64::from(self.used % RING)) as usize / 3;
                assert_eq!(self.get::<u8>(STATUSES + slot as u64), STATUS_OK);
                assert_eq!(self.get::<u64>(DATA + SLOT * slot as u64), expected[slot]);
                self.used = self.used.wrapping_add(1);
                free.push(slot);
                done += 1;
            }
        }
        self.requests += load.offsets.len() as u64;
    }

    /// Sleeps until something is used.
    fn wait(&mut self, used: u64) {
        let is_new = |guest: &Self| guest.get::<u16>(used + 2) != guest.used;
        while !is_new(self) {
            self.set_used_event();
            if is_new(self) {
                return;
            }
            let mut polled =
                libc::pollfd { fd: self.interrupt.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one structure, which lives through the call.
            assert!(unsafe { libc::poll(&raw mut polled, 1, 20_000) } == 1, "the device is silent");
            self.interrupts += self.wiring.raised(0);
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if let Some(workers) = self.workers.take() {
            workers.stop();
        }
    }
}

fn median(costs: &[Cost], of: fn(&Cost) -> f64) -> f64 {
    let mut values: Vec<f64> = costs.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[test]
#[ignore = "a measurement: make bench runs it"]
fn reads_beside_pread_and_plain_io_uring() {
    let mut image = tempfile::NamedTempFile::new().unwrap();
    for number in 0..FILE_BYTES / 4096 {
        let mut block = [0xa5; 4096];
        block[..8].copy_from_slice(&(number * 4096).to_le_bytes());
        image.write_all(&block).unwrap();
    }
    let file = image.reopen().unwrap();
    println!(
        "\n| raw file in the page cache, median of {ROUNDS} rounds | pread | io_uring, 32 at once | virtio-blk, 32 at once | of pread | of io_uring |"
    );
    println!("|---|--:|--:|--:|--:|--:|");
    let loads = [
        ("4 KiB random reads", Load::random(4096, 60_000), 1e-3, "1000/s"),
        ("128 KiB sequential reads", Load::sequential(128 << 10, 4096), 0.131_072, "MB/s"),
    ];
    let mut guest = Guest::new(image.path());
    for (what, load, scale, unit) in loads {
        let mut costs = [const { Vec::new() }; 3];
        let before = [guest.requests, guest.doorbells, guest.interrupts];
        for _ in 0..ROUNDS {
            costs[0].push(load.timed(|load| by_pread(&file, load)));
            costs[1].push(load.timed(|load| by_uring(&file, load)));
            costs[2].push(load.timed(|load| guest.run(load)));
        }
        let speeds = costs.each_ref().map(|costs| median(costs, |cost| cost.per_second) * scale);
        let [pread, uring, device] = speeds;
        let ratios = [device / pread, device / uring];
        println!(
            "| {what}, {unit} | {pread:.0} | {uring:.0} | {device:.0} | {:.2} | {:.2} |",
            ratios[0], ratios[1]
        );
        let [pread, uring, device] = costs.each_ref().map(|costs| median(costs, |cost| cost.cpu_us));
        println!(
            "| the same: CPU \u{b5}s each, both threads | {pread:.2} | {uring:.2} | {device:.2} | {:.2} | {:.2} |",
            device / pread,
            device / uring
        );
        let gained = [guest.requests - before[0], guest.doorbells - before[1], guest.interrupts - before[2]];
        let each = |count: u64| count as f64 / gained[0] as f64;
        println!(
            "| the same: doorbells and interrupts each | | | {:.3}, {:.3} | | |",
            each(gained[1]),
            each(gained[2])
        );
    }
}
