//! Handing the kernel what an application will read before it asks.
//!
//! Bytes of the launch set that are on this machine go into the page cache while the OPEN of their file waits for its
//! answer (`FUSE_NOTIFY_STORE`). After that neither `read` nor a page fault there sends a message, and the kernel's
//! read-ahead, which cannot know what a launch needs, has nothing to guess.
//!
//! # Why this cannot hang
//! Storing into a page that is locked for an outstanding READ blocks, uninterruptibly, until that READ is answered;
//! all the while unmounting waits too, and if this process were killed just then, its thread could not end, the
//! connection would not be closed, and everybody would wait for ever. So nothing is stored while a READ of the file
//! can be outstanding: every READ belongs to an open file, and a file is pushed only between the OPEN of its first
//! user and the answer to it. Whoever else opens it meanwhile is answered after that as well ([`super::opens`]). What
//! else locks a page (reclaiming it, say) waits for nothing that this process does.
//!
//! That needs an OPEN for every open: zero-message opens begin when the launch is over, and then nothing is pushed
//! any more.
//!
//! # What is never stored
//! Anything beyond the end of a file, which would make it longer; parts of pages, except the last of a file, which the
//! kernel would not take for valid; files that the kernel reads by passthrough.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use fs_core::mount::Answer;
use fs_core::package::NodeId;
use fuser::{INodeNo, Notifier};
use parking_lot::Mutex;

use crate::tree::Tree;

/// Unit of the page cache.
const PAGE_BYTES: u64 = 4096;

/// Bytes that go to the kernel by one message, unless a single piece is longer: what is read from the cache at a time.
const MESSAGE_MAX_BYTES: u64 = 1 << 20;

/// Linux before this left what follows the end of a file in its last page as it was, for `mmap` to show.
const ZEROES_LAST_PAGE_SINCE: (u32, u32) = (6, 15);

/// What is pushed, and what was.
pub(crate) struct Pushing {
    active: AtomicBool,
    /// Of one file.
    max_bytes: u64,
    notifier: OnceLock<Notifier>,
    /// Beginnings of the pieces that the kernel was given since it learned of the inode.
    given: Mutex<HashMap<NodeId, HashSet<u64>>>,
    last_page: bool,
    stored_bytes: AtomicU64,
    messages: AtomicU64,
}

impl Pushing {
    /// `active`: whether the version has a launch set. Of a file of which more than `max_bytes` are in it, nothing is
    /// pushed.
    pub(crate) fn new(active: bool, max_bytes: u64) -> Self {
        Pushing {
            active: AtomicBool::new(active),
            max_bytes,
            notifier: OnceLock::new(),
            given: Mutex::default(),
            last_page: kernel_release().is_some_and(|release| release >= ZEROES_LAST_PAGE_SINCE),
            stored_bytes: AtomicU64::new(0),
            messages: AtomicU64::new(0),
        }
    }

    /// Over this the kernel is told. Nothing is pushed before it is known.
    pub(crate) fn send_by(&self, notifier: Notifier) {
        // Set once, when the session is made.
        let _ = self.notifier.set(notifier);
    }

    /// Whether there is a launch set and the launch is not over.
    pub(crate) fn is_launching(&self) -> bool {
        self.active.load(Ordering::Relaxed)
    }

    /// Whether opens must be messages, so that something can be pushed before they are answered.
    pub(crate) fn needs_opens(&self) -> bool {
        self.max_bytes > 0 && self.is_launching()
    }

    /// The launch is over; false if it was before.
    pub(crate) fn end(&self) -> bool {
        self.given.lock().clear();
        self.active.swap(false, Ordering::Relaxed)
    }

    /// Bytes stored, and in how many messages.
    pub(crate) fn totals(&self) -> (u64, u64) {
        (self.stored_bytes.load(Ordering::Relaxed), self.messages.load(Ordering::Relaxed))
    }

    /// Parts of `id` that the launch reads and the kernel was not given yet.
    pub(crate) fn due<T: Tree>(&self, tree: &Arc<T>, id: NodeId) -> Vec<Range<u64>> {
        if !self.needs_opens() || self.notifier.get().is_none() {
            return Vec::new();
        }
        let mut pieces = tree.launch_pieces(id);
        if pieces.iter().map(|piece| piece.end - piece.start).sum::<u64>() > self.max_bytes {
            return Vec::new();
        }
        if let Some(given) = self.given.lock().get(&id) {
            pieces.retain(|piece| !given.contains(&piece.start));
        }
        pieces
    }

    /// The kernel dropped the inode, and its pages with it.
    pub(crate) fn forgotten(&self, id: NodeId) {
        if self.needs_opens() {
            self.given.lock().remove(&id);
        }
    }

