//! One pinned version as a file tree: look up, list, read.
//!
//! Every method answers with an [`Answer`]: either at once, when everything needed is on this machine, or with a
//! future that fetches what is missing. An adapter replies inline to the first and spawns the second, so that no
//! callback of a file system ever waits on the network.

pub mod host;

use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;

use crate::error::Result;
use crate::package::{NodeId, NodeKind};

/// An answer that is here, or one that must be waited for.
pub enum Answer<T> {
    /// Answered from this machine.
    Ready(Result<T>),
    /// Something must be fetched first.
    Later(BoxFuture<'static, Result<T>>),
}

impl<T> Answer<T> {
    /// Waits for the answer, whichever it is.
    pub async fn wait(self) -> Result<T> {
        match self {
            Answer::Ready(r) => r,
            Answer::Later(f) => f.await,
        }
    }
}

/// Attributes of one node. There is no owner: an adapter presents the files as the mounting user's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Index of the node in the pinned tree, from 1 (the root). Stable for the version: usable as inode number.
    pub id: NodeId,
    /// File, directory or symbolic link.
    pub kind: NodeKind,
    /// Size in bytes: of the content, of the link's target; 0 for directories.
    pub size_bytes: u64,
    /// Bytes that are not holes.
    pub allocated_bytes: u64,
    /// Permission bits, 0o7777 at most.
    pub mode: u16,
    /// Modification time: seconds since 1970 and nanoseconds (0..1e9).
    pub mtime: (i64, u32),
    /// Names of this node in the tree (directories: 2 + subdirectories).
    pub links: u32,
    /// Whether it has published extended attributes.
    pub has_xattrs: bool,
}

/// One entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    /// Any bytes but `/` and NUL; 1 to 255 of them.
    pub name: Bytes,
    /// Attributes of the named node.
    pub node: Node,
    /// Pass this to `read_dir` to continue after this entry; at least 1, grows.
    pub next_cursor: u64,
}

/// Totals of a version, for `statfs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Totals {
    /// Nodes in the tree.
    pub nodes: u64,
    /// Sum of the files' allocated bytes.
    pub bytes: u64,
}

/// One pinned version. Cheap to clone through `Arc`; methods that may fetch take `&Arc<Self>`.
pub struct Mount {
    _private: (),
}

impl Mount {
    /// Looks `name` up in the directory `parent`; `None` if it is not there.
    pub fn lookup(self: &Arc<Self>, parent: NodeId, name: &[u8]) -> Answer<Option<Node>> {
        let _ = (parent, name);
        todo!()
    }

    /// Attributes of a node.
    pub fn node(self: &Arc<Self>, id: NodeId) -> Answer<Node> {
        let _ = id;
        todo!()
    }

    /// Lists up to `max` entries of `dir` from `cursor` (0: the beginning), without `.` and `..`. An empty list is
    /// the end. The order is the version's own and the same at every call.
    pub fn read_dir(self: &Arc<Self>, dir: NodeId, cursor: u64, max: usize) -> Answer<Vec<DirEntry>> {
        let _ = (dir, cursor, max);
        todo!()
    }

    /// The directory that holds `dir` (the root's is the root).
    pub fn parent(self: &Arc<Self>, dir: NodeId) -> Answer<NodeId> {
        let _ = dir;
        todo!()
    }

    /// Target of a symbolic link.
    pub fn read_link(self: &Arc<Self>, id: NodeId) -> Answer<Bytes> {
        let _ = id;
        todo!()
    }

    /// Published extended attributes as (name, value), sorted by name.
    pub fn xattrs(self: &Arc<Self>, id: NodeId) -> Answer<Vec<(Bytes, Bytes)>> {
        let _ = id;
        todo!()
    }

    /// Reads up to `length` bytes of the file `id` from `offset`: exactly as many as there are before its end.
    pub fn read(self: &Arc<Self>, id: NodeId, offset: u64, length: usize) -> Answer<Bytes> {
        let _ = (id, offset, length);
        todo!()
    }

    /// First byte at or after `offset` that is data (`data`) or a hole (`!data`); `None` past the end.
    pub fn seek(self: &Arc<Self>, id: NodeId, offset: u64, data: bool) -> Answer<Option<u64>> {
        let _ = (id, offset, data);
        todo!()
    }

    /// Bytes of the file's content on this machine.
    pub fn cached_bytes(self: &Arc<Self>, id: NodeId) -> Answer<u64> {
        let _ = id;
        todo!()
    }

    /// The local file that holds the whole verified content of `id`, if there is one: an adapter may let the
    /// kernel read it directly. `None` if any byte is missing or was not verified since the agent started.
    pub fn complete_file(self: &Arc<Self>, id: NodeId) -> Option<std::fs::File> {
        let _ = id;
        todo!()
    }

    /// Totals of the version.
    pub fn totals(&self) -> Totals {
        todo!()
    }

    /// Package location, version, descriptor hash (hex) and origin, as shown by a mount's own attributes.
    pub fn identity(&self) -> &Identity {
        todo!()
    }
}

/// What a mount shows, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Package name.
    pub package: String,
    /// Pinned version.
    pub version: String,
    /// SHA-256 of the descriptor, hex.
    pub descriptor: String,
    /// Content root, without credentials.
    pub origin: String,
}
