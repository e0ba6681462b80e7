//! Which frames a guest wants to receive (virtio 1.2 §5.1.6.5): decided here, for a tap passes everything.
//!
//! A device that is promiscuous, as it is until the driver says otherwise, looks at no frame. Else a frame costs a look
//! at its first bytes and a search of at most 64 addresses.

/// An Ethernet address.
pub type Mac = [u8; 6];

/// Bytes of a frame that decide: addresses, type, VLAN tag.
pub(super) const DECIDING_BYTES: usize = 18;
/// Addresses kept of each kind. A driver that gives more gets all frames of that kind.
const MAX_ADDRESSES: usize = 64;
/// The broadcast address.
const BROADCAST: Mac = [0xff; 6];

/// What the driver said about receiving.
#[derive(Debug, Clone)]
pub(super) struct Filter {
    pub(super) promiscuous: bool,
    pub(super) all_multicast: bool,
    pub(super) all_unicast: bool,
    pub(super) no_multicast: bool,
    pub(super) no_unicast: bool,
    pub(super) no_broadcast: bool,
    mac: Mac,
    unicast: Addresses,
    multicast: Addresses,
    /// A bit per VLAN; `None` while the driver does not filter them.
    vlans: Option<Box<[u64; 64]>>,
}

/// Some addresses in order, or all.
#[derive(Debug, Clone, Default)]
struct Addresses {
    sorted: Vec<Mac>,
    all: bool,
}

impl Addresses {
    /// Takes addresses of six bytes each.
    fn new(bytes: &[u8]) -> Self {
        let (addresses, _) = bytes.as_chunks::<6>();
        if addresses.len() > MAX_ADDRESSES {
            return Self { sorted: Vec::new(), all: true };
        }
        let mut sorted = addresses.to_vec();
        sorted.sort_unstable();
        Self { sorted, all: false }
    }

    fn has(&self, mac: &Mac) -> bool {
        self.all || self.sorted.binary_search(mac).is_ok()
    }
}

impl Filter {
    /// What is so after a reset: everything is received. With `vlans` the driver says which tags it wants.
    pub(super) fn new(mac: Mac, vlans: bool) -> Self {
        Self {
            promiscuous: true,
            all_multicast: false,
            all_unicast: false,
            no_multicast: false,
            no_unicast: false,
            no_broadcast: false,
            mac,
            unicast: Addresses::default(),
            multicast: Addresses::default(),
            vlans: vlans.then(|| Box::new([0; 64])),
        }
    }

    /// The driver's own address.
    pub(super) fn set_mac(&mut self, mac: Mac) {
        self.mac = mac;
    }

    /// The addresses besides its own, six bytes each.
    pub(super) fn set_table(&mut self, unicast: &[u8], multicast: &[u8]) {
        self.unicast = Addresses::new(unicast);
        self.multicast = Addresses::new(multicast);
    }

    /// Whether frames of VLAN `id` are wanted; `false` when there is no such VLAN.
    pub(super) fn set_vlan(&mut self, id: u16, wanted: bool) -> bool {
        let vlans = self.vlans.get_or_insert_with(|| Box::new([0; 64]));
        let Some(word) = vlans.get_mut(usize::from(id / 64)) else { return false };
        let bit = 1 << (id % 64);
        *word = if wanted { *word | bit } else { *word & !bit };
        true
    }

    /// Whether the guest gets the frame that begins with these bytes.
    pub(super) fn passes(&self, start: &[u8; DECIDING_BYTES]) -> bool {
        self.promiscuous || (self.wants_vlan(start) && self.wants_destination(start))
    }

    fn wants_vlan(&self, start: &[u8; DECIDING_BYTES]) -> bool {
        let (Some(vlans), [0x81, 0x00] | [0x88, 0xa8]) = (&self.vlans, [start[12], start[13]]) else {
            return true;
        };
        let id = u16::from_be_bytes([start[14], start[15]]) & 0xfff;
        vlans.get(usize::from(id / 64)).is_some_and(|word| word & (1 << (id % 64)) != 0)
    }

