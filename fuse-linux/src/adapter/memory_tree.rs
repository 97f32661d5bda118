//! A version in memory, to drive the adapter through a real kernel.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use fs_core::mount::{Answer, DirEntry, Identity, Node, Totals};
use fs_core::package::{NodeId, NodeKind};
use fs_core::{Error, Result};
use futures::future::BoxFuture;
use tokio::sync::watch;

use crate::tree::Tree;

/// A tree whose answers come at once or, if `later` is set, from tasks.
pub(crate) struct MemoryTree {
    nodes: Vec<Entry>,
    identity: Identity,
    pub(crate) later: AtomicBool,
    /// Content must be fetched, and comes from tasks; the tree is here.
    pub(crate) away: AtomicBool,
    pub(crate) fail_reads: AtomicBool,
    pub(crate) reads: AtomicU64,
    pub(crate) lookups: AtomicU64,
    /// What starting the application reads.
    pub(crate) pieces: BTreeMap<NodeId, Vec<Range<u64>>>,
    /// Looked ahead: what was asked for.
    pub(crate) peeks: AtomicU64,
    /// Files that are arriving until this is true, and what is not here before.
    pub(crate) arriving: BTreeMap<NodeId, watch::Sender<bool>>,
}

struct Entry {
    node: Node,
    parent: NodeId,
    children: BTreeMap<Vec<u8>, NodeId>,
    content: Bytes,
    xattrs: Vec<(Bytes, Bytes)>,
    complete: Option<PathBuf>,
}

impl MemoryTree {
    pub(crate) fn new(version: &str) -> Self {
        let mut tree = MemoryTree {
            nodes: Vec::new(),
            identity: Identity {
                package: "toy".into(),
                version: version.into(),
                descriptor: "ab".repeat(32),
                origin: "file:///content".into(),
            },
            later: AtomicBool::new(false),
            away: AtomicBool::new(false),
            fail_reads: AtomicBool::new(false),
            reads: AtomicU64::new(0),
            lookups: AtomicU64::new(0),
            pieces: BTreeMap::new(),
            peeks: AtomicU64::new(0),
            arriving: BTreeMap::new(),
        };
        tree.push(NodeId::ROOT, NodeKind::Directory, Bytes::new(), 0o755);
        tree
    }

    fn push(&mut self, parent: NodeId, kind: NodeKind, content: Bytes, mode: u16) -> NodeId {
        let id = NodeId(self.nodes.len() as u64 + 1);
        let node = Node {
            id,
            kind,
            size_bytes: content.len() as u64,
            allocated_bytes: content.len() as u64,
            mode,
            mtime: (1_700_000_000, 123_456_789),
            links: if kind == NodeKind::Directory { 2 } else { 1 },
            has_xattrs: false,
        };
        let children = BTreeMap::new();
        self.nodes.push(Entry { node, parent, children, content, xattrs: Vec::new(), complete: None });
        id
    }

    fn link(&mut self, parent: NodeId, name: impl AsRef<[u8]>, id: NodeId) -> NodeId {
        self.nodes[parent.0 as usize - 1].children.insert(name.as_ref().to_vec(), id);
        id
    }

    pub(crate) fn dir(&mut self, parent: NodeId, name: impl AsRef<[u8]>) -> NodeId {
        let id = self.push(parent, NodeKind::Directory, Bytes::new(), 0o755);
        self.nodes[parent.0 as usize - 1].node.links += 1;
        self.link(parent, name, id)
    }

    pub(crate) fn file(&mut self, parent: NodeId, name: impl AsRef<[u8]>, content: impl Into<Vec<u8>>) -> NodeId {
        let id = self.push(parent, NodeKind::File, Bytes::from(content.into()), 0o644);
        self.link(parent, name, id)
    }

    pub(crate) fn symlink(&mut self, parent: NodeId, name: impl AsRef<[u8]>, target: &str) -> NodeId {
        let id = self.push(parent, NodeKind::Symlink, Bytes::from(target.to_owned()), 0o777);
        self.link(parent, name, id)
    }

    pub(crate) fn xattr(&mut self, id: NodeId, name: &str, value: &[u8]) {
        let entry = &mut self.nodes[id.0 as usize - 1];
        entry.node.has_xattrs = true;
        entry.xattrs.push((Bytes::from(name.to_owned()), Bytes::copy_from_slice(value)));
    }

    /// Adds a part of `id` that starting the application reads.
    pub(crate) fn launch(&mut self, id: NodeId, piece: Range<u64>) {
        self.pieces.entry(id).or_default().push(piece);
    }

    pub(crate) fn complete(&mut self, id: NodeId, path: PathBuf) {
        self.nodes[id.0 as usize - 1].complete = Some(path);
    }

    fn entry(&self, id: NodeId) -> Result<&Entry> {
        usize::try_from(id.0)
            .ok()
            .and_then(|at| self.nodes.get(at.checked_sub(1)?))
            .ok_or_else(|| Error::InvalidInput(format!("no node {}", id.0)))
    }

