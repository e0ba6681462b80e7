//! Any chains at all on any queue: nothing panics, and no page is lost that the guest did not give up.

use proptest::prelude::*;
use proptest::sample::select;

use super::*;

const PLACES: [u64; 6] = [DATA, 0, HOLE, HIGH_RAM, HIGH_RAM + RAM_BYTES, u64::MAX];
const LENGTHS: [u32; 9] = [0, 1, 3, 4, 1024, 4096, 4097, 65_536, u32::MAX];

fn buffer() -> impl Strategy<Value = Buffer> {
    (select(&PLACES[..]), -5000_i64..5000, select(&LENGTHS[..]), any::<bool>()).prop_map(
        |(place, shift, len, writable)| Buffer { address: place.wrapping_add_signed(shift), len, writable },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn chains_of_any_shape_lose_only_reported_and_ballooned_pages(
        features in select(&[0, F_MUST_TELL_HOST, F_STATS_VQ | F_REPORTING, 0b11_0111][..]),
        numbers in prop::collection::vec(prop_oneof![0_u32..0x700, Just(u32::MAX)], 64),
        chains in prop::collection::vec((0_usize..5, prop::collection::vec(buffer(), 1..4), any::<bool>()), 1..12),
    ) {
        let mut balloon = fixture(features, &[0, 1, 2, 3]);
        let layout = balloon.layout;
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        balloon.memory.write_slice(&bytes, GuestAddress(DATA)).unwrap();
        // What no chain gives up keeps its byte: look at pages no list names and no report covers.
        let reported = |address: u64| chains.iter().any(|(queue, chain, _)| {
            layout.reporting == Some(*queue) && chain.iter().any(|buffer| {
                (buffer.address..buffer.address.saturating_add(buffer.len.into())).contains(&address)
            })
        });
        let inflates = chains.iter().any(|(queue, ..)| *queue == INFLATE);
        for (queue, chain, indirect) in &chains {
            if *indirect {
                balloon.drivers[*queue].offer_indirect(DATA + 0x8000, chain);
            } else {
                balloon.drivers[*queue].offer(chain);
            }
            if balloon.handler.on_queue(&mut balloon.queues, *queue).is_err() {
                // Its device would be reset now.
                return Ok(());
            }
            balloon.handler.on_host(&mut balloon.queues, 0).unwrap();
            balloon.handler.on_host(&mut balloon.queues, 1).unwrap();
        }
        for address in (HIGH_RAM + 0x1_0000..HIGH_RAM + RAM_BYTES - 0x1_0000).step_by(0x1_0000) {
            if !inflates && !reported(address) {
                prop_assert_eq!(balloon.byte(address), 7, "{:#x}", address);
            }
        }
    }
}
