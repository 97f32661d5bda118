//! Listing a directory, with attributes or without.
//!
//! Offsets are the core's cursors shifted by two: 1 is after `.`, 2 after `..`, cursor + 2 after an entry. They depend
//! on the version alone, so a listing can be continued at any time and by another process.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use fs_core::mount::{Answer, DirEntry};
use fs_core::package::NodeId;
use fs_core::{Error, Result};
use fuser::{Generation, INodeNo, ReplyDirectory, ReplyDirectoryPlus};
use futures::future::BoxFuture;

use super::attributes::{Owner, directory_stub, file_attr, file_type};
use super::{FOR_EVER, Shared};
use crate::tree::Tree;

/// Entries asked of the core at a time. A reply of one page holds 24 entries with attributes (168 bytes and more
/// each) and about 100 without, so this wastes little in the first case and repeats little in the second.
const BATCH: usize = 32;

/// Offset after `.` and `..`.
const AFTER_DOTS: u64 = 2;

/// A reply that directory entries are added to.
pub(crate) trait ListReply: Send + 'static {
    /// Adds `.` or `..`; true if there was no room.
    fn add_dot(&mut self, id: NodeId, next: u64, name: &str, owner: Owner) -> bool;
    /// Adds an entry; true if there was no room.
    fn add(&mut self, entry: &DirEntry, next: u64, owner: Owner) -> bool;
    fn ok(self);
    fn error(self, errno: fuser::Errno);
}

impl ListReply for ReplyDirectory {
    fn add_dot(&mut self, id: NodeId, next: u64, name: &str, _: Owner) -> bool {
        ReplyDirectory::add(self, INodeNo(id.0), next, fuser::FileType::Directory, name)
    }

    fn add(&mut self, entry: &DirEntry, next: u64, _: Owner) -> bool {
        let kind = file_type(entry.node.kind);
        ReplyDirectory::add(self, INodeNo(entry.node.id.0), next, kind, OsStr::from_bytes(&entry.name))
    }

    fn ok(self) {
        ReplyDirectory::ok(self);
    }

    fn error(self, errno: fuser::Errno) {
        ReplyDirectory::error(self, errno);
    }
}

impl ListReply for ReplyDirectoryPlus {
    // The kernel takes only number and type from these two: a stub saves reading the nodes.
    fn add_dot(&mut self, id: NodeId, next: u64, name: &str, owner: Owner) -> bool {
        let attr = directory_stub(id, owner);
        ReplyDirectoryPlus::add(self, attr.ino, next, name, &FOR_EVER, &attr, Generation(0))
    }

    fn add(&mut self, entry: &DirEntry, next: u64, owner: Owner) -> bool {
        let attr = file_attr(&entry.node, owner);
        let name = OsStr::from_bytes(&entry.name);
        ReplyDirectoryPlus::add(self, attr.ino, next, name, &FOR_EVER, &attr, Generation(0))
    }

    fn ok(self) {
        ReplyDirectoryPlus::ok(self);
    }

    fn error(self, errno: fuser::Errno) {
        ReplyDirectoryPlus::error(self, errno);
    }
}

/// A listing under way.
pub(crate) struct Listing<T: Tree, R: ListReply> {
    shared: Arc<Shared<T>>,
    dir: NodeId,
    /// Where the next entry is read from, in the kernel's terms.
    offset: u64,
    any: bool,
    reply: R,
}

/// What the core is asked next.
enum Next<T: Tree, R: ListReply> {
    Replied,
    Parent(Listing<T, R>, Answer<NodeId>),
    Entries(Listing<T, R>, Answer<Vec<DirEntry>>),
}

/// Where a listing stands once local answers are used up.
pub(crate) enum Outcome {
    Replied,
    /// The rest must wait for something to be fetched, and replies when polled to its end.
    Waiting(BoxFuture<'static, ()>),
}

impl<T: Tree, R: ListReply> Listing<T, R> {
    pub(crate) fn new(shared: Arc<Shared<T>>, dir: NodeId, offset: u64, reply: R) -> Self {
        Listing { shared, dir, offset, any: false, reply }
    }

    /// Lists from what is on this machine as far as that goes.
    pub(crate) fn run(self) -> Outcome {
        let mut next = self.ask();
        loop {
            next = match next {
                Next::Replied => return Outcome::Replied,
                Next::Parent(listing, Answer::Ready(parent)) => listing.with_parent(parent),
                Next::Entries(listing, Answer::Ready(entries)) => listing.with_entries(entries),
                waiting => return Outcome::Waiting(Box::pin(waiting.finish())),
            };
        }
    }

    fn ask(self) -> Next<T, R> {
        if self.offset < AFTER_DOTS {
            let answer = self.shared.tree.parent(self.dir);
            Next::Parent(self, answer)
        } else {
            let answer = self.shared.tree.read_dir(self.dir, self.offset - AFTER_DOTS, BATCH);
            Next::Entries(self, answer)
        }
    }

    fn with_parent(mut self, parent: Result<NodeId>) -> Next<T, R> {
        let parent = match parent {
            Ok(parent) => parent,
            Err(error) => return self.fail(&error),
        };
        for (next, id, name) in [(1, self.dir, "."), (AFTER_DOTS, parent, "..")] {
            if self.offset < next {
                if self.reply.add_dot(id, next, name, self.shared.owner) {
                    self.reply.ok();
                    return Next::Replied;
                }
                self.any = true;
                self.offset = next;
            }
        }
        self.ask()
    }

    fn with_entries(mut self, entries: Result<Vec<DirEntry>>) -> Next<T, R> {
        let entries = match entries {
            Ok(entries) => entries,
            Err(error) => return self.fail(&error),
        };
        let mut full = entries.is_empty();
        for entry in &entries {
            let next = entry.next_cursor.saturating_add(AFTER_DOTS);
            if self.reply.add(entry, next, self.shared.owner) {
                full = true;
                break;
            }
            self.any = true;
            self.offset = next;
        }
        if full {
            self.reply.ok();
            return Next::Replied;
        }
        self.ask()
    }

    /// An error after some entries is left to the next call, as `getdents` does.
    fn fail(self, error: &Error) -> Next<T, R> {
        if self.any {
            self.reply.ok();
        } else {
            self.reply.error(self.shared.failed("readdir", self.dir.0, error));
        }
        Next::Replied
    }
}

impl<T: Tree, R: ListReply> Next<T, R> {
    async fn finish(mut self) {
        loop {
            self = match self {
                Next::Replied => return,
                Next::Parent(listing, answer) => listing.with_parent(answer.wait().await),
                Next::Entries(listing, answer) => listing.with_entries(answer.wait().await),
            };
        }
    }
}
