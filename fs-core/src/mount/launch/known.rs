//! What a launch set names, and what of it was used.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::package::NodeId;
use crate::package::descriptor::LaunchRef;
use crate::package::launch::LaunchEntry;

/// Before so many bytes that are not in the set were read, it is not judged.
const JUDGED_AFTER_BYTES: u64 = 8 << 20;
/// A set is wrong when less than one of so many bytes that were read is in it.
const WRONG_BELOW_ONE_OF: u64 = 4;

/// The launch set of a mount, once its index is here.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) of: LaunchRef,
    pub(super) entries: Arc<Vec<LaunchEntry>>,
    files: HashMap<NodeId, Blocks>,
    used_bytes: AtomicU64,
    outside_bytes: AtomicU64,
}

/// Blocks of one file, by position.
#[derive(Debug, Default)]
struct Blocks {
    ranges: Vec<Range<u64>>,
    used: Vec<AtomicBool>,
    /// Number of the entry that is the last of them.
    last_entry: usize,
}

impl Blocks {
    /// Numbers of the blocks that have a part of `range`.
    fn over(&self, range: &Range<u64>) -> Range<usize> {
        let first = self.ranges.partition_point(|block| block.end <= range.start);
        let beyond = self.ranges[first..].partition_point(|block| block.start < range.end);
        first..first + beyond
    }
}

impl Known {
    pub(super) fn new(of: LaunchRef, entries: Vec<LaunchEntry>) -> Self {
        let mut files: HashMap<NodeId, Blocks> = HashMap::new();
        for (number, entry) in entries.iter().enumerate() {
            if let LaunchEntry::Block { node, offset, length, .. } = entry {
                let blocks = files.entry(*node).or_default();
                blocks.ranges.push(*offset..*offset + u64::from(*length));
                blocks.last_entry = number;
            }
        }
        for blocks in files.values_mut() {
            blocks.ranges.sort_by_key(|range| range.start);
            // Blocks of a file are disjoint; an index that says otherwise is wrong, and brings what the tree knows.
            blocks.ranges.dedup_by(|next, before| next.start < before.end);
            blocks.used.resize_with(blocks.ranges.len(), AtomicBool::default);
        }
        let (used_bytes, outside_bytes) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { of, entries: Arc::new(entries), files, used_bytes, outside_bytes }
    }

    /// Files that the set has blocks of.
    pub(super) fn files(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.files.keys().copied()
    }

    /// Parts of the file `node` that are in the set, by position.
    pub(super) fn ranges(&self, node: NodeId) -> Option<&[Range<u64>]> {
        self.files.get(&node).map(|blocks| &blocks.ranges[..])
    }

    /// The last entry of the set that is of the file `node`, and how many bytes of the file are in the set.
    pub(super) fn last_of(&self, node: NodeId) -> Option<(usize, u64)> {
        let blocks = self.files.get(&node)?;
        Some((blocks.last_entry, blocks.ranges.iter().map(|range| range.end - range.start).sum()))
    }

    /// Whether the set has a part of `range`.
    pub(super) fn touches(&self, node: NodeId, range: &Range<u64>) -> bool {
        self.files.get(&node).is_some_and(|blocks| !blocks.over(range).is_empty())
    }

    /// Somebody read `range`, or the system was handed it because its file was opened.
    pub(super) fn used(&self, node: NodeId, range: &Range<u64>) {
        let mut outside = range.end.saturating_sub(range.start);
        if let Some(blocks) = self.files.get(&node) {
            for number in blocks.over(range) {
                let block = &blocks.ranges[number];
                outside -= block.end.min(range.end) - block.start.max(range.start);
                if !blocks.used[number].swap(true, Ordering::Relaxed) {
                    self.used_bytes.fetch_add(block.end - block.start, Ordering::Relaxed);
                }
            }
        }
        self.outside_bytes.fetch_add(outside, Ordering::Relaxed);
    }

    /// Whether what is read is something else, so that bringing the rest of the set is no use.
    pub(super) fn is_wrong(&self) -> bool {
        let (used, outside) = (self.used_bytes.load(Ordering::Relaxed), self.outside_bytes.load(Ordering::Relaxed));
        outside >= JUDGED_AFTER_BYTES && used * WRONG_BELOW_ONE_OF < outside
    }

    /// Bytes of blocks that were used, bytes of all, and bytes that were read and are not in the set.
    pub(super) fn usage(&self) -> (u64, u64, u64) {
        let all = self.files.values().flat_map(|blocks| &blocks.ranges).map(|range| range.end - range.start).sum();
        (self.used_bytes.load(Ordering::Relaxed), all, self.outside_bytes.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::package::Hash;
    use crate::package::descriptor::{PageSum, ProfileRef};

    fn known(blocks: &[(u64, Range<u64>)]) -> Known {
        let hash = Hash([0; 32]);
        let index = PageSum { stored: 0, length: 0, hash };
        let profile = ProfileRef { object: hash, bytes: 0, length: 0 };
        let of = LaunchRef { name: "app".to_owned(), object: hash, bytes: 0, index, body: 0, profile };
        let entry = |(node, range): &(u64, Range<u64>)| LaunchEntry::Block {
            node: NodeId(*node),
            offset: range.start,
            length: (range.end - range.start) as u32,
            prefix: [0; 8],
        };
        Known::new(of, blocks.iter().map(entry).collect())
    }

    #[test]
    fn a_block_is_used_once_and_what_is_beside_it_is_outside() {
        let known = known(&[(2, 100..200), (2, 0..100), (3, 50..60)]);
        assert!(known.touches(NodeId(2), &(199..300)) && !known.touches(NodeId(2), &(200..300)));
        assert!(!known.touches(NodeId(4), &(0..1)));
        for _ in 0..2 {
            known.used(NodeId(2), &(90..110));
        }
        assert_eq!(known.usage(), (200, 210, 0));
        known.used(NodeId(3), &(0..100));
        assert_eq!(known.usage(), (210, 210, 90));
        known.used(NodeId(4), &(7..10));
        assert_eq!(known.usage(), (210, 210, 93));
    }

    #[test]
    fn blocks_that_overlap_are_counted_once() {
        let known = known(&[(2, 0..100), (2, 0..100), (2, 10..20), (2, 100..110)]);
        assert_eq!(known.ranges(NodeId(2)).unwrap(), [0..100, 100..110]);
        known.used(NodeId(2), &(50..105));
        assert_eq!(known.usage(), (110, 110, 0));
    }

    #[test]
    fn a_set_is_wrong_when_little_of_what_is_read_is_in_it() {
        let known = known(&[(2, 0..1 << 20)]);
        known.used(NodeId(3), &(0..JUDGED_AFTER_BYTES - 1));
        assert!(!known.is_wrong(), "too early");
        known.used(NodeId(3), &(0..1));
        assert!(known.is_wrong());
        known.used(NodeId(2), &(0..1));
        assert!(known.is_wrong());
        let right = self::known(&[(2, 0..1 << 30)]);
        right.used(NodeId(3), &(0..JUDGED_AFTER_BYTES));
        right.used(NodeId(2), &(0..1));
        assert!(!right.is_wrong());
    }
}
