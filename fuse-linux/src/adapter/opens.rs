//! Which open files the kernel reads by itself.
//!
//! The kernel's rule (`fs/fuse/iomode.c`): while an inode is open for passthrough, every further open of it must be
//! passthrough with the same backing id; while it is open through the page cache, passthrough is refused. Either
//! mistake is an `EIO` for the application. So the first open decides, and the decision holds until the last release.
//! The kernel drops its own state before it sends RELEASE, so what is kept here lasts at least as long as the
//! kernel's: erring on that side only repeats a decision.

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

/// How one open is to be answered.
pub(crate) enum Opening {
    /// Through the page cache and this process.
    Cached,
    /// By the kernel from the file with this id.
    Passthrough(Arc<BackingId>),
}

/// Open inodes and how they are open.
pub(crate) struct Opens {
    enabled: AtomicBool,
    open: Mutex<HashMap<NodeId, OpenInode>>,
}

struct OpenInode {
    backing: Option<Arc<BackingId>>,
    users: u64,
}

impl Opens {
    /// `enabled`: whether passthrough may be tried at all.
    pub(crate) fn new(enabled: bool) -> Self {
        Opens { enabled: AtomicBool::new(enabled), open: Mutex::default() }
    }

    /// Whether opens need answering at all: not when passthrough is out of the question.
    pub(crate) fn enabled(&self) -> bool {
        self.enabled.load(Ordering::Relaxed)
    }

    /// Decides on one more open of `id`. `complete` gives the whole content as a local file, `register` makes it known
    /// to the kernel; neither waits for the network.
    pub(crate) fn open(
        &self,
        id: NodeId,
        complete: impl FnOnce() -> Option<File>,
        register: impl FnOnce(&File) -> io::Result<BackingId>,
    ) -> Opening {
        let mut open = self.open.lock();
        let backing = match open.entry(id) {
            Entry::Occupied(mut held) => {
                held.get_mut().users += 1;
                held.get().backing.clone()
            }
            Entry::Vacant(free) => {
                let backing =
                    if self.enabled() { complete().and_then(|file| self.register(&file, register)) } else { None };
                free.insert(OpenInode { backing: backing.clone(), users: 1 });
                backing
            }
        };
        backing.map_or(Opening::Cached, Opening::Passthrough)
    }

    fn register(&self, file: &File, register: impl FnOnce(&File) -> io::Result<BackingId>) -> Option<Arc<BackingId>> {
        match register(file) {
            Ok(id) => Some(Arc::new(id)),
            Err(error) => {
                // EPERM (no CAP_SYS_ADMIN) and ELOOP (the cache lies on a stacked file system) will not change.
                self.enabled.store(false, Ordering::Relaxed);
                tracing::info!("the kernel refuses passthrough ({error}); files are read through this process");
                None
            }
        }
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
