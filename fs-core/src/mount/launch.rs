//! What a mount knows of the launch set that is being streamed, and who wants its blocks as they come.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use parking_lot::RwLock;

use super::Mount;
use crate::package::NodeId;

/// Somebody who wants the blocks of the launch set as they come, verified: an adapter that hands them to the system
/// before anybody reads them. Called from the stream's own thread, which it may hold up only briefly.
pub trait Arrivals: Send + Sync {
    /// `block` stands at `offset` of the file `node`.
    fn arrived(&self, node: NodeId, offset: u64, block: &Bytes);
}

/// Launch sets of one mount.
#[derive(Default)]
pub(super) struct LaunchState {
    /// Blocks of the launch set by file, in order of position.
    pieces: RwLock<HashMap<NodeId, Vec<Range<u64>>>>,
    receivers: RwLock<Vec<Weak<dyn Arrivals>>>,
}

impl std::fmt::Debug for LaunchState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LaunchState").field("files", &self.pieces.read().len()).finish_non_exhaustive()
    }
}

impl Mount {
    /// Gives `receiver` the blocks of the launch set that come from now on, for as long as it lives.
    pub fn send_arrivals_to(&self, receiver: &Arc<dyn Arrivals>) {
        let mut receivers = self.launch.receivers.write();
        receivers.retain(|known| known.strong_count() > 0);
        receivers.push(Arc::downgrade(receiver));
    }

    /// Parts of the file `node` that starting the application reads, by position; empty if none is known.
    pub fn launch_pieces(&self, node: NodeId) -> Vec<Range<u64>> {
        self.launch.pieces.read().get(&node).cloned().unwrap_or_default()
    }

    /// Adds to what is known of the launch from elsewhere than the version itself, such as a recording made on this
    /// machine.
    pub fn learn_launch_pieces(&self, learned: impl IntoIterator<Item = (NodeId, Range<u64>)>) {
        let mut pieces = self.launch.pieces.write();
        for (node, piece) in learned {
            let of_file = pieces.entry(node).or_default();
            let at = of_file.partition_point(|known| known.start < piece.start);
            of_file.insert(at, piece);
        }
    }

    /// Whether a launch set is known: then what is read ahead of the application is known better than by guessing.
    pub fn has_launch_set(&self) -> bool {
        !self.descriptor.launch.is_empty() || !self.launch.pieces.read().is_empty()
    }
}
