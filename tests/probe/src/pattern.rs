//! Bytes that both ends know without telling each other: a seeded stream, and blocks that say where they belong.

/// SplitMix64 (Steele, Lea, Flood 2014): the `index`-th number of the sequence that `seed` begins.
pub(crate) fn number(seed: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A sequence of such numbers.
#[derive(Debug, Clone)]
pub(crate) struct Random {
    seed: u64,
    next: u64,
}

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self { seed, next: 0 }
    }

    /// A number below `limit`, which is not 0. The bias of the remainder does not matter here.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next += 1;
        number(self.seed, self.next) % limit
    }

    /// `0..count` in a random order (Fisher and Yates).
    pub(crate) fn order(&mut self, count: u64) -> Vec<u64> {
        let mut order: Vec<u64> = (0..count).collect();
        for last in (1..order.len()).rev() {
            let other = self.below(last as u64 + 1) as usize;
            order.swap(last, other);
        }
        order
    }
}

/// Fills `bytes` with those of the stream from position `at` on.
pub(crate) fn fill(seed: u64, at: u64, bytes: &mut [u8]) {
    let lead = usize::try_from(at % 8).unwrap_or(0);
    let mut index = at / 8;
    let (head, body) = bytes.split_at_mut(if lead == 0 { 0 } else { (8 - lead).min(bytes.len()) });
    if !head.is_empty() {
        let word = number(seed, index).to_le_bytes();
        head.copy_from_slice(&word[lead..lead + head.len()]);
        index += 1;
    }
    let mut words = body.chunks_exact_mut(8);
    for (chunk, index) in words.by_ref().zip(index..) {
        chunk.copy_from_slice(&number(seed, index).to_le_bytes());
    }
    let index = index + (body.len() / 8) as u64;
    let tail = words_tail(body);
    tail.copy_from_slice(&number(seed, index).to_le_bytes()[..tail.len()]);
}

fn words_tail(body: &mut [u8]) -> &mut [u8] {
    let whole = body.len() / 8 * 8;
    &mut body[whole..]
}

/// Where `bytes`, found at position `at`, first differ from the stream. `scratch` keeps its memory between calls.
pub(crate) fn difference(seed: u64, at: u64, bytes: &[u8], scratch: &mut Vec<u8>) -> Option<u64> {
    scratch.resize(bytes.len(), 0);
    fill(seed, at, scratch);
    if scratch == bytes {
        return None;
    }
    let offset = bytes.iter().zip(scratch.iter()).position(|(found, expected)| found != expected)?;
    Some(at + offset as u64)
}

/// A checksum of bytes as they pass, the same however they are cut.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Digest {
    state: u64,
    word: u64,
    count: u64,
}

impl Digest {
    pub(crate) fn new() -> Self {
        Self { state: 0xcbf2_9ce4_8422_2325, word: 0, count: 0 }
    }

    pub(crate) fn add(&mut self, bytes: &[u8]) {
        let mut bytes = bytes;
        while let Some((first, rest)) = bytes.split_first() {
            if self.count.is_multiple_of(8)
                && let Some((word, rest)) = bytes.split_first_chunk::<8>()
            {
                self.mix(u64::from_le_bytes(*word));
                self.count += 8;
                bytes = rest;
                continue;
            }
            self.word |= u64::from(*first) << (self.count % 8 * 8);
            self.count += 1;
            if self.count.is_multiple_of(8) {
                self.mix(self.word);
                self.word = 0;
            }
            bytes = rest;
        }
    }

    fn mix(&mut self, word: u64) {
        self.state = (self.state.rotate_left(5) ^ word).wrapping_mul(0x100_0000_01b3);
    }

    pub(crate) fn value(mut self) -> u64 {
        self.mix(self.word);
        self.mix(self.count);
        self.state
    }
}

const MAGIC: u64 = u64::from_le_bytes(*b"NSTLblok");
/// Magic, block number, seed, generation, checksum of the rest.
pub(crate) const HEADER_BYTES: usize = 40;

/// What a block says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Label {
    pub(crate) block: u64,
    pub(crate) seed: u64,
    /// How often this block has been written before.
    pub(crate) generation: u64,
}

