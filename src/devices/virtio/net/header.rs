//! The header before each frame (virtio 1.2 §5.1.6): what a guest asks for is checked before the kernel sees it.

use super::features::{CSUM, HOST_ECN, HOST_TSO4, HOST_TSO6, HOST_UFO, HOST_USO};
use crate::backend::tap::HEADER_BYTES;

/// Bytes of the Ethernet header.
pub(super) const ETHERNET_BYTES: usize = 14;
/// The most bytes of a frame (virtio 1.2 §5.1.6.3.1): an IP packet of 64 KiB, its Ethernet header.
pub(super) const MAX_FRAME: usize = 65550;
/// Where `num_buffers` is.
pub(super) const NUM_BUFFERS_AT: usize = 10;

/// VIRTIO_NET_HDR_F_NEEDS_CSUM.
const NEEDS_CSUM: u8 = 1;
/// VIRTIO_NET_HDR_GSO_ECN.
const GSO_ECN: u8 = 0x80;

/// The header as the kernel may see it, of a frame of `frame_bytes` bytes that a guest with these `features` sends. `None`
/// when it asks for what was not negotiated, or for what this frame does not have.
pub(super) fn check(
    header: [u8; HEADER_BYTES],
    frame_bytes: usize,
    features: u64,
) -> Option<[u8; HEADER_BYTES]> {
    let [flags, gso, h0, h1, g0, g1, s0, s1, o0, o1, ..] = header;
    let word = |low, high| usize::from(u16::from_le_bytes([low, high]));
    if !(ETHERNET_BYTES..=MAX_FRAME).contains(&frame_bytes) {
        return None;
    }
    let mut checked = [0; HEADER_BYTES];
    let needs_checksum = flags & NEEDS_CSUM != 0;
    if needs_checksum {
        let end = word(s0, s1).saturating_add(word(o0, o1)).saturating_add(2);
        if features & CSUM == 0 || end > frame_bytes {
            return None;
        }
        checked[0] = NEEDS_CSUM;
        checked[6..10].copy_from_slice(&[s0, s1, o0, o1]);
    }
    let (kind, ecn) = (gso & !GSO_ECN, gso & GSO_ECN != 0);
    let feature = match kind {
        0 if ecn => return None,
        0 => return Some(checked),
        1 => HOST_TSO4,
        3 => HOST_UFO,
        4 => HOST_TSO6,
        5 => HOST_USO,
        _ => return None,
    };
    let ecn_is_for_tcp = matches!(kind, 1 | 4) && features & HOST_ECN != 0;
    let segment = word(g0, g1);
    let acceptable = needs_checksum
        && features & feature != 0
        && (!ecn || ecn_is_for_tcp)
        && segment > 0
        && word(h0, h1) <= frame_bytes;
    checked[1..6].copy_from_slice(&[gso, h0, h1, g0, g1]);
    acceptable.then_some(checked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: u64 = CSUM | HOST_ECN | HOST_TSO4 | HOST_TSO6 | HOST_UFO | HOST_USO;

    fn header(flags: u8, gso: u8, words: [u16; 4]) -> [u8; HEADER_BYTES] {
        let mut header = [0; HEADER_BYTES];
        header[..2].copy_from_slice(&[flags, gso]);
        for (at, word) in words.into_iter().enumerate() {
            header[2 + 2 * at..4 + 2 * at].copy_from_slice(&word.to_le_bytes());
        }
        header
    }

    #[test]
    fn what_was_negotiated_passes_and_nothing_else() {
        let plain = header(0, 0, [0; 4]);
        let segments = |gso| header(1, gso, [54, 1448, 34, 16]);
        for (gso, feature) in [(1, HOST_TSO4), (3, HOST_UFO), (4, HOST_TSO6), (5, HOST_USO)] {
            assert_eq!(check(segments(gso), 9000, ALL), Some(segments(gso)));
            assert_eq!(check(segments(gso), 9000, ALL & !feature), None, "{gso}");
        }
        assert_eq!(check(plain, 60, 0), Some(plain));
        assert_eq!(check(header(1, 0, [0, 0, 34, 16]), 60, 0), None, "no CSUM");
        for gso in [0x81, 0x84] {
            assert_eq!(check(segments(gso), 9000, ALL), Some(segments(gso)));
            assert_eq!(check(segments(gso), 9000, ALL & !HOST_ECN), None);
        }
        for gso in [0x80, 0x83, 0x85, 2, 6, 0x7f, 0xff] {
            assert_eq!(check(segments(gso), 9000, ALL), None, "{gso:#x}");
        }
    }

    #[test]
    fn what_the_frame_does_not_have_is_refused() {
        for (header, bytes) in [
            (header(0, 0, [0; 4]), 13),
            (header(0, 0, [0; 4]), MAX_FRAME + 1),
            (header(1, 0, [0, 0, 58, 1]), 60),
            (header(1, 0, [0, 0, u16::MAX, u16::MAX]), MAX_FRAME),
            (header(0, 1, [54, 1448, 34, 16]), 9000),
            (header(1, 1, [54, 0, 34, 16]), 9000),
            (header(1, 1, [9001, 1448, 34, 16]), 9000),
        ] {
            assert_eq!(check(header, bytes, ALL), None, "{header:?}");
        }
        assert!(check(header(1, 0, [0, 0, 58, 0]), 60, ALL).is_some());
        assert!(check(header(0, 0, [0; 4]), MAX_FRAME, ALL).is_some());
    }

    #[test]
    fn what_is_not_the_drivers_to_say_is_left_out() {
        let mut sent = header(0xfe, 0, [1, 2, 3, 4]);
        sent[10..].copy_from_slice(&[9, 9]);
        assert_eq!(check(sent, 60, ALL), Some([0; HEADER_BYTES]));
    }

    proptest! {
        #[test]
        fn a_header_that_passes_points_into_its_frame(sent: [u8; HEADER_BYTES], bytes in 0_usize..70_000, features: u64) {
            if let Some(checked) = check(sent, bytes, features) {
                let word = |at: usize| usize::from(u16::from_le_bytes([checked[at], checked[at + 1]]));
                prop_assert!((ETHERNET_BYTES..=MAX_FRAME).contains(&bytes));
                prop_assert!(checked[0] == 0 || word(6) + word(8) + 2 <= bytes && features & CSUM != 0);
                prop_assert!(checked[1] == 0 || word(4) > 0 && word(2) <= bytes && checked[0] == 1);
                prop_assert_eq!(check(checked, bytes, features), Some(checked));
            }
        }
    }
}
