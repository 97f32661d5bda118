//! What to bring next: a stack of places, the newest first.
//!
//! At the bottom lies the rest of the version in stored order, above it the directories and files that were read from,
//! each above those before it, and on top, once, the tree's pages or what earlier launches read. A place is looked
//! into as far as needed for the next piece, so that what is read next finds its way to the top at once.

use std::collections::{HashSet, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Weak};

use futures::future::join_all;

use crate::error::Result;
use crate::fetch::{Urgency, Wanted};
use crate::mount::pages::Held;
use crate::mount::{Mount, Need};
use crate::package::NodeId;
use crate::package::tree::page::NodeBody;
use crate::package::tree::walk;

/// Trees up to this long, as stored, are brought whole: about 100,000 files. Of larger ones, pages come as they are needed.
const TREE_MAX_BYTES: u64 = 4 << 20;
/// Files up to this long are brought whole; of longer ones, so much after the place that was read.
const FILE_MAX_BYTES: u64 = 4 << 20;
/// Most files that are brought of one directory.
const DIRECTORY_NODES_MAX: u64 = 4096;
/// Nodes that are looked at together.
const NODES_AT_ONCE: u64 = 64;
/// Ranges of earlier launches that are looked for together.
const RANGES_AT_ONCE: usize = 128;
/// Most nodes that are looked at in one launch: in a version with a million files, the rest is left alone.
const NODES_MAX: u64 = 256 << 10;

/// A part of a file, by its path, that an earlier launch read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::mount) struct PathRange {
    pub(in crate::mount) path: bytes::Bytes,
    pub(in crate::mount) range: Range<u64>,
}

enum Place {
    /// All pages of the tree.
    Tree,
    /// What earlier launches read, in that order.
    Learned(VecDeque<PathRange>),
    /// Part of a file.
    File(NodeId, Range<u64>),
    /// The files of the directory that one of its files was read from.
    Directory { dir: NodeId, around: NodeId },
    /// Files of these nodes.
    Nodes(Range<u64>),
    /// Found, and not here when it was looked for.
    Ready(VecDeque<Wanted>),
}

pub(in crate::mount) struct Plan {
    /// Nobody's mount is kept for what nobody asked for.
    mount: Weak<Mount>,
    nodes: u64,
    places: Vec<Place>,
    /// Directories, and files by stretches, that were put on the stack.
    seen: HashSet<(NodeId, Option<u64>)>,
    nodes_left: u64,
    /// How urgent pages are that are needed to look into places.
    urgency: Urgency,
}

impl Plan {
    /// Nothing but the pages of a small tree, as a beginning.
    pub(in crate::mount) fn new(mount: &Arc<Mount>) -> Self {
        let places = if mount.descriptor.tree.bytes <= TREE_MAX_BYTES { vec![Place::Tree] } else { Vec::new() };
        let (mount, nodes) = (Arc::downgrade(mount), mount.descriptor.totals.nodes);
        Self { mount, nodes, places, seen: HashSet::new(), nodes_left: NODES_MAX, urgency: Urgency::Expected }
    }

    /// What earlier launches read, after the pages and before all else.
    pub(in crate::mount) fn add_learned(&mut self, ranges: Vec<PathRange>) {
        self.places.insert(0, Place::Learned(ranges.into()));
    }

    /// The rest of the version, after all else.
    pub(in crate::mount) fn add_everything(&mut self) {
        self.places.insert(0, Place::Nodes(1..self.nodes + 1));
    }

    /// Somebody had to wait for `offset` of the file `node`, which is in the directory `dir`.
    pub(in crate::mount) fn touched(&mut self, node: NodeId, offset: u64, dir: Option<NodeId>) {
        if let Some(dir) = dir
            && self.seen.insert((dir, None))
        {
            self.places.push(Place::Directory { dir, around: node });
        }
        let stretch = offset / FILE_MAX_BYTES;
        if self.seen.insert((node, Some(stretch))) {
            // From the beginning of a short file, from the place that was read in a long one.
            let from = if stretch == 0 { 0 } else { offset };
            self.places.push(Place::File(node, from..from + FILE_MAX_BYTES));
        }
    }

