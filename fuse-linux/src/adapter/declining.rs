//! Refusing what the kernel reads ahead where that would hold up a launch.
//!
//! A fault on one page makes the kernel ask for up to 128 KiB around it, in one READ that must be answered whole: a
//! short answer means the end of the file. If the page is here, but its neighbours must be fetched, the application
//! waits a round trip for bytes that the launch does not need, or for a piece of the launch set that comes much later.
//!
//! The kernel takes an error for a read-ahead as "not now": the pages stay in the page cache without content, and
//! whoever needs one of them makes it ask again, for that page alone, which is the answer that the application gets
//! (`mm/filemap.c`: `filemap_fault` and `filemap_update_page` call `read_folio` for a page that is not up to date).
//! So a READ of several pages may be refused, but no page twice: a range of which anything was refused before is
//! answered in whatever way it comes again, so no error ever reaches an application. Direct reads have no pages and
//! nobody who asks again: they are never refused.

use std::collections::HashMap;
use std::ops::Range;

use fs_core::package::NodeId;
use parking_lot::Mutex;

/// Unit of the page cache.
const PAGE_BYTES: u64 = 4096;

/// Which reads are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Declining {
    /// None.
    #[default]
    Nothing,
    /// Those that reach beyond one piece of the launch set and would have to wait.
    BesideLaunchSet,
    /// All of more than one page: then exactly the pages that are used are read. For recording a launch.
    EverythingAhead,
}

/// What was refused.
#[derive(Debug, Default)]
pub(crate) struct Declined(Mutex<HashMap<NodeId, Vec<Range<u64>>>>);

impl Declined {
    /// Whether `range` of `id` is to be answered because any of it was refused before; else notes that it is refused
    /// now.
    pub(crate) fn is_repeated(&self, id: NodeId, range: &Range<u64>) -> bool {
        let mut declined = self.0.lock();
        let of_file = declined.entry(id).or_default();
        let at = of_file.partition_point(|known| known.end <= range.start);
        if of_file.get(at).is_some_and(|known| known.start < range.end) {
            return true;
        }
        // Neighbours become one, so a file that is read through takes one entry.
        match at.checked_sub(1).map(|before| &mut of_file[before]) {
            Some(before) if before.end == range.start => before.end = range.end,
            _ => of_file.insert(at, range.clone()),
        }
        false
    }

    /// Forgets everything: nothing will be refused any more.
    pub(crate) fn clear(&self) {
        *self.0.lock() = HashMap::new();
    }
}

/// Whether `range` is of several pages.
pub(crate) fn is_ahead(range: &Range<u64>) -> bool {
    range.end - range.start > PAGE_BYTES
}

/// Whether `range` of a file of `size` bytes, of which the launch reads `pieces` (in order), reaches beyond one of them:
/// into bytes that the launch does not need, or into a piece that comes at another time. Of files of which the launch
/// reads nothing, nothing is known.
pub(crate) fn is_beside(range: &Range<u64>, pieces: &[Range<u64>], size: u64) -> bool {
    // The kernel asks for whole pages, also at the end.
    let end = range.end.min(size);
    let first = pieces.partition_point(|piece| piece.end <= range.start);
    match pieces.get(first) {
        Some(piece) if piece.start < end => range.start < piece.start || piece.end < end,
        _ => !pieces.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_page_is_refused_twice() {
        let declined = Declined::default();
        let (a, b) = (NodeId(1), NodeId(2));
        assert!(!declined.is_repeated(a, &(8192..16384)));
        assert!(declined.is_repeated(a, &(8192..16384)));
        assert!(declined.is_repeated(a, &(12288..32768)), "one of its pages was refused");
        assert!(!declined.is_repeated(a, &(16384..32768)));
        assert!(declined.is_repeated(a, &(28672..40960)));
        assert!(!declined.is_repeated(a, &(0..8192)));
        assert!(declined.is_repeated(a, &(4096..12288)));
        assert!(!declined.is_repeated(b, &(8192..16384)));
        declined.clear();
        assert!(!declined.is_repeated(a, &(0..16384)));
    }

    #[test]
    fn one_piece_is_waited_for_and_two_are_not() {
        let pieces = [4096..8192, 8192..20_000, 20_480..24_600];
        let beside = |range: Range<u64>| is_beside(&range, &pieces, 24_600);
        assert!(!beside(4096..8192) && !beside(8192..16384));
        assert!(beside(4096..16384), "two pieces");
        assert!(beside(0..8192), "something before it");
        assert!(beside(8192..20_480), "something after it");
        assert!(beside(0..4096), "nothing of the launch");
        assert!(!beside(20_480..28_672), "the end of the file");
        assert!(!is_beside(&(0..65_536), &[], 65_536));
    }
}
