//! Any chain at all: nothing panics, and no byte outside the chain's writable buffers changes.

use proptest::prelude::*;
use proptest::sample::select;

use super::*;

/// Where random buffers start: data, the header, the status byte, the edges of RAM and of the address space, a ring.
const PLACES: [u64; 9] = [DATA, HEADER, BODY, STATUS, 0, HOLE, HIGH_RAM, HIGH_RAM + RAM_BYTES, u64::MAX];
const LENGTHS: [u32; 10] = [0, 1, 15, 16, 17, 511, 512, 513, 4096, u32::MAX];

fn buffer() -> impl Strategy<Value = Buffer> {
    (select(&PLACES[..]), -20_i64..20, select(&LENGTHS[..]), any::<bool>()).prop_map(
        |(place, shift, len, writable)| Buffer { address: place.wrapping_add_signed(shift), len, writable },
    )
}

/// A buffer in the middle of RAM.
fn harmless() -> impl Strategy<Value = Buffer> {
    (0..8_u64, select(&LENGTHS[..9]), any::<bool>()).prop_map(|(page, len, writable)| Buffer {
        address: BODY + 0x1000 * page + 0x400,
        len,
        writable,
    })
}

fn chain() -> impl Strategy<Value = Vec<Buffer>> {
    let several = |buffer: BoxedStrategy<Buffer>| prop::collection::vec(buffer, 0..4);
    let any = prop_oneof![8 => harmless(), 1 => buffer()].boxed();
    let proper = (several(any.clone()), several(any))
        .prop_map(|(data, more)| [vec![header()], data, vec![status()], more].concat());
    prop_oneof![3 => proper, 1 => several(buffer().boxed()).prop_filter("a chain", |chain| !chain.is_empty())]
}

/// All of RAM, with what the device may change blotted out: writable buffers and the used ring.
fn frozen(disk: &Fixture, chain: &[Buffer]) -> Vec<u8> {
    let used = (disk.driver.addresses()[2], 6 + 8 * u32::from(QUEUE_SIZE));
    let writable = chain.iter().filter(|buffer| buffer.writable).map(|buffer| (buffer.address, buffer.len));
    let mut ram = [disk.bytes(0, RAM_BYTES as usize), disk.bytes(HIGH_RAM, RAM_BYTES as usize)].concat();
    for (start, len) in writable.chain([used]) {
        for (base, offset) in [(0, 0), (HIGH_RAM, RAM_BYTES)] {
            let end = start.saturating_add(len.into()).min(base + RAM_BYTES);
            if let Some(len) = end.checked_sub(start.max(base)) {
                let from = (start.max(base) - base + offset) as usize;
                ram[from..from + len as usize].fill(0);
            }
        }
    }
    ram
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_chain_changes_nothing_but_its_writable_buffers(
        chain in chain(),
        indirect in any::<bool>(),
        kind in select(&[READ, WRITE, FLUSH, GET_ID, DISCARD, WRITE_ZEROES, 77][..]),
        sector in select(&[0, 1, SECTORS, u64::MAX][..]),
    ) {
        let mut disk = fixture(false);
        disk.header(kind, sector);
        if indirect {
            disk.driver.offer_indirect(DATA + 0x9000, &chain);
        } else {
            disk.driver.offer(&chain);
        }
        let before = frozen(&disk, &chain);
        let served = disk.on_queue();
        prop_assert!(before == frozen(&disk, &chain));
        let room: u64 = chain.iter().filter(|buffer| buffer.writable).map(|buffer| u64::from(buffer.len)).sum();
        if served.is_ok() {
            let used = disk.driver.used();
            prop_assert_eq!(used.len(), 1);
            prop_assert!(u64::from(used[0].1) <= room, "{} bytes in {}", used[0].1, room);
        }
    }
}