impl Label {
    /// Writes the whole block.
    pub(crate) fn write(self, block: &mut [u8]) {
        let (header, body) = block.split_at_mut(HEADER_BYTES);
        let own = number(self.seed ^ self.block.rotate_left(32), self.generation);
        fill(own, 0, body);
        let mut digest = Digest::new();
        digest.add(body);
        let words = [MAGIC, self.block, self.seed, self.generation, digest.value()];
        for (chunk, word) in header.chunks_exact_mut(8).zip(words) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
    }

    /// Compares with what was read; the error says what is there instead. `scratch` is as long as the block.
    pub(crate) fn check(self, found: &[u8], scratch: &mut [u8]) -> Result<(), String> {
        self.write(scratch);
        if scratch == found {
            return Ok(());
        }
        let offset = found.iter().zip(scratch.iter()).position(|(found, expected)| found != expected);
        Err(format!(
            "block {} of seed {}, generation {}, differs from byte {} on: it holds {}",
            self.block,
            self.seed,
            self.generation,
            offset.unwrap_or(found.len()),
            describe(found)
        ))
    }
}

/// What a wrong block is, as far as it says.
fn describe(found: &[u8]) -> String {
    if found.iter().all(|byte| *byte == 0) {
        return "zeroes".into();
    }
    let word = |index: usize| {
        let bytes = found.get(index * 8..index * 8 + 8).and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(0, u64::from_le_bytes)
    };
    if word(0) != MAGIC {
        return format!("no block of ours (it begins with {:#018x})", word(0));
    }
    let mut digest = Digest::new();
    digest.add(found.get(HEADER_BYTES..).unwrap_or_default());
    let state = if digest.value() == word(4) { "whole" } else { "damaged" };
    format!("block {} of seed {}, generation {}, {state}", word(1), word(2), word(3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_is_the_same_however_it_is_cut() {
        let mut whole = [0; 100];
        fill(7, 0, &mut whole);
        for start in 0..20 {
            for end in start..60 {
                let mut part = vec![0; end - start];
                fill(7, start as u64, &mut part);
                assert_eq!(part, whole[start..end], "{start}..{end}");
            }
        }
        assert_eq!(difference(7, 3, &whole[3..], &mut Vec::new()), None);
        whole[50] ^= 1;
        assert_eq!(difference(7, 3, &whole[3..], &mut Vec::new()), Some(50));
    }

    #[test]
    fn a_digest_is_the_same_however_it_is_cut() {
        let bytes: Vec<u8> = (0..50).collect();
        let whole = {
            let mut digest = Digest::new();
            digest.add(&bytes);
            digest.value()
        };
        for cut in 0..50 {
            let mut digest = Digest::new();
            digest.add(&bytes[..cut]);
            digest.add(&bytes[cut..]);
            assert_eq!(digest.value(), whole);
        }
        let mut shorter = Digest::new();
        shorter.add(&bytes[..49]);
        assert_ne!(shorter.value(), whole);
    }

    #[test]
    fn an_order_has_every_number_once() {
        let order = Random::new(3).order(100);
        assert_ne!(order, (0..100).collect::<Vec<_>>());
        let mut sorted = order;
        sorted.sort_unstable();
        assert_eq!(sorted, (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn a_wrong_block_says_what_it_is() {
        let label = Label { block: 5, seed: 1, generation: 0 };
        let (mut block, mut scratch) = ([0; 512], [0; 512]);
        let said = |block: &[u8], scratch: &mut [u8]| label.check(block, scratch).err().unwrap_or_default();
        assert!(said(&block, &mut scratch).ends_with("it holds zeroes"));
        label.write(&mut block);
        assert_eq!(label.check(&block, &mut scratch), Ok(()));
        block[300] ^= 0x80;
        let text = said(&block, &mut scratch);
        assert!(text.contains("from byte 300 on") && text.ends_with("generation 0, damaged"), "{text}");
        Label { block: 6, ..label }.write(&mut block);
        assert!(said(&block, &mut scratch).ends_with("block 6 of seed 1, generation 0, whole"));
        block.fill(0x55);
        assert!(said(&block, &mut scratch).contains("no block of ours"));
    }
}
