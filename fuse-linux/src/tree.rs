//! What the adapter asks of a version. One implementation is the core's [`Mount`]; the other is a tree in memory with
//! which the tests drive the adapter through a real kernel.

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use fs_core::mount::{Answer, DirEntry, Identity, Mount, Node, Totals};
use fs_core::package::NodeId;
use futures::future::BoxFuture;

/// The methods of [`Mount`] that the adapter uses, with the same meanings.
pub(crate) trait Tree: Send + Sync + 'static {
    fn lookup(self: &Arc<Self>, parent: NodeId, name: &[u8]) -> Answer<Option<Node>>;
    fn node(self: &Arc<Self>, id: NodeId) -> Answer<Node>;
    fn read_dir(self: &Arc<Self>, dir: NodeId, cursor: u64, max: usize) -> Answer<Vec<DirEntry>>;
    fn parent(self: &Arc<Self>, dir: NodeId) -> Answer<NodeId>;
    fn read_link(self: &Arc<Self>, id: NodeId) -> Answer<Bytes>;
    fn xattrs(self: &Arc<Self>, id: NodeId) -> Answer<Vec<(Bytes, Bytes)>>;
    fn read(self: &Arc<Self>, id: NodeId, offset: u64, length: usize) -> Answer<Bytes>;
    fn seek(self: &Arc<Self>, id: NodeId, offset: u64, data: bool) -> Answer<Option<u64>>;
    fn cached_bytes(self: &Arc<Self>, id: NodeId) -> Answer<u64>;
    fn complete_file(self: &Arc<Self>, id: NodeId) -> Option<File>;
    fn peek(self: &Arc<Self>, id: NodeId, range: Range<u64>) -> Option<Bytes>;
    fn launch_pieces(&self, id: NodeId) -> Vec<Range<u64>>;
    fn launch_arriving(&self, id: NodeId) -> Option<BoxFuture<'static, ()>>;
    fn has_launch_set(&self) -> bool;
    fn totals(&self) -> Totals;
    fn identity(&self) -> &Identity;
    fn known_path(&self, id: NodeId) -> Option<String>;
}

impl Tree for Mount {
    fn lookup(self: &Arc<Self>, parent: NodeId, name: &[u8]) -> Answer<Option<Node>> {
        Mount::lookup(self, parent, name)
    }

    fn node(self: &Arc<Self>, id: NodeId) -> Answer<Node> {
        Mount::node(self, id)
    }

    fn read_dir(self: &Arc<Self>, dir: NodeId, cursor: u64, max: usize) -> Answer<Vec<DirEntry>> {
        Mount::read_dir(self, dir, cursor, max)
    }

    fn parent(self: &Arc<Self>, dir: NodeId) -> Answer<NodeId> {
        Mount::parent(self, dir)
    }

    fn read_link(self: &Arc<Self>, id: NodeId) -> Answer<Bytes> {
        Mount::read_link(self, id)
    }

    fn xattrs(self: &Arc<Self>, id: NodeId) -> Answer<Vec<(Bytes, Bytes)>> {
        Mount::xattrs(self, id)
    }

    fn read(self: &Arc<Self>, id: NodeId, offset: u64, length: usize) -> Answer<Bytes> {
        Mount::read(self, id, offset, length)
    }

    fn seek(self: &Arc<Self>, id: NodeId, offset: u64, data: bool) -> Answer<Option<u64>> {
        Mount::seek(self, id, offset, data)
    }

    fn cached_bytes(self: &Arc<Self>, id: NodeId) -> Answer<u64> {
        Mount::cached_bytes(self, id)
    }

    fn complete_file(self: &Arc<Self>, id: NodeId) -> Option<File> {
        Mount::complete_file(self, id)
    }

    fn peek(self: &Arc<Self>, id: NodeId, range: Range<u64>) -> Option<Bytes> {
        Mount::peek(self, id, range)
    }

    fn launch_pieces(&self, id: NodeId) -> Vec<Range<u64>> {
        Mount::launch_pieces(self, id)
    }

    fn launch_arriving(&self, id: NodeId) -> Option<BoxFuture<'static, ()>> {
        Mount::launch_arriving(self, id)
    }

    fn has_launch_set(&self) -> bool {
        Mount::has_launch_set(self)
    }

    fn totals(&self) -> Totals {
        Mount::totals(self)
    }

    fn identity(&self) -> &Identity {
        Mount::identity(self)
    }

    fn known_path(&self, id: NodeId) -> Option<String> {
        Mount::known_path(self, id)
    }
}
