//! Guests that send anything: no panic, and nothing outside their buffers.

use proptest::prelude::*;

use super::*;

const FEATURES: [u64; 4] = [0, MRG_RXBUF, MRG_RXBUF | GUEST_CSUM | GUEST_TSO4, u64::MAX];

fn buffer() -> impl Strategy<Value = Buffer> {
    let address = prop_oneof![
        8 => DATA..HOLE,
        1 => HOLE - 64..HOLE + 64,
        1 => HIGH_RAM - 64..HIGH_RAM + RAM_BYTES + 64,
        1 => any::<u64>(),
    ];
    let len = prop_oneof![4 => 0_u32..128, 4 => 0_u32..5000, 1 => 60_000_u32..80_000, 1 => any::<u32>()];
    (address, len, any::<bool>()).prop_map(|(address, len, writable)| Buffer { address, len, writable })
}

fn chains() -> impl Strategy<Value = Vec<Vec<Buffer>>> {
    proptest::collection::vec(proptest::collection::vec(buffer(), 1..6), 1..8)
}

/// Chains of buffers that are of the right kind and in memory, so that more than the first check is reached.
fn sane(chains: Vec<Vec<Buffer>>, writable: bool) -> Vec<Vec<Buffer>> {
    let sane = |buffer: Buffer| Buffer {
        address: DATA + buffer.address % 0x8_0000,
        len: 12 + buffer.len % 3000,
        writable,
    };
    chains.into_iter().map(|chain| chain.into_iter().map(sane).collect()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn any_chain_to_send_is_sent_dropped_or_a_fault(
        chains in chains(), tidy: bool, which in 0_usize..4, header: [u8; 12],
    ) {
        let mut net = fixture(FEATURES[which], 64);
        let chains = if tidy { sane(chains, false) } else { chains };
        for chain in &chains {
            if let Some(first) = chain.first() {
                let _ = net.memory.write_slice(&header, GuestAddress(first.address));
            }
            if net.transmit(chain).is_err() {
                return Ok(());
            }
        }
        let frames = std::iter::from_fn(|| net.sent()).count() as u64;
        prop_assert_eq!(frames, net.counter("tx_packets"));
        prop_assert_eq!(chains.len() as u64, frames + net.counter("tx_malformed"));
    }

    #[test]
    fn any_receive_buffers_get_whole_frames_or_none(
        chains in chains(), tidy: bool, which in 0_usize..4, lengths in proptest::collection::vec(14_usize..9000, 1..5),
    ) {
        let mut net = fixture(FEATURES[which], 64);
        for len in &lengths {
            net.arrives(&frame(*len));
        }
        let chains = if tidy { sane(chains, true) } else { chains };
        for chain in &chains {
            net.drivers[RECEIVE].offer(chain);
            if net.receive().is_err() {
                return Ok(());
            }
        }
        let passed = (net.counter("rx_packets"), net.counter("rx_dropped"));
        prop_assert!(passed.0 + passed.1 <= lengths.len() as u64);
        let written: u64 = net.drivers[RECEIVE].used().iter().map(|&(_, len)| u64::from(len)).sum();
        prop_assert_eq!(written, net.counter("rx_bytes") + 12 * passed.0);
    }

    #[test]
    fn any_command_is_answered_or_a_fault(
        chains in chains(), command: Vec<u8>, class in 0_u8..6, kind in 0_u8..6,
    ) {
        let mut net = fixture(u64::MAX, 64);
        let command = [&[class, kind][..], &command].concat();
        net.memory.write_slice(&command, GuestAddress(DATA)).unwrap();
        for chain in &chains {
            net.drivers[CONTROL].offer(chain);
            if net.handler.on_queue(&mut net.queues, CONTROL).is_err() {
                return Ok(());
            }
        }
        prop_assert_eq!(net.drivers[CONTROL].used().len(), chains.len());
        prop_assert!(net.command(&command) <= 1);
    }
}
