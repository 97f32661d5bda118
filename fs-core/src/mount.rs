//! One pinned version as a file tree: look up, list, read.
//!
//! Every method answers with an [`Answer`]: either at once, when everything needed is on this machine, or with a
//! future that fetches what is missing. An adapter replies inline to the first and spawns the second, so that no
//! callback of a file system ever waits on the network.

//!
//! [`host`] has everything that an agent needs beside mount points: it opens packages, watches for newer versions, and
//! does the long work (load, verify).

pub mod host;

mod answering;
mod background;
pub mod launch;
mod learn;
mod load;
pub mod metrics;
mod naming;
pub mod observe;
mod pages;
pub mod prefetch;
mod read_ahead;
mod reading;
pub mod record;
mod verify;

use std::num::NonZeroUsize;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use futures::future::BoxFuture;
use lru::LruCache;
use parking_lot::Mutex;

use self::launch::LaunchChoice;
use self::metrics::Metrics;
use self::observe::{Observers, Operation};
use self::pages::{Held, PageStore};
use self::read_ahead::Sequence;
use self::reading::FileFacts;
use crate::backend::{Hold, ObjectPath};
use crate::cache::InUse;
use crate::error::{Error, Result};
use crate::fetch::{Fetcher, Wanted};
use crate::package::block::Extent;
use crate::package::descriptor::Descriptor;
use crate::package::tree::TreeLayout;
use crate::package::tree::page::{NodeBody, XattrPlace, decode_xattrs};
use crate::package::tree::walk::{self, Miss, Walked};
use crate::package::{NodeId, NodeKind};
use crate::trust::tail::Tail;

/// Files whose places are remembered, and sequences of reads that are followed.
const FILES_MAX: NonZeroUsize = NonZeroUsize::new(4096).expect("it is not zero");
const SEQUENCES_MAX: NonZeroUsize = NonZeroUsize::new(256).expect("it is not zero");

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

impl Identity {
    /// The package's location without the version.
    pub(crate) fn package_key(&self) -> String {
        format!("{}/{}", self.origin.trim_end_matches('/'), self.package)
    }
}

/// One pinned version.
#[derive(Debug)]
pub struct Mount {
    identity: Identity,
    layout: TreeLayout,
    totals: Totals,
    descriptor: Descriptor,
    packs: Vec<Arc<ObjectPath>>,
    fetcher: Arc<Fetcher>,
    /// Tells the origin that the version is in use.
    _hold: Hold,
    pages: PageStore,
    in_use: Arc<InUse>,
    files: Mutex<LruCache<NodeId, Arc<FileFacts>>>,
    sequences: Mutex<LruCache<NodeId, Sequence>>,
    observers: Observers,
    launch: launch::LaunchState,
    metrics: Metrics,
    /// Set when launches are helped though no launch set tells what they read.
    assistance: OnceLock<Arc<prefetch::Assistance>>,
}

impl Need {
    /// For those who ask only what is here already.
    fn into_error(self) -> Error {
        match self {
            Need::Failed(e) => e,
            Need::Page(w) => Error::damaged(w.object.to_string(), "a page of the tree is not on this machine"),
            Need::Blocks(_) => Error::damaged("a file", "a block is not on this machine"),
        }
    }
}

/// What a question still needs before it can be answered.
enum Need {
    /// A page of the tree.
    Page(Wanted),
    /// Blocks of content.
    Blocks(Vec<Wanted>),
    /// Nothing helps.
    Failed(Error),
}

impl Mount {
    /// A mount of the version that `descriptor` tells of. Fetches its root page, so that what is
    /// mounted can be used; begins with the launch set of `launch`, which brings that page first.
    pub async fn open(
        descriptor: Descriptor,
        identity: Identity,
        fetcher: Arc<Fetcher>,
        launch: &LaunchChoice,
    ) -> Result<Arc<Self>> {
        Self::open_prepared(descriptor, identity, fetcher, launch, None, |_| {}).await
    }

