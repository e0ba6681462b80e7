//! The control queue (virtio 1.2 §5.1.6.5): commands a driver gives, as a function of their bytes.

use super::features::{
    CTRL_GUEST_OFFLOADS, CTRL_MAC_ADDR, CTRL_RX, CTRL_RX_EXTRA, CTRL_VLAN, GUEST_OFFLOADS, MQ, guest_offloads,
};
use super::filter::{Filter, Mac};
use crate::backend::tap::Offloads;

/// The most bytes of a command that are looked at: a table of 10,000 addresses.
pub(super) const MAX_COMMAND: usize = 64 << 10;

/// What a command has changed, or asks of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// The filter has changed.
    Filter,
    /// So many queue pairs are used from now on.
    Pairs(usize),
    /// The guest finishes these by itself from now on.
    Offloads(Offloads),
}

/// Executes one command, the class first; `None` is refused (VIRTIO_NET_ERR) and has changed nothing.
pub(super) fn execute(command: &[u8], features: u64, pairs: usize, filter: &mut Filter) -> Option<Effect> {
    let (&[class, kind], data) = command.split_first_chunk()?;
    let has = |feature: u64| features & feature != 0;
    match class {
        0 if has(CTRL_RX) => set_mode(kind, data, features, filter),
        1 => match kind {
            0 if has(CTRL_RX) => set_table(data, filter),
            1 if has(CTRL_MAC_ADDR) => {
                let mac = Mac::try_from(data).ok().filter(|mac| mac[0] & 1 == 0)?;
                filter.set_mac(mac);
                Some(Effect::Filter)
            }
            _ => None,
        },
        2 if has(CTRL_VLAN) && kind <= 1 => {
            let id = u16::from_le_bytes(data.try_into().ok()?);
            filter.set_vlan(id, kind == 0).then_some(Effect::Filter)
        }
        4 if has(MQ) && kind == 0 => {
            let wanted = usize::from(u16::from_le_bytes(data.try_into().ok()?));
            (1..=pairs).contains(&wanted).then_some(Effect::Pairs(wanted))
        }
        5 if has(CTRL_GUEST_OFFLOADS) && kind == 0 => {
            let bits = u64::from_le_bytes(data.try_into().ok()?);
            let negotiated = bits & !(features & GUEST_OFFLOADS) == 0;
            negotiated.then(|| Effect::Offloads(guest_offloads(bits)))
        }
        _ => None,
    }
}

/// VIRTIO_NET_CTRL_RX: one mode on or off.
fn set_mode(kind: u8, data: &[u8], features: u64, filter: &mut Filter) -> Option<Effect> {
    let &[value] = data else { return None };
    if kind > 1 && features & CTRL_RX_EXTRA == 0 {
        return None;
    }
    let mode = match kind {
        0 => &mut filter.promiscuous,
        1 => &mut filter.all_multicast,
        2 => &mut filter.all_unicast,
        3 => &mut filter.no_multicast,
        4 => &mut filter.no_unicast,
        5 => &mut filter.no_broadcast,
        _ => return None,
    };
    *mode = value != 0;
    Some(Effect::Filter)
}

/// VIRTIO_NET_CTRL_MAC_TABLE_SET: two tables, each a number and as many addresses.
fn set_table(data: &[u8], filter: &mut Filter) -> Option<Effect> {
    let (unicast, rest) = table(data)?;
    let (multicast, rest) = table(rest)?;
    if !rest.is_empty() {
        return None;
    }
    filter.set_table(unicast, multicast);
    Some(Effect::Filter)
}

fn table(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&count, rest) = data.split_first_chunk()?;
    let bytes = usize::try_from(u32::from_le_bytes(count)).ok()?.checked_mul(6)?;
    rest.split_at_checked(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: u64 = CTRL_GUEST_OFFLOADS | CTRL_MAC_ADDR | CTRL_RX | CTRL_RX_EXTRA | CTRL_VLAN | MQ;
    const OWN: Mac = [2, 0, 0, 0, 0, 1];

    fn run(command: &[u8], features: u64) -> Option<Effect> {
        execute(command, features, 4, &mut Filter::new(OWN, true))
    }

    #[test]
    fn a_command_needs_its_feature_and_its_exact_shape() {
        let offloads = |bits: u64| [&[5, 0][..], &bits.to_le_bytes()].concat();
        let taken = Offloads { checksum: true, tso4: true, ..Offloads::NONE };
        let empty_tables = [1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        for (command, features, effect) in [
            (vec![0, 0, 1], CTRL_RX, Effect::Filter),
            (vec![0, 5, 1], CTRL_RX | CTRL_RX_EXTRA, Effect::Filter),
            (empty_tables.to_vec(), CTRL_RX, Effect::Filter),
            (vec![1, 1, 2, 0, 0, 0, 0, 9], CTRL_MAC_ADDR, Effect::Filter),
            (vec![2, 0, 5, 0], CTRL_VLAN, Effect::Filter),
            (vec![2, 1, 0xff, 0x0f], CTRL_VLAN, Effect::Filter),
            (vec![4, 0, 4, 0], MQ, Effect::Pairs(4)),
            (offloads(1 << 1 | 1 << 7), CTRL_GUEST_OFFLOADS | 1 << 1 | 1 << 7, Effect::Offloads(taken)),
            (offloads(0), CTRL_GUEST_OFFLOADS, Effect::Offloads(Offloads::NONE)),
        ] {
            assert_eq!(run(&command, features), Some(effect), "{command:?}");
            assert_eq!(run(&command, 0), None, "not negotiated: {command:?}");
            assert_eq!(run(&[&command[..], &[0]].concat(), features), None, "too long: {command:?}");
            assert_eq!(run(&command[..command.len() - 1], features), None, "too short: {command:?}");
        }
        for command in [
            &[][..],
            &[0],
            &[0, 6, 1],
            &[2, 2, 0, 0],
            &[2, 0, 0, 0x10],
            &[3, 0],
            &[4, 0, 0, 0],
            &[4, 0, 5, 0],
            &[1, 1, 1, 0, 0, 0, 0, 9],
            &[1, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0],
            &[9, 9, 9],
        ] {
            assert_eq!(run(command, ALL), None, "{command:?}");
        }
        assert_eq!(run(&[0, 2, 1], CTRL_RX), None, "without CTRL_RX_EXTRA");
        assert_eq!(run(&offloads(1 << 8), ALL | 1 << 1 | 1 << 7), None, "TSO6 was not negotiated");
    }

    proptest! {
        #[test]
        fn any_bytes_are_executed_or_refused(command: Vec<u8>, class in 0_u8..7, kind in 0_u8..7, features: u64) {
            let command = [&[class, kind][..], &command].concat();
            let mut filter = Filter::new(OWN, true);
            if let Some(Effect::Pairs(pairs)) = execute(&command, features, 4, &mut filter) {
                prop_assert!((1..=4).contains(&pairs));
            }
        }
    }
}