    /// The next piece of up to `most` stored bytes (one block at least); `None` if nothing is left, or the mount is gone.
    ///
    /// # Errors
    /// If pages that are needed to go on cannot be had.
    pub(in crate::mount) async fn next(&mut self, most: u64) -> Result<Option<Vec<Wanted>>> {
        loop {
            let (Some(mount), Some(place)) = (self.mount.upgrade(), self.places.pop()) else { return Ok(None) };
            match place {
                Place::Ready(mut ready) => {
                    let piece = cut(&mut ready, most);
                    if !ready.is_empty() {
                        self.places.push(Place::Ready(ready));
                    }
                    if !piece.is_empty() {
                        return Ok(Some(piece));
                    }
                }
                Place::Tree => {
                    let all = mount.answer_for(self.urgency, |this, held| this.all_pages(held)).await?;
                    self.places.push(Place::Ready(all.into()));
                }
                Place::File(node, range) => {
                    let question = move |this: &Mount, held: &mut Held| {
                        let size = this.file(held, node)?.size;
                        // The rest of a file that is only a little longer than the stretch is not left behind.
                        let end = if size <= FILE_MAX_BYTES { size } else { range.end.min(size) };
                        this.not_local(held, node, &(range.start..end))
                    };
                    // What is wrong with it, whoever reads it is told.
                    let wanted = mount.answer_for(self.urgency, question).await.unwrap_or_default();
                    self.places.push(Place::Ready(wanted.into()));
                }
                Place::Directory { dir, around } => {
                    let question = move |this: &Mount, held: &mut Held| {
                        this.walk(held, |layout, pages| walk::directory(layout, pages, dir))
                    };
                    let (first, children, _) = mount.answer_for(self.urgency, question).await?;
                    let end = first + children;
                    let from = if children <= DIRECTORY_NODES_MAX { first } else { around.0.clamp(first, end) };
                    self.places.push(Place::Nodes(from..end.min(from + DIRECTORY_NODES_MAX)));
                }
                Place::Nodes(nodes) => {
                    let end = nodes.end.min(nodes.start + NODES_AT_ONCE.min(self.nodes_left));
                    if nodes.start >= end {
                        continue;
                    }
                    self.nodes_left -= end - nodes.start;
                    let now = nodes.start..end;
                    let question = move |this: &Mount, held: &mut Held| short_files(this, held, now.clone());
                    let wanted = mount.answer_for(self.urgency, question).await?;
                    self.places.push(Place::Nodes(end..nodes.end));
                    self.places.push(Place::Ready(wanted.into()));
                }
                Place::Learned(mut ranges) => {
                    let now: Vec<PathRange> = ranges.drain(..ranges.len().min(RANGES_AT_ONCE)).collect();
                    if now.is_empty() {
                        continue;
                    }
                    let wanted = join_all(now.into_iter().map(|range| learned(&mount, range))).await;
                    self.places.push(Place::Learned(ranges));
                    self.places.push(Place::Ready(wanted.into_iter().flatten().collect()));
                }
            }
        }
    }
}

impl Mount {
    /// The node at a path from the root; links are not followed.
    pub(in crate::mount) fn node_at(&self, held: &mut Held, path: &[u8]) -> Result<Option<NodeId>, Need> {
        let mut node = NodeId::ROOT;
        for name in path.split(|b| *b == b'/').filter(|name| !name.is_empty()) {
            match self.walk(held, |layout, pages| walk::find(layout, pages, node, name))? {
                Some(found) => node = found,
                None => return Ok(None),
            }
        }
        Ok(Some(node))
    }
}

/// Takes what is still not here from the front of `ready`.
fn cut(ready: &mut VecDeque<Wanted>, most: u64) -> Vec<Wanted> {
    let mut piece: Vec<Wanted> = Vec::new();
    let mut bytes = 0;
    while let Some(wanted) = ready.front() {
        let is_here = wanted.home.as_ref().is_some_and(|(b, at)| b.is_verified(&(*at..at + u64::from(wanted.length))));
        if !is_here {
            bytes += u64::from(wanted.stored);
            if bytes > most && !piece.is_empty() {
                break;
            }
            piece.push(wanted.clone());
        }
        ready.pop_front();
    }
    piece
}

/// Blocks that are not here of the files among `nodes` that are short enough to be brought unasked.
fn short_files(mount: &Mount, held: &mut Held, nodes: Range<u64>) -> Result<Vec<Wanted>, Need> {
    let mut wanted = Vec::new();
    for id in nodes.map(NodeId) {
        let size = mount.walk(held, |layout, pages| {
            let page = walk::node_leaf(layout, pages, id)?;
            Ok(match walk::record(&page, id)?.body {
                NodeBody::File { size, .. } => size,
                _ => 0,
            })
        })?;
        if (1..=FILE_MAX_BYTES).contains(&size) {
            wanted.extend(mount.not_local(held, id, &(0..size))?);
        }
    }
    Ok(wanted)
}

/// Blocks that are not here of a part of a file that an earlier launch read; none if the version has no such file.
async fn learned(mount: &Arc<Mount>, wanted: PathRange) -> Vec<Wanted> {
    let question = move |this: &Mount, held: &mut Held| {
        let Some(node) = this.node_at(held, &wanted.path)? else { return Ok(Vec::new()) };
        let size = this.file(held, node)?.size;
        this.not_local(held, node, &(wanted.range.start.min(size)..wanted.range.end.min(size)))
    };
    // It is another kind of node now, or its pages cannot be had: whoever reads it is told.
    mount.answer_for(Urgency::Expected, question).await.unwrap_or_default()
}
