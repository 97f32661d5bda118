//! A set of byte ranges: which parts of a blob were verified.

use std::collections::BTreeMap;
use std::ops::Range;

/// Ranges that neither overlap nor touch, by start.
#[derive(Debug, Default)]
pub(super) struct Ranges {
    ends: BTreeMap<u64, u64>,
    total: u64,
}

impl Ranges {
    /// Adds a range, joining it with its neighbours.
    pub(super) fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let (mut start, mut end) = (range.start, range.end);
        // A range that begins before and reaches into or up to this one, and all that begin within it.
        let joined: Vec<u64> =
            self.ends.range(..=end).rev().take_while(|(_, e)| **e >= start).map(|(s, _)| *s).collect();
        for s in joined {
            let e = self.ends.remove(&s).expect("it was listed just now");
            self.total -= e - s;
            start = start.min(s);
            end = end.max(e);
        }
        self.total += end - start;
        self.ends.insert(start, end);
    }

    /// Whether every byte of `range` is in the set.
    pub(super) fn contains(&self, range: &Range<u64>) -> bool {
        range.is_empty() || self.ends.range(..=range.start).next_back().is_some_and(|(_, end)| *end >= range.end)
    }

    /// Bytes in the set.
    pub(super) fn total(&self) -> u64 {
        self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_agree_with_a_bitmap() {
        use rand::{Rng, SeedableRng};
        let mut random = rand::rngs::StdRng::seed_from_u64(7);
        for _ in 0..200 {
            let mut ranges = Ranges::default();
            let mut bitmap = [false; 64];
            for _ in 0..20 {
                let start = random.random_range(0..64);
                let end = random.random_range(start..=64);
                ranges.insert(start as u64..end as u64);
                bitmap[start..end].fill(true);
                assert_eq!(ranges.total(), bitmap.iter().filter(|b| **b).count() as u64);
                for a in 0..64 {
                    for b in a..=64 {
                        let all = bitmap[a..b].iter().all(|b| *b);
                        assert_eq!(ranges.contains(&(a as u64..b as u64)), all, "{ranges:?} {a}..{b}");
                    }
                }
            }
        }
    }
}
