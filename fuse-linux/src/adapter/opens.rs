//! Which open files the kernel reads by itself.
//!
//! The kernel's rule (`fs/fuse/iomode.c`): while an inode is open for passthrough, every further open of it must be
//! passthrough with the same backing id; while it is open through the page cache, passthrough is refused. Either
//! mistake is an `EIO` for the application. So the first open decides, and the decision holds until the last release.
//! The kernel drops its own state before it sends RELEASE, so what is kept here lasts at least as long as the
//! kernel's: erring on that side only repeats a decision.
//!
//! For the same reason this is where it is known that a file can have no outstanding READ: nobody has it open. What
//! is pushed into its page cache is pushed then, before the first open of it is answered ([`super::pushing`]).

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fs_core::package::NodeId;
use fuser::BackingId;
use parking_lot::Mutex;

/// How opening a file is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OpenPolicy {
    /// The first open is answered "not implemented", after which the kernel opens files without asking.
    #[default]
    ZeroMessage,
    /// Each open is answered, so that large files which are complete in the cache can be read by the kernel without
    /// this process. Needs CAP_SYS_ADMIN; where the kernel refuses it, this becomes [`OpenPolicy::ZeroMessage`].
    Passthrough,
}

impl OpenPolicy {
    /// What suits this process: passthrough where it is permitted (docs/decisions/005-open-policy.md has the numbers).
    pub fn permitted() -> Self {
        if crate::mounting::may_mount() { OpenPolicy::Passthrough } else { OpenPolicy::ZeroMessage }
    }
}

/// How one open is to be answered. `W` is what waits for the answer.
pub(crate) enum Opening<W> {
    /// Through the page cache and this process.
    Cached(W),
    /// The same, after something was pushed into the page cache and [`Opens::pushed`] was called.
    PushFirst(W),
    /// When [`Opens::pushed`] gives it back.
    Kept,
    /// By the kernel from the file with this id.
    Passthrough(W, Arc<BackingId>),
}

/// Open inodes and how they are open.
pub(crate) struct Opens<W> {
    passthrough: AtomicBool,
    open: Mutex<HashMap<NodeId, OpenInode<W>>>,
}

struct OpenInode<W> {
    backing: Option<Arc<BackingId>>,
    users: u64,
    /// Opens that are answered when what is being pushed is in the page cache.
    waiting: Option<Vec<W>>,
}

impl<W> Opens<W> {
    /// `passthrough`: whether it may be tried at all.
    pub(crate) fn new(passthrough: bool) -> Self {
        Opens { passthrough: AtomicBool::new(passthrough), open: Mutex::default() }
    }

    /// Whether passthrough is tried.
    pub(crate) fn passthrough(&self) -> bool {
        self.passthrough.load(Ordering::Relaxed)
    }

    /// Gives passthrough up.
    pub(crate) fn refuse_passthrough(&self) {
        self.passthrough.store(false, Ordering::Relaxed);
    }

    /// Decides on one more open of `id`. `complete` gives the whole content as a local file, `register` makes it known
    /// to the kernel, `push` tells whether something is to be pushed; none waits for the network.
    pub(crate) fn open(
        &self,
        id: NodeId,
        waiter: W,
        complete: impl FnOnce() -> Option<File>,
        register: impl FnOnce(&W, &File) -> io::Result<BackingId>,
        push: impl FnOnce() -> bool,
    ) -> Opening<W> {
        let mut open = self.open.lock();
        match open.entry(id) {
            Entry::Occupied(mut held) => {
                let held = held.get_mut();
                held.users += 1;
                match (&held.backing, &mut held.waiting) {
                    (Some(backing), _) => Opening::Passthrough(waiter, backing.clone()),
                    (None, Some(waiting)) => {
                        waiting.push(waiter);
                        Opening::Kept
                    }
                    (None, None) => Opening::Cached(waiter),
                }
            }
            Entry::Vacant(free) => {
                let file = if self.passthrough() { complete() } else { None };
                let backing = file.and_then(|file| self.register(&file, |file| register(&waiter, file)));
                let waiting = (backing.is_none() && push()).then(Vec::new);
                let opening = match (&backing, &waiting) {
                    (Some(backing), _) => Opening::Passthrough(waiter, backing.clone()),
                    (None, Some(_)) => Opening::PushFirst(waiter),
                    (None, None) => Opening::Cached(waiter),
                };
                free.insert(OpenInode { backing, users: 1, waiting });
                opening
            }
        }
    }

    fn register(&self, file: &File, register: impl FnOnce(&File) -> io::Result<BackingId>) -> Option<Arc<BackingId>> {
        match register(file) {
            Ok(id) => Some(Arc::new(id)),
            Err(error) => {
                // EPERM (no CAP_SYS_ADMIN) and ELOOP (the cache lies on a stacked file system) will not change.
                self.refuse_passthrough();
                tracing::info!("the kernel refuses passthrough ({error}); files are read through this process");
                None
            }
        }
    }

    /// What was to be pushed is where it belongs: the opens that waited for that, to be answered now.
    pub(crate) fn pushed(&self, id: NodeId) -> Vec<W> {
        self.open.lock().get_mut(&id).and_then(|held| held.waiting.take()).unwrap_or_default()
    }

    /// Whether nothing is being pushed. From then on, if `push` says no to everything, opens may go without messages.
    pub(crate) fn is_quiet(&self) -> bool {
        self.open.lock().values().all(|held| held.waiting.is_none())
    }

    /// One user of `id` less; the last one releases the backing file.
    pub(crate) fn release(&self, id: NodeId) {
        let mut open = self.open.lock();
        if let Entry::Occupied(mut held) = open.entry(id) {
            held.get_mut().users -= 1;
            if held.get().users == 0 {
                held.remove();
            }
        }
    }

    #[cfg(test)]
    pub(crate) fn open_inodes(&self) -> usize {
        self.open.lock().len()
    }
}