    fn answer<T: Send + 'static>(&self, result: Result<T>) -> Answer<T> {
        Self::answer_now_or(self.later.load(Ordering::Relaxed), result)
    }

    fn answer_now_or<T: Send + 'static>(later: bool, result: Result<T>) -> Answer<T> {
        if later {
            Answer::Later(Box::pin(async move {
                tokio::task::yield_now().await;
                result
            }))
        } else {
            Answer::Ready(result)
        }
    }
}

impl Tree for MemoryTree {
    fn lookup(self: &Arc<Self>, parent: NodeId, name: &[u8]) -> Answer<Option<Node>> {
        self.lookups.fetch_add(1, Ordering::Relaxed);
        let found = self.entry(parent).map(|dir| dir.children.get(name));
        self.answer(found.and_then(|id| id.map(|id| self.entry(*id).map(|e| e.node.clone())).transpose()))
    }

    fn node(self: &Arc<Self>, id: NodeId) -> Answer<Node> {
        self.answer(self.entry(id).map(|e| e.node.clone()))
    }

    fn read_dir(self: &Arc<Self>, dir: NodeId, cursor: u64, max: usize) -> Answer<Vec<DirEntry>> {
        let entries = self.entry(dir).and_then(|dir| {
            let from = dir.children.iter().enumerate().skip(cursor as usize).take(max);
            from.map(|(at, (name, id))| {
                let node = self.entry(*id)?.node.clone();
                Ok(DirEntry { name: Bytes::from(name.clone()), node, next_cursor: at as u64 + 1 })
            })
            .collect()
        });
        self.answer(entries)
    }

    fn parent(self: &Arc<Self>, dir: NodeId) -> Answer<NodeId> {
        self.answer(self.entry(dir).map(|e| e.parent))
    }

    fn read_link(self: &Arc<Self>, id: NodeId) -> Answer<Bytes> {
        self.answer(self.entry(id).map(|e| e.content.clone()))
    }

    fn xattrs(self: &Arc<Self>, id: NodeId) -> Answer<Vec<(Bytes, Bytes)>> {
        self.answer(self.entry(id).map(|e| e.xattrs.clone()))
    }

    fn read(self: &Arc<Self>, id: NodeId, offset: u64, length: usize) -> Answer<Bytes> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        if self.fail_reads.load(Ordering::Relaxed) {
            return self.answer(Err(Error::damaged("packs/1", "its hash differs")));
        }
        let later = self.away.load(Ordering::Relaxed) || self.later.load(Ordering::Relaxed);
        let content = self.entry(id).map(|e| {
            let from = usize::try_from(offset).unwrap_or(usize::MAX).min(e.content.len());
            e.content.slice(from..from.saturating_add(length).min(e.content.len()))
        });
        Self::answer_now_or(later, content)
    }

    /// Zero bytes at the end of the content are its one hole.
    fn seek(self: &Arc<Self>, id: NodeId, offset: u64, data: bool) -> Answer<Option<u64>> {
        self.answer(self.entry(id).map(|e| {
            let hole = e.content.iter().rposition(|b| *b != 0).map_or(0, |last| last as u64 + 1);
            match data {
                _ if offset >= e.content.len() as u64 => None,
                true => (offset < hole).then_some(offset),
                false => Some(offset.max(hole)),
            }
        }))
    }

    fn cached_bytes(self: &Arc<Self>, id: NodeId) -> Answer<u64> {
        self.answer(self.entry(id).map(|e| e.node.size_bytes / 2))
    }

    fn complete_file(self: &Arc<Self>, id: NodeId) -> Option<File> {
        self.entry(id).ok()?.complete.as_ref().and_then(|path| File::open(path).ok())
    }

    fn peek(self: &Arc<Self>, id: NodeId, range: Range<u64>) -> Option<Bytes> {
        self.peeks.fetch_add(1, Ordering::Relaxed);
        let still_arriving = self.arriving.get(&id).is_some_and(|here| !*here.borrow());
        if still_arriving || self.away.load(Ordering::Relaxed) || self.later.load(Ordering::Relaxed) {
            return None;
        }
        let content = &self.entry(id).ok()?.content;
        Some(content.slice(range.start as usize..(range.end as usize).min(content.len())))
    }

    fn launch_pieces(&self, id: NodeId) -> Vec<Range<u64>> {
        self.pieces.get(&id).cloned().unwrap_or_default()
    }

    fn launch_arriving(&self, id: NodeId) -> Option<BoxFuture<'static, ()>> {
        let mut here = self.arriving.get(&id)?.subscribe();
        Some(Box::pin(async move { here.wait_for(|here| *here).await.map(drop).expect("the tree is there") }))
    }

    fn has_launch_set(&self) -> bool {
        !self.pieces.is_empty()
    }

    fn totals(&self) -> Totals {
        let bytes = self.nodes.iter().map(|e| e.node.allocated_bytes).sum();
        Totals { nodes: self.nodes.len() as u64, bytes }
    }

    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn known_path(&self, id: NodeId) -> Option<String> {
        Some(format!("node {}", id.0))
    }
}