    /// As [`Self::open`]; `prepare` sees the mount before anything was asked of it or fetched for it. `tail` may be the
    /// beginning of the launch set.
    pub(crate) async fn open_prepared(
        descriptor: Descriptor,
        identity: Identity,
        fetcher: Arc<Fetcher>,
        launch: &LaunchChoice,
        tail: Option<Tail>,
        prepare: impl FnOnce(&Arc<Self>),
    ) -> Result<Arc<Self>> {
        let layout = TreeLayout::new(&descriptor.tree)?;
        let in_use = fetcher.cache().new_in_use();
        let pages = PageStore::new(&descriptor.tree, &layout, fetcher.cache());
        let hold = fetcher.backend().hold(&descriptor.version);
        let mount = Arc::new(Self {
            identity,
            layout,
            totals: Totals { nodes: descriptor.totals.nodes, bytes: descriptor.totals.allocated_bytes },
            packs: descriptor.packs.iter().map(|p| Arc::new(p.path())).collect(),
            descriptor,
            fetcher,
            _hold: hold,
            pages,
            in_use,
            files: Mutex::new(LruCache::new(FILES_MAX)),
            sequences: Mutex::new(LruCache::new(SEQUENCES_MAX)),
            observers: Observers::default(),
            launch: launch::LaunchState::default(),
            metrics: Metrics::default(),
            assistance: OnceLock::new(),
        });
        mount.fetcher.cache().touch(mount.pages.blob(), &mount.in_use);
        prepare(&mount);
        mount.start_launch_with(launch, tail)?;
        let root = mount.node(NodeId::ROOT).wait().await?;
        if root.kind != NodeKind::Directory {
            return Err(Error::damaged("the tree", "its root is not a directory"));
        }
        Ok(mount)
    }

    /// Runs a walk over this mount's pages.
    fn walk<T>(
        &self,
        held: &mut Held,
        question: impl FnOnce(&TreeLayout, &mut dyn walk::Pages) -> Walked<T>,
    ) -> std::result::Result<T, Need> {
        question(&self.layout, &mut self.pages.reader(held)).map_err(|miss| match miss {
            Miss::Page(_, address) => Need::Page(self.pages.wanted(&address)),
            Miss::Failed(e) => Need::Failed(e),
        })
    }

    /// Looks `name` up in the directory `parent`; `None` if it is not there.
    pub fn lookup(self: &Arc<Self>, parent: NodeId, name: &[u8]) -> Answer<Option<Node>> {
        let name = Bytes::copy_from_slice(name);
        let told = name.clone();
        let question = move |this: &Mount, held: &mut Held| {
            this.walk(held, |layout, pages| {
                let found = walk::find(layout, pages, parent, &name)?;
                found.map(|id| resolved_node(layout, pages, id)).transpose()
            })
        };
        self.answer_watched(question, move |found| Operation::Lookup {
            parent,
            name: told,
            found: found.and_then(|found| found.as_ref().map(|node| node.id)),
        })
    }

    /// Attributes of a node.
    pub fn node(self: &Arc<Self>, id: NodeId) -> Answer<Node> {
        self.answer(move |this, held| this.walk(held, |layout, pages| resolved_node(layout, pages, id)))
    }

    /// Lists up to `max` entries of `dir` from `cursor` (0: the beginning), without `.` and `..`. An empty list is
    /// the end. The order is the version's own and the same at every call.
    pub fn read_dir(self: &Arc<Self>, dir: NodeId, cursor: u64, max: usize) -> Answer<Vec<DirEntry>> {
        let question = move |this: &Mount, held: &mut Held| {
            this.walk(held, |layout, pages| {
                let (first, children, _) = walk::directory(layout, pages, dir)?;
                let end = children.min(cursor.saturating_add(max as u64));
                let mut entries = Vec::with_capacity((end.saturating_sub(cursor)) as usize);
                let mut leaf = None;
                for i in cursor..end {
                    let id = NodeId(first + i);
                    let page = match leaf.take().filter(|p: &Arc<walk::Page>| p.holds(id)) {
                        Some(page) => page,
                        None => walk::node_leaf(layout, pages, id)?,
                    };
                    let record = walk::record(&page, id)?;
                    let name = page.bytes().slice_ref(record.name);
                    let node = match record.body {
                        NodeBody::Alias { .. } => resolved_node(layout, pages, id)?,
                        _ => node_of(id, &record),
                    };
                    entries.push(DirEntry { name, node, next_cursor: i + 1 });
                    leaf = Some(page);
                }
                Ok(entries)
            })
        };
        self.answer_watched(question, move |entries: Option<&Vec<DirEntry>>| {
            let entries = entries.into_iter().flatten();
            Operation::List { dir, entries: entries.map(|e| (e.name.clone(), e.node.id)).collect() }
        })
    }

    /// The directory that holds `dir` (the root's is the root).
    pub fn parent(self: &Arc<Self>, dir: NodeId) -> Answer<NodeId> {
        self.answer(move |this, held| this.walk(held, |layout, pages| Ok(walk::directory(layout, pages, dir)?.2)))
    }

