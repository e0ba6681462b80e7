//! DISCARD and WRITE_ZEROES: what a list of ranges may be, and what becomes of it.

use super::*;

/// `struct virtio_blk_discard_write_zeroes`.
fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
}

fn ask(disk: &mut Fixture, kind: u32, list: &[u8]) -> u8 {
    disk.header(kind, 0);
    disk.memory.write_slice(list, GuestAddress(BODY)).unwrap();
    let used = disk.serve(&[header(), readable(BODY, list.len() as u32), status()]).unwrap();
    assert_eq!(used, 1);
    disk.status()
}

#[test]
fn ranges_are_zeroed_each_and_nothing_else() {
    for (kind, flags) in [(WRITE_ZEROES, 0), (WRITE_ZEROES, 1), (DISCARD, 0)] {
        let mut disk = fixture(false);
        let list = [range(1, 2, flags), range(6, 1, flags), range(4, 0, flags)].concat();
        assert_eq!(ask(&mut disk, kind, &list), STATUS_OK);
        let image = std::fs::read(disk.image.path()).unwrap();
        for (sector, bytes) in (0_u8..).zip(image.chunks(512)) {
            let whole = |value| bytes.iter().all(|byte| *byte == value);
            match (kind, [1, 2, 6].contains(&sector)) {
                // A hole has blocks of the file system: parts of one keep or lose their bytes.
                (DISCARD, true) => assert!(whole(sector + 1) || whole(0), "{sector}"),
                (_, true) => assert!(whole(0), "{sector}"),
                (_, false) => assert!(whole(sector + 1), "{sector}"),
            }
        }
        let counter = if kind == DISCARD { "discards" } else { "write_zeroes" };
        assert_eq!(disk.block.counters()()[counter], 1, "one request of three ranges");
    }
}

#[test]
fn what_is_no_range_changes_nothing() {
    for kind in [DISCARD, WRITE_ZEROES] {
        let most = if kind == DISCARD { MAX_DISCARD_SECTORS } else { MAX_ZERO_SECTORS };
        let unknown = if kind == DISCARD { 1 } else { 2 };
        for (list, expected) in [
            (vec![], STATUS_IOERR),
            (range(0, 1, 0)[..15].to_vec(), STATUS_IOERR),
            ([range(0, 1, 0), vec![0]].concat(), STATUS_IOERR),
            (range(0, 0, 0).repeat(MAX_RANGES as usize + 1), STATUS_IOERR),
            (range(0, SECTORS as u32 + 1, 0), STATUS_IOERR),
            (range(SECTORS, 1, 0), STATUS_IOERR),
            (range(u64::MAX, 1, 0), STATUS_IOERR),
            (range(u64::MAX / 512, u32::MAX, 0), STATUS_IOERR),
            (range(0, most + 1, 0), STATUS_IOERR),
            (range(0, 1, unknown), STATUS_UNSUPP),
            (range(0, 1, u32::MAX), STATUS_UNSUPP),
            // The second range is wrong, so the first is not touched either.
            ([range(0, 1, 0), range(SECTORS, 1, 0)].concat(), STATUS_IOERR),
        ] {
            let mut disk = fixture(false);
            let before = std::fs::read(disk.image.path()).unwrap();
            assert_eq!(ask(&mut disk, kind, &list), expected, "{kind} {list:x?}");
            assert!(std::fs::read(disk.image.path()).unwrap() == before, "{kind} {list:x?}");
            assert_eq!(disk.block.counters()()["errors"], 1);
        }
        assert_eq!(ask(&mut fixture(true), kind, &range(0, 1, 0)), STATUS_IOERR, "read-only");
    }
}

#[test]
fn the_limits_are_in_the_configuration() {
    let disk = fixture(false);
    let config = disk.block.config();
    assert_eq!(config.len(), 60);
    let number = |at: usize| u32::from_le_bytes(config[at..at + 4].try_into().unwrap());
    assert_eq!(u64::from(number(0)), SECTORS);
    assert_eq!((number(12), number(20)), (SEG_MAX, 512));
    assert_eq!((config[WRITEBACK], u16::from_le_bytes([config[34], config[35]])), (1, 1));
    assert_eq!([36, 40, 44].map(number), [MAX_DISCARD_SECTORS, MAX_RANGES, 1]);
    assert_eq!([48, 52, 56].map(number), [MAX_ZERO_SECTORS, MAX_RANGES, 1]);
    let offered = disk.block.features();
    for feature in [F_FLUSH, F_CONFIG_WCE, F_MQ, F_DISCARD, F_WRITE_ZEROES] {
        assert_eq!(offered & feature, feature);
    }
    assert_eq!(fixture(true).block.features() & (F_DISCARD | F_WRITE_ZEROES), 0);
}
