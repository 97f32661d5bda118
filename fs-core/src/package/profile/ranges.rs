//! Sets of byte ranges.

use std::collections::BTreeMap;
use std::ops::Range;

/// Ranges that neither overlap nor touch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::package) struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    /// Adds a range; gives the parts of it that were not there, in order.
    pub(in crate::package) fn add(&mut self, range: Range<u64>) -> Vec<Range<u64>> {
        let mut fresh = Vec::new();
        if range.is_empty() {
            return fresh;
        }
        let (mut from, mut to) = (range.start, range.end);
        // The last range that begins before, if it touches, and all that begin inside or at the end.
        let before = self.0.range(..range.start).next_back().filter(|(_, end)| **end >= range.start);
        let touched: Vec<(u64, u64)> =
            before.into_iter().chain(self.0.range(range.start..=range.end)).map(|(s, e)| (*s, *e)).collect();
        let mut missing_from = range.start;
        for (start, end) in touched {
            if start > missing_from {
                fresh.push(missing_from..start);
            }
            missing_from = missing_from.max(end);
            (from, to) = (from.min(start), to.max(end));
            self.0.remove(&start);
        }
        if missing_from < range.end {
            fresh.push(missing_from..range.end);
        }
        self.0.insert(from, to);
        fresh
    }

    /// The ranges in order.
    pub(in crate::package) fn iter(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.0.iter().map(|(start, end)| *start..*end)
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};

    use super::*;

    #[test]
    fn ranges_unite_and_tell_what_was_new() {
        let mut ranges = Ranges::default();
        assert_eq!(ranges.add(4..8), [4..8]);
        assert_eq!(ranges.add(12..16), [12..16]);
        assert_eq!(ranges.add(0..20), [0..4, 8..12, 16..20]);
        assert!(ranges.add(3..9).is_empty());
        assert!(ranges.add(9..9).is_empty());
        assert_eq!(ranges.add(20..21), [20..21]);
        assert_eq!(ranges.iter().collect::<Vec<_>>(), [0..21]);
    }

    #[test]
    fn random_ranges_agree_with_a_list_of_all_bytes() {
        let mut random = rand::rngs::StdRng::seed_from_u64(7);
        for _ in 0..200 {
            let (mut ranges, mut bytes) = (Ranges::default(), [false; 64]);
            for _ in 0..12 {
                let start = random.random_range(0..64u64);
                let range = start..random.random_range(start..=64);
                let mut fresh = [false; 64];
                for part in ranges.add(range.clone()) {
                    assert!(!part.is_empty());
                    fresh[part.start as usize..part.end as usize].fill(true);
                }
                for at in 0..64 {
                    assert_eq!(fresh[at], range.contains(&(at as u64)) && !bytes[at]);
                }
                bytes[range.start as usize..range.end as usize].fill(true);
            }
            let mut covered = [false; 64];
            let all: Vec<_> = ranges.iter().collect();
            assert!(all.windows(2).all(|pair| pair[0].end < pair[1].start), "{all:?}");
            all.iter().for_each(|range| covered[range.start as usize..range.end as usize].fill(true));
            assert_eq!(covered, bytes);
        }
    }
}
