//! Noise that is the same in every run: xorshift64* (Vigna 2016).

/// The generator.
pub struct Random(u64);

impl Random {
    /// Seeds it.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        (self.bits() >> 16) % limit
    }

    /// A value of the kind that breaks things: mostly borders, sometimes noise.
    pub fn nasty(&mut self) -> u64 {
        const VALUES: [u64; 12] =
            [0, 1, 2, 3, 4, 0xf, 0xff, 0x100, 0xffff, 0xffff_ffff, 0x8000_0000_0000_0000, u64::MAX];
        match self.below(16) {
            index @ 0..12 => VALUES[index as usize],
            12 => 1 << self.below(64),
            _ => self.bits(),
        }
    }
}
