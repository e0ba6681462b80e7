//! What a guest can finish by itself, so that the kernel need not (TUNSETOFFLOAD).

use std::fmt;

/// What whoever reads a tap takes unfinished: frames without their checksum, and frames larger than the MTU.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Frames whose TCP or UDP checksum is to be filled in. All the others need it.
    pub checksum: bool,
    /// TCP over IPv4 of up to 64 KiB.
    pub tso4: bool,
    /// TCP over IPv6 of up to 64 KiB.
    pub tso6: bool,
    /// The same with congestion marks (ECN); with one of the two.
    pub ecn: bool,
    /// UDP datagrams in fragments. Newer kernels never give any.
    pub ufo: bool,
    /// UDP segments, over IPv4 and IPv6. Linux 6.2 and later.
    pub uso: bool,
}

const TUN_F_CSUM: u32 = 0x01;
const TUN_F_TSO4: u32 = 0x02;
const TUN_F_TSO6: u32 = 0x04;
const TUN_F_TSO_ECN: u32 = 0x08;
const TUN_F_UFO: u32 = 0x10;
const TUN_F_USO4: u32 = 0x20;
const TUN_F_USO6: u32 = 0x40;

impl Offloads {
    /// None: every frame comes whole, with its checksum.
    pub const NONE: Self =
        Self { checksum: false, tso4: false, tso6: false, ecn: false, ufo: false, uso: false };

    /// These, less what needs another that is missing.
    #[must_use]
    pub fn consistent(self) -> Self {
        if !self.checksum {
            return Self::NONE;
        }
        Self { ecn: self.ecn && (self.tso4 || self.tso6), ..self }
    }

    /// Whether a frame may be larger than the MTU.
    #[must_use]
    pub fn large_frames(self) -> bool {
        self.tso4 || self.tso6 || self.ufo || self.uso
    }

    /// The kernel's bits for it (`linux/if_tun.h`).
    #[must_use]
    pub fn bits(self) -> u32 {
        let Self { checksum, tso4, tso6, ecn, ufo, uso } = self.consistent();
        let bit = |is_set: bool, bit: u32| if is_set { bit } else { 0 };
        bit(checksum, TUN_F_CSUM)
            | bit(tso4, TUN_F_TSO4)
            | bit(tso6, TUN_F_TSO6)
            | bit(ecn, TUN_F_TSO_ECN)
            | bit(ufo, TUN_F_UFO)
            | bit(uso, TUN_F_USO4 | TUN_F_USO6)
    }
}

impl fmt::Display for Offloads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { checksum, tso4, tso6, ecn, ufo, uso } = *self;
        let words =
            [(checksum, "csum"), (tso4, "tso4"), (tso6, "tso6"), (ecn, "ecn"), (ufo, "ufo"), (uso, "uso")];
        let set: Vec<&str> = words.iter().filter(|(is_set, _)| *is_set).map(|&(_, word)| word).collect();
        f.write_str(if set.is_empty() { "none".into() } else { set.join(" ") }.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_goes_without_checksums_and_ecn_not_without_tcp() {
        let all = Offloads { checksum: true, tso4: true, tso6: true, ecn: true, ufo: true, uso: true };
        assert_eq!(all.bits(), 0x7f);
        assert_eq!(Offloads { checksum: false, ..all }.bits(), 0);
        assert_eq!(Offloads { tso4: false, tso6: false, ..all }.bits(), 0x71);
        assert_eq!(
            (all.to_string(), Offloads::NONE.to_string()),
            ("csum tso4 tso6 ecn ufo uso".into(), "none".into())
        );
    }
}