    fn wants_destination(&self, start: &[u8; DECIDING_BYTES]) -> bool {
        let [a, b, c, d, e, f, ..] = *start;
        let destination = [a, b, c, d, e, f];
        if destination == BROADCAST {
            !self.no_broadcast
        } else if a & 1 != 0 {
            !self.no_multicast && (self.all_multicast || self.multicast.has(&destination))
        } else {
            let ours = destination == self.mac || self.unicast.has(&destination);
            !self.no_unicast && (self.all_unicast || ours)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Mac = [2, 0, 0, 0, 0, 1];
    const OTHER: Mac = [2, 0, 0, 0, 0, 2];
    const GROUP: Mac = [0x33, 0x33, 0, 0, 0, 1];

    fn to(mac: Mac) -> [u8; DECIDING_BYTES] {
        let mut start = [0; DECIDING_BYTES];
        start[..6].copy_from_slice(&mac);
        start[12] = 8;
        start
    }

    fn tagged(id: u16) -> [u8; DECIDING_BYTES] {
        let mut start = to(OWN);
        start[12..14].copy_from_slice(&[0x81, 0]);
        start[14..16].copy_from_slice(&(0xe000 | id).to_be_bytes());
        start
    }

    fn strict() -> Filter {
        Filter { promiscuous: false, ..Filter::new(OWN, true) }
    }

    #[test]
    fn a_new_device_receives_everything() {
        let filter = Filter::new(OWN, true);
        assert!([to(OTHER), to(GROUP), to(BROADCAST), tagged(5)].iter().all(|start| filter.passes(start)));
    }

    #[test]
    fn a_driver_gets_its_own_frames_and_those_of_its_tables() {
        let mut filter = strict();
        let passed = |filter: &Filter| [OWN, BROADCAST, OTHER, GROUP].map(|mac| filter.passes(&to(mac)));
        assert_eq!(passed(&filter), [true, true, false, false]);
        filter.set_table(&OTHER, &GROUP);
        assert_eq!(passed(&filter), [true; 4]);
        filter.set_table(&[], &[]);
        assert_eq!(passed(&filter), [true, true, false, false]);
        assert_eq!(passed(&Filter { all_multicast: true, ..strict() }), [true, true, false, true]);
        assert_eq!(passed(&Filter { all_unicast: true, ..strict() }), [true, true, true, false]);
        assert_eq!(
            passed(&Filter { no_unicast: true, all_unicast: true, ..strict() })[..3],
            [false, true, false]
        );
        assert!(!passed(&Filter { no_multicast: true, all_multicast: true, ..strict() })[3]);
        assert!(!passed(&Filter { no_broadcast: true, ..strict() })[1]);
        filter.set_mac(OTHER);
        assert_eq!(passed(&filter), [false, true, true, false]);
    }

    #[test]
    fn more_addresses_than_are_kept_mean_all() {
        let mut filter = strict();
        let many = |count: usize| OTHER.repeat(count);
        filter.set_table(&many(MAX_ADDRESSES), &[]);
        assert!(filter.passes(&to(OTHER)) && !filter.passes(&to([2, 9, 9, 9, 9, 9])));
        filter.set_table(&many(MAX_ADDRESSES + 1), &[]);
        assert!(filter.passes(&to([2, 9, 9, 9, 9, 9])) && !filter.passes(&to(GROUP)));
    }

    #[test]
    fn a_tagged_frame_passes_when_its_vlan_was_added() {
        let mut filter = strict();
        assert!(!filter.passes(&tagged(4095)));
        assert!(filter.set_vlan(4095, true) && filter.passes(&tagged(4095)) && !filter.passes(&tagged(4094)));
        assert!(filter.set_vlan(4095, false) && !filter.passes(&tagged(4095)));
        assert!(!filter.set_vlan(4096, true) && !filter.set_vlan(u16::MAX, true));
        let unfiltered = Filter { promiscuous: false, ..Filter::new(OWN, false) };
        assert!(unfiltered.passes(&tagged(7)), "VLANs were not negotiated");
    }
}
