//! The history: replay, following, and being overtaken.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

fn on_runtime<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
}

fn everything(history: &Arc<History>, since: u64) -> (u64, Vec<u8>) {
    on_runtime(async {
        let (mut missed, mut bytes, mut reader) = (0, Vec::new(), history.read(since, false));
        while let Some(piece) = reader.next().await {
            missed += piece.missed;
            bytes.extend(piece.bytes);
        }
        (missed, bytes)
    })
}

#[test]
fn the_last_bytes_are_kept_and_the_others_are_counted() {
    let history = Arc::new(History::new(8));
    history.push(b"01234");
    assert_eq!(everything(&history, 0), (0, b"01234".to_vec()));
    history.push(b"56789");
    assert_eq!(everything(&history, 0), (2, b"23456789".to_vec()));
    assert_eq!(everything(&history, 4), (0, b"456789".to_vec()));
    history.push(b"abcdefghijkl");
    assert_eq!((history.total(), history.start()), (22, 14));
    assert_eq!(everything(&history, 10), (4, b"efghijkl".to_vec()));
    assert_eq!(everything(&history, 22), (0, Vec::new()));
    assert_eq!(everything(&history, u64::MAX), (0, Vec::new()), "a number that was never given");
    assert_eq!(history.missed(), 6);
}

#[test]
fn the_last_lines_are_found() {
    let history = History::new(16);
    assert_eq!(history.start_of_last(5), 0);
    history.push(b"one\ntwo\nthree");
    assert_eq!(history.start_of_last(0), 13);
    assert_eq!(history.start_of_last(1), 8);
    assert_eq!(history.start_of_last(2), 4);
    assert_eq!(history.start_of_last(3), 0);
    history.push(b"\n");
    assert_eq!(history.start_of_last(1), 8, "a line's end at the very end starts no line");
    history.push(b"four\n");
    assert_eq!(history.start_of_last(100), history.start());
}

#[test]
fn a_follower_gets_what_comes_and_the_end() {
    let history = Arc::new(History::new(1024));
    history.push(b"before ");
    let mut reader = history.read(3, true);
    let writer = std::thread::spawn({
        let history = Arc::clone(&history);
        move || {
            for _ in 0..100 {
                history.push(b"x");
                std::thread::yield_now();
            }
            history.close();
        }
    });
    let bytes = on_runtime(async {
        let mut bytes = Vec::new();
        while let Some(piece) = reader.next().await {
            assert_eq!((piece.missed, piece.first), (0, 3 + bytes.len() as u64));
            bytes.extend(piece.bytes);
        }
        bytes
    });
    writer.join().unwrap();
    assert_eq!(bytes, [b"ore ".as_slice(), &[b'x'; 100]].concat());
}

#[test]
fn a_follower_that_is_too_slow_is_overtaken_and_learns_by_how_much() {
    let history = Arc::new(History::new(100));
    let mut reader = history.read(0, true);
    history.push(&[b'a'; 1000]);
    history.push(b"the end");
    let piece = on_runtime(reader.next()).unwrap();
    assert_eq!((piece.missed, piece.first, piece.bytes.len()), (907, 907, 100));
    assert!(piece.bytes.ends_with(b"the end"));
    assert_eq!(history.missed(), 907);
}

proptest! {
    #[test]
    fn no_byte_is_lost_but_the_oldest(
        capacity in 1_usize..64,
        writes in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..20),
        since in 0_u64..900,
    ) {
        let history = Arc::new(History::new(capacity));
        let all: VecDeque<u8> = writes.iter().flatten().copied().collect();
        writes.iter().for_each(|data| history.push(data));
        let first = since.max(all.len().saturating_sub(capacity) as u64).min(all.len() as u64);
        let expected: Vec<u8> = all.iter().skip(first as usize).copied().collect();
        prop_assert_eq!(everything(&history, since), (first.saturating_sub(since), expected));
    }
}