    /// Whether the kernel has `range` of `id` now.
    fn store<T: Tree>(&self, notifier: &Notifier, tree: &Arc<T>, id: NodeId, range: &Range<u64>) -> bool {
        let Some(bytes) = tree.peek(id, range.clone()).filter(|b| b.len() as u64 == range.end - range.start) else {
            return false;
        };
        if let Err(error) = notifier.store(INodeNo(id.0), range.start, &bytes) {
            // Out of memory, or the mount is gone. The kernel asks for what it does not have.
            tracing::debug!("the kernel did not take bytes of node {} in advance: {error}", id.0);
            return false;
        }
        self.stored_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.messages.fetch_add(1, Ordering::Relaxed);
        true
    }

    /// Gives the kernel what is on this machine of the parts `due` of the file `id`, which nobody has open.
    pub(crate) fn push<T: Tree>(&self, tree: &Arc<T>, id: NodeId, due: &[Range<u64>]) {
        let Some(notifier) = self.notifier.get() else { return };
        // It was looked up just now, so this is here; if not, the reads will do.
        let Answer::Ready(Ok(node)) = tree.node(id) else { return };
        let mut given = Vec::new();
        for part in messages(due, node.size_bytes, self.last_page) {
            if self.store(notifier, tree, id, &part.bytes) {
                given.extend(part.pieces.iter().map(|piece| piece.start));
                continue;
            }
            // Something of it is not here yet: each piece by itself.
            for (at, piece) in part.pieces.iter().enumerate() {
                let alone = messages(&part.pieces[at..=at], node.size_bytes, self.last_page);
                if alone.iter().all(|part| self.store(notifier, tree, id, &part.bytes)) {
                    given.push(piece.start);
                }
            }
        }
        self.given.lock().entry(id).or_default().extend(given);
    }
}

/// What one message gives the kernel.
#[derive(Debug, PartialEq, Eq)]
struct Message<'a> {
    bytes: Range<u64>,
    /// The pieces that are in it.
    pieces: &'a [Range<u64>],
}

/// Joins pieces, which are in order, as far as a message goes, and cuts them down to whole pages of a file of `size`
/// bytes; with `last_page` also to the part of a page at its end.
fn messages(pieces: &[Range<u64>], size: u64, last_page: bool) -> Vec<Message<'_>> {
    let mut messages = Vec::new();
    let mut from = 0;
    while from < pieces.len() {
        let start = pieces[from].start;
        let mut end = pieces[from].end;
        let mut to = from + 1;
        while to < pieces.len() && pieces[to].start <= end && pieces[to].end.saturating_sub(start) <= MESSAGE_MAX_BYTES
        {
            end = end.max(pieces[to].end);
            to += 1;
        }
        // Where two messages meet within a page, that page is in neither: it is read when it is needed.
        let start = start.next_multiple_of(PAGE_BYTES);
        let end = if end >= size && last_page { size } else { end.min(size) / PAGE_BYTES * PAGE_BYTES };
        if start < end {
            messages.push(Message { bytes: start..end, pieces: &pieces[from..to] });
        }
        from = to;
    }
    messages
}

/// Version and patch level of the running kernel.
fn kernel_release() -> Option<(u32, u32)> {
    let names = rustix::system::uname();
    let mut numbers = names.release().to_str().ok()?.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(pieces: &[Range<u64>], size: u64, last_page: bool) -> Vec<Range<u64>> {
        messages(pieces, size, last_page).into_iter().map(|message| message.bytes).collect()
    }

    fn of_one(piece: Range<u64>, size: u64, last_page: bool) -> Option<Range<u64>> {
        let all = bytes(std::slice::from_ref(&piece), size, last_page);
        assert!(all.len() < 2);
        all.into_iter().next()
    }

    #[test]
    fn neighbours_go_together_as_whole_pages() {
        let pieces = [0..4096, 4096..8192, 16384..20000, 20000..24576];
        assert_eq!(bytes(&pieces, 1 << 20, true), [0..8192, 16384..24576]);
        assert_eq!(messages(&pieces, 1 << 20, true)[1].pieces, &pieces[2..]);
        assert_eq!(of_one(100..5000, 1 << 20, true), None);
        assert_eq!(of_one(100..9000, 1 << 20, true), Some(4096..8192));
    }

    #[test]
    fn only_the_end_of_a_file_is_a_part_of_a_page() {
        assert_eq!(of_one(0..10, 10, true), Some(0..10));
        assert_eq!(of_one(0..10, 10, false), None);
        assert_eq!(of_one(0..5000, 5000, false), Some(0..4096));
        assert_eq!(of_one(4096..99_999, 5000, true), Some(4096..5000), "never beyond the end");
        assert_eq!(of_one(8192..9000, 5000, true), None);
    }

    #[test]
    fn a_message_has_its_limit() {
        let blocks: Vec<_> = (0..10).map(|i| i * 262_144..(i + 1) * 262_144).collect();
        assert_eq!(bytes(&blocks, 10 << 18, true), [0..1 << 20, 1 << 20..2 << 20, 2 << 20..10 << 18]);
    }

    #[test]
    fn the_kernels_release_is_understood() {
        assert!(kernel_release().is_some_and(|release| release > (2, 6)));
    }
}
