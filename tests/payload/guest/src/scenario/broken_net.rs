//! Frames and rings no honest driver sends, to a network device that the host's kernel serves: whoever serves it, a broken
//! ring asks for a reset, and the device works again once it was reset.

use crate::io::poke;
use crate::virtio::queue::{Descriptor, NEXT, Queue, WRITE};
use crate::virtio::{Device, F_VERSION_1, NeedsReset};
use crate::{heap, println};

/// A network device (virtio 1.2 §5.1).
const KIND: u32 = 1;
const TRANSMIT: u16 = 1;
const SIZE: u16 = 16;
/// The header of virtio-net and the shortest frame.
const FRAME: u32 = 12 + 60;
const HOLE: u64 = 0xd000_0000;
/// How often the driver comes and goes at once.
const STORM: usize = 50;

type Case = (&'static str, fn(&mut Queue, u64));

/// Runs every case.
pub(super) fn run() {
    let Some(device) = Device::find(KIND, 0) else { return println!("there is no network device") };
    let frame = heap::take(FRAME.into(), 16);
    for &(name, abuse) in CASES {
        let mut queue = start(device);
        abuse(&mut queue, frame);
        queue.ring();
        match device.wait(&mut queue) {
            Ok(_) => println!("case {name} used"),
            Err(NeedsReset) => println!("case {name} needs-reset"),
        }
        println!("after {name} {:?}", send(device, frame));
    }
    for _ in 0..STORM {
        let _ = start(device);
    }
    println!("after the storm {:?}", send(device, frame));
}

fn start(device: Device) -> Queue {
    assert!(device.negotiate(F_VERSION_1), "the network device refuses");
    let _receive = device.set_up_queue(0, SIZE, F_VERSION_1);
    let transmit = device.set_up_queue(TRANSMIT, SIZE, F_VERSION_1);
    device.start();
    transmit
}

/// A frame as it should be, from a reset on.
fn send(device: Device, frame: u64) -> Result<u32, NeedsReset> {
    let mut queue = start(device);
    queue.chain(0, &[(frame, FRAME, 0)]);
    queue.offer(0);
    queue.ring();
    device.wait(&mut queue).map(|(head, _)| head)
}

const CASES: &[Case] = &[
    ("frame-in-a-hole", |queue, _| one(queue, &[(HOLE, FRAME, 0)])),
    ("frame-that-wraps", |queue, _| one(queue, &[(u64::MAX - 15, FRAME, 0)])),
    ("frame-beyond-ram", |queue, _| one(queue, &[((64 << 20) - 16, FRAME, 0)])),
    ("frame-to-write", |queue, frame| one(queue, &[(frame, FRAME, WRITE)])),
    ("points-to-itself", |queue, frame| {
        queue.describe(0, Descriptor { address: frame, len: FRAME, flags: NEXT, next: 0 });
        queue.offer(0);
    }),
    ("link-is-no-descriptor", |queue, frame| {
        queue.describe(0, Descriptor { address: frame, len: FRAME, flags: NEXT, next: SIZE });
        queue.offer(0);
    }),
    ("head-is-no-descriptor", |queue, _| queue.offer(SIZE)),
    ("index-jumps", |queue, _| poke(queue.rings.driver + 2, SIZE + 1)),
];

fn one(queue: &mut Queue, parts: &[(u64, u32, u16)]) {
    queue.chain(0, parts);
    queue.offer(0);
}
