//! Watching what is asked of a mount, and what it waited for.
//!
//! Recordings of launches, learned launch sets, metrics and reports are all made from the same stream of
//! [`Observed`] events. A mount that nobody watches pays one load of an atomic for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::RwLock;

use crate::fetch::Source;
use crate::package::NodeId;

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// A name was looked up in a directory.
    Lookup {
        /// The directory.
        parent: NodeId,
        /// The name.
        name: Bytes,
        /// What it names; `None` if nothing.
        found: Option<NodeId>,
    },
    /// A part of a directory was listed.
    List {
        /// The directory.
        dir: NodeId,
        /// Names and nodes of this part.
        entries: Vec<(Bytes, NodeId)>,
    },
    /// The target of a symbolic link was read.
    ReadLink {
        /// The link.
        node: NodeId,
    },
    /// Extended attributes were read.
    Xattrs {
        /// Whose.
        node: NodeId,
    },
    /// Content was read.
    Read {
        /// The file.
        node: NodeId,
        /// From where, bytes.
        offset: u64,
        /// How many bytes; no further than the file's end.
        length: u64,
    },
}

/// What an answer waited for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Waits {
    /// For pages of the tree.
    pub pages: Duration,
    /// For blocks of content.
    pub blocks: Duration,
    /// The farthest that anything it waited for came from; `None` if all was at hand.
    pub farthest: Option<Source>,
}

impl Waits {
    pub(super) fn came_from(&mut self, source: Source) {
        self.farthest = self.farthest.max(Some(source));
    }
}

/// One question that was answered.
#[derive(Debug, Clone)]
pub struct Observed {
    /// When it was asked.
    pub at: Instant,
    /// What was asked.
    pub operation: Operation,
    /// What it waited for.
    pub waits: Waits,
    /// Whether it was answered with what was asked for, rather than an error.
    pub succeeded: bool,
}

/// Somebody who watches a mount. Called from whatever thread answers: it must be quick and must not wait.
pub trait Observer: Send + Sync {
    /// A question was answered.
    fn observed(&self, event: &Observed);
}

/// Who watches one mount.
#[derive(Default)]
pub(super) struct Observers {
    any: AtomicBool,
    all: RwLock<Vec<Arc<dyn Observer>>>,
}

impl std::fmt::Debug for Observers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Observers").field("count", &self.all.read().len()).finish()
    }
}

impl Observers {
    pub(super) fn add(&self, observer: Arc<dyn Observer>) {
        let mut all = self.all.write();
        all.push(observer);
        self.any.store(true, Ordering::Release);
    }

    pub(super) fn remove(&self, observer: &Arc<dyn Observer>) {
        let mut all = self.all.write();
        all.retain(|known| !Arc::ptr_eq(known, observer));
        self.any.store(!all.is_empty(), Ordering::Release);
    }

    pub(super) fn any(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }

    pub(super) fn tell(&self, event: &Observed) {
        self.all.read().iter().for_each(|observer| observer.observed(event));
    }
}