    /// Target of a symbolic link.
    pub fn read_link(self: &Arc<Self>, id: NodeId) -> Answer<Bytes> {
        let question = move |this: &Mount, held: &mut Held| {
            this.walk(held, |layout, pages| {
                let (id, page) = walk::resolved(layout, pages, id)?;
                match walk::record(&page, id)?.body {
                    NodeBody::Symlink { target } => Ok(page.bytes().slice_ref(target)),
                    _ => Err(Miss::Failed(Error::InvalidInput(format!("node {} is not a symbolic link", id.0)))),
                }
            })
        };
        self.answer_watched(question, move |_| Operation::ReadLink { node: id })
    }

    /// Published extended attributes as (name, value), sorted by name.
    pub fn xattrs(self: &Arc<Self>, id: NodeId) -> Answer<Vec<(Bytes, Bytes)>> {
        let question = move |this: &Mount, held: &mut Held| {
            let place = this.walk(held, |layout, pages| {
                let (id, page) = walk::resolved(layout, pages, id)?;
                Ok(match walk::record(&page, id)?.xattrs {
                    XattrPlace::None => Ok(Bytes::new()),
                    XattrPlace::Inline(raw) => Ok(page.bytes().slice_ref(raw)),
                    XattrPlace::Block(extent) => Err(extent),
                })
            })?;
            let encoded = match place {
                Ok(encoded) => encoded,
                Err(extent) => match held
                    .blocks
                    .get(&extent.hash)
                    .cloned()
                    .or_else(|| this.fetcher.cache().in_memory(&extent.hash))
                {
                    Some(block) => block,
                    None => return Err(Need::Blocks(vec![this.attribute_block(&extent)?])),
                },
            };
            decode_xattrs(&encoded).ok_or_else(|| {
                Need::Failed(Error::damaged("the tree", format!("the attributes of node {} are unreadable", id.0)))
            })
        };
        self.answer_watched(question, move |_| Operation::Xattrs { node: id })
    }

    /// The block of a node's long attributes: a content of its own.
    fn attribute_block(&self, extent: &Extent) -> std::result::Result<Wanted, Need> {
        let blob = self.fetcher.cache().blob(extent.hash, u64::from(extent.length), u64::from(extent.length));
        self.wanted(extent, Some((blob, 0))).map_err(Need::Failed)
    }

    /// Every page of the tree.
    fn all_pages(&self, held: &mut Held) -> std::result::Result<Vec<Wanted>, Need> {
        let all = self.walk(held, walk::all_pages)?;
        Ok(all.iter().map(|address| self.pages.wanted(address)).collect())
    }

    fn wanted(&self, extent: &Extent, home: Option<(Arc<crate::cache::Blob>, u64)>) -> Result<Wanted> {
        let object = self.packs.get(extent.pack as usize).ok_or_else(|| {
            Error::damaged(
                "the tree",
                format!("it refers to pack {}, but the descriptor lists {}", extent.pack, self.packs.len()),
            )
        })?;
        let Extent { pack_offset, stored, length, hash, .. } = *extent;
        Ok(Wanted { object: object.clone(), offset: pack_offset, stored, length, hash, home, remember: true })
    }

    /// Totals of the version.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// What this mount shows.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The pinned version's descriptor.
    pub fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    /// What is done for launches without a launch set.
    pub fn prefetch_statistics(&self) -> prefetch::PrefetchStatistics {
        self.assistance.get().map(|assistance| assistance.statistics()).unwrap_or_default()
    }
}

fn resolved_node(layout: &TreeLayout, pages: &mut dyn walk::Pages, id: NodeId) -> Walked<Node> {
    let (id, page) = walk::resolved(layout, pages, id)?;
    Ok(node_of(id, &walk::record(&page, id)?))
}

fn node_of(id: NodeId, record: &walk::NodeRecord<'_>) -> Node {
    let (kind, size_bytes, allocated_bytes) = match record.body {
        NodeBody::File { size, allocated, .. } => (NodeKind::File, size, allocated),
        NodeBody::Directory { .. } => (NodeKind::Directory, 0, 0),
        NodeBody::Symlink { target } => (NodeKind::Symlink, target.len() as u64, 0),
        // `resolved` has followed it, and an alias of an alias is refused there.
        NodeBody::Alias { .. } => (NodeKind::File, 0, 0),
    };
    Node {
        id,
        kind,
        size_bytes,
        allocated_bytes,
        mode: record.mode,
        mtime: (record.mtime_seconds, record.mtime_nanos),
        links: record.links,
        has_xattrs: record.xattrs != XattrPlace::None,
    }
}

#[cfg(test)]
mod tests;
