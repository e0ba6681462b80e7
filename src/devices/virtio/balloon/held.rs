//! The pages in the balloon, by huge page.
//!
//! A driver inflates 4 KiB at a time. Giving each page back alone would split the huge page around it: the host keeps the
//! memory of a split huge page until all of it is free, and the guest loses the large mapping for what it still uses. So a
//! page waits until its whole huge page is in the balloon, or until the balloon has been still for a moment
//! ([`Held::take_rest`]).

use std::collections::BTreeMap;
use std::ops::Range;

use super::release::PAGE;

/// Pages in a huge page of 2 MiB.
const PAGES: u64 = 512;
const WORDS: usize = 8;
/// Huge pages whose waiting pages are given back in one go.
const AT_ONCE: usize = 64;

/// The pages of one huge page that are in the balloon.
#[derive(Debug, Default)]
struct Chunk {
    bits: [u64; WORDS],
    /// Some of them were not given back yet.
    waiting: bool,
}

impl Chunk {
    /// The word and the bit of a page.
    fn place(&mut self, page: u64) -> Option<(&mut u64, u64)> {
        let within = page % PAGES;
        let word = self.bits.get_mut((within / 64) as usize)?;
        Some((word, 1 << (within % 64)))
    }

    fn is_full(&self) -> bool {
        self.bits.iter().all(|word| *word == u64::MAX)
    }

    fn is_empty(&self) -> bool {
        self.bits.iter().all(|word| *word == 0)
    }

    fn has(&self, within: u64) -> bool {
        self.bits.get((within / 64) as usize).is_some_and(|word| word & (1 << (within % 64)) != 0)
    }
}

/// The pages in the balloon. It has room for every page that is put in: the caller puts in pages of RAM only.
#[derive(Debug, Default)]
pub(super) struct Held(BTreeMap<u64, Chunk>);

impl Held {
    /// Page number `page` is in the balloon. The address range of its huge page, when that is now there as a whole.
    pub(super) fn insert(&mut self, page: u64) -> Option<Range<u64>> {
        let number = page / PAGES;
        let chunk = self.0.entry(number).or_default();
        let (word, bit) = chunk.place(page)?;
        if *word & bit != 0 {
            return None;
        }
        *word |= bit;
        chunk.waiting = !chunk.is_full();
        let start = number.saturating_mul(PAGES).saturating_mul(PAGE);
        (!chunk.waiting).then(|| start..start.saturating_add(PAGES.saturating_mul(PAGE)))
    }

    /// Page number `page` is the guest's again. Whether it was in the balloon.
    pub(super) fn remove(&mut self, page: u64) -> bool {
        let number = page / PAGES;
        let Some(chunk) = self.0.get_mut(&number) else { return false };
        let Some((word, bit)) = chunk.place(page) else { return false };
        let was_there = *word & bit != 0;
        *word &= !bit;
        if chunk.is_empty() {
            self.0.remove(&number);
        }
        was_there
    }

    /// Whether pages wait for the rest of their huge page.
    pub(super) fn is_waiting(&self) -> bool {
        self.0.values().any(|chunk| chunk.waiting)
    }

    /// The address ranges of pages that wait, which they do no longer: those of a few huge pages at once, so that a guest
    /// which scatters its pages costs neither much memory nor a long time here. Ask again while [`Held::is_waiting`].
    pub(super) fn take_rest(&mut self) -> Vec<Range<u64>> {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for (number, chunk) in self.0.iter_mut().filter(|(_, chunk)| chunk.waiting).take(AT_ONCE) {
            chunk.waiting = false;
            let first = number.saturating_mul(PAGES);
            for within in (0..PAGES).filter(|within| chunk.has(*within)) {
                let start = first.saturating_add(within).saturating_mul(PAGE);
                let end = start.saturating_add(PAGE);
                match ranges.last_mut() {
                    Some(last) if last.end == start => last.end = end,
                    _ => ranges.push(start..end),
                }
            }
        }
        ranges
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_huge_page_comes_out_once_it_is_whole() {
        let mut held = Held::default();
        for page in (512..1024).rev().filter(|page| *page != 700) {
            assert_eq!(held.insert(page), None);
            assert_eq!(held.insert(page), None, "twice is once");
        }
        assert!(held.is_waiting());
        assert_eq!(held.insert(700), Some(2 << 20..4 << 20));
        assert!(!held.is_waiting());
        assert_eq!(held.take_rest(), []);
    }

    #[test]
    fn the_rest_comes_out_in_runs_and_not_what_went_back() {
        let mut held = Held::default();
        for page in [3, 4, 5, 511, 512, 2000] {
            assert_eq!(held.insert(page), None);
        }
        assert!(held.remove(2000));
        assert!(!held.remove(2000) && !held.remove(6) && !held.remove(9999));
        assert_eq!(held.take_rest(), [0x3000..0x6000, 0x1f_f000..0x20_1000]);
        assert!(!held.is_waiting());
        assert_eq!(held.take_rest(), []);
    }

    #[test]
    fn scattered_pages_come_out_a_few_at_a_time() {
        let mut held = Held::default();
        for chunk in 0..100 {
            held.insert(chunk * PAGES);
        }
        assert_eq!(held.take_rest().len(), AT_ONCE);
        assert!(held.is_waiting());
        assert_eq!(held.take_rest().len(), 100 - AT_ONCE);
        assert!(!held.is_waiting());
    }

    proptest! {
        /// Nothing that is the guest's ever comes out, and everything in the balloon does in the end.
        #[test]
        fn what_comes_out_is_in_the_balloon(
            steps in prop::collection::vec((prop_oneof![6 => Just(Some(true)), 2 => Just(Some(false)), 1 => Just(None)],
                0_u64..8, 1_u64..300), 1..60)
        ) {
            let (mut held, mut model, mut out) = (Held::default(), BTreeSet::new(), BTreeSet::new());
            for (what, start, len) in steps {
                let pages = start * 200..start * 200 + len;
                match what {
                    Some(true) => for page in pages {
                        model.insert(page);
                        if let Some(range) = held.insert(page) {
                            out.extend(range.start / PAGE..range.end / PAGE);
                        }
                    },
                    Some(false) => for page in pages {
                        prop_assert_eq!(held.remove(page), model.remove(&page));
                        out.remove(&page);
                    },
                    None => for range in held.take_rest() {
                        out.extend(range.start / PAGE..range.end / PAGE);
                    },
                }
                prop_assert!(out.is_subset(&model));
            }
            for range in held.take_rest() {
                out.extend(range.start / PAGE..range.end / PAGE);
            }
            prop_assert_eq!(out, model);
        }
    }
}
