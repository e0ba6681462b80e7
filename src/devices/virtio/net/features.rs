//! Feature bits of virtio-net (virtio 1.2 §5.1.3; USO: virtio 1.3), and what they say about frames.

use crate::backend::tap::Offloads;

/// Frames the guest sends may want their checksum filled in.
pub(super) const CSUM: u64 = 1 << 0;
/// Frames the guest receives may.
pub(super) const GUEST_CSUM: u64 = 1 << 1;
/// The driver switches its offloads by the control queue.
pub(super) const CTRL_GUEST_OFFLOADS: u64 = 1 << 2;
pub(super) const MTU: u64 = 1 << 3;
pub(super) const MAC: u64 = 1 << 5;
pub(super) const GUEST_TSO4: u64 = 1 << 7;
pub(super) const GUEST_TSO6: u64 = 1 << 8;
pub(super) const GUEST_ECN: u64 = 1 << 9;
pub(super) const GUEST_UFO: u64 = 1 << 10;
pub(super) const HOST_TSO4: u64 = 1 << 11;
pub(super) const HOST_TSO6: u64 = 1 << 12;
pub(super) const HOST_ECN: u64 = 1 << 13;
pub(super) const HOST_UFO: u64 = 1 << 14;
/// A frame may be spread over several receive buffers.
pub(super) const MRG_RXBUF: u64 = 1 << 15;
pub(super) const STATUS: u64 = 1 << 16;
pub(super) const CTRL_VQ: u64 = 1 << 17;
pub(super) const CTRL_RX: u64 = 1 << 18;
pub(super) const CTRL_VLAN: u64 = 1 << 19;
pub(super) const CTRL_RX_EXTRA: u64 = 1 << 20;
/// Several queue pairs.
pub(super) const MQ: u64 = 1 << 22;
pub(super) const CTRL_MAC_ADDR: u64 = 1 << 23;
pub(super) const GUEST_USO4: u64 = 1 << 54;
pub(super) const GUEST_USO6: u64 = 1 << 55;
pub(super) const HOST_USO: u64 = 1 << 56;

/// What a device over a tap offers.
pub(super) fn offered(pairs: usize, has_uso: bool) -> u64 {
    let always = CSUM
        | GUEST_CSUM
        | CTRL_GUEST_OFFLOADS
        | MTU
        | MAC
        | GUEST_TSO4
        | GUEST_TSO6
        | GUEST_ECN
        | GUEST_UFO
        | HOST_TSO4
        | HOST_TSO6
        | HOST_ECN
        | HOST_UFO
        | MRG_RXBUF
        | STATUS
        | CTRL_VQ
        | CTRL_RX
        | CTRL_VLAN
        | CTRL_RX_EXTRA
        | CTRL_MAC_ADDR;
    let multi_queue = if pairs > 1 { MQ } else { 0 };
    let uso = if has_uso { GUEST_USO4 | GUEST_USO6 | HOST_USO } else { 0 };
    always | multi_queue | uso
}

/// What the guest finishes by itself, by the GUEST bits: of the features, or of a command that has the same bits.
pub(super) fn guest_offloads(bits: u64) -> Offloads {
    let has = |bit: u64| bits & bit != 0;
    Offloads {
        checksum: has(GUEST_CSUM),
        tso4: has(GUEST_TSO4),
        tso6: has(GUEST_TSO6),
        ecn: has(GUEST_ECN),
        ufo: has(GUEST_UFO),
        // The kernel knows both or none.
        uso: has(GUEST_USO4) && has(GUEST_USO6),
    }
    .consistent()
}

/// The bits a command of CTRL_GUEST_OFFLOADS may set.
pub(super) const GUEST_OFFLOADS: u64 =
    GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN | GUEST_UFO | GUEST_USO4 | GUEST_USO6;
