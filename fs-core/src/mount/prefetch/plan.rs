//! What to bring next: places, the more likely to be read before the others, and of equals the newest first.
//!
//! In that order ([`Level`]): the tree's pages; what earlier launches read; what stands around places that were read;
//! files of the same kind in the directories that were read from, and below these directories' neighbours; ever more of
//! long files that are read in many places, and all of them; and then the rest of the version, what is of a kind that
//! was read before all else. A place is looked into as far as needed for the next piece, so that what is read next
//! finds its way to the top at once.

mod index;

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Weak};

use futures::future::join_all;

pub(in crate::mount) use self::index::{Index, Kind};
use crate::error::Result;
use crate::fetch::{Urgency, Wanted};
use crate::mount::pages::Held;
use crate::mount::{Mount, Need};
use crate::package::tree::page::NodeBody;
use crate::package::tree::walk;
use crate::package::{Hash, NodeId};

/// Trees up to this long, as stored, are brought whole: about 100,000 files. Of larger ones, pages come as they are needed.
const TREE_MAX_BYTES: u64 = 4 << 20;
/// Files up to this long are brought whole. Longer ones are brought around the places that are read.
const FILE_MAX_BYTES: u64 = 4 << 20;
/// Files up to this long are brought because others of their kind near to them were read.
const NEIGHBOUR_MAX_BYTES: u64 = 1 << 20;
/// Of a longer file, so much before and after the place that was read comes at once.
const BEFORE_BYTES: u64 = 256 << 10;
const AFTER_BYTES: u64 = 1 << 20;
/// And so much of its end with the first place: programs are relocated at both ends.
const END_BYTES: u64 = 2 << 20;
/// With every read that waited for it, so much more around the place comes later, up to the most.
const WIDER_BYTES: u64 = 512 << 10;
const WIDEST_BYTES: u64 = 8 << 20;
/// A long file that was waited for this often is brought whole.
const WHOLE_AFTER_READS: u64 = 3;
/// A file that was read has its kind brought below the directories so many levels above its own.
const LEVELS_ABOVE: usize = 2;
/// Most nodes of one directory that are looked at.
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

/// How likely it is that something is read, likeliest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Tree,
    Learned,
    Around,
    Directory,
    Neighbours,
    Wide,
    Whole,
    Kind,
    Everything,
}

enum Place {
    /// All pages of the tree.
    Tree,
    /// What earlier launches read, in that order.
    Learned(VecDeque<PathRange>),
    /// A file around a place where it was read, for the how manyth time.
    Around { node: NodeId, offset: u64, reads: u64 },
    /// Part of a file.
    File(NodeId, Range<u64>),
    /// The files of one kind in the directory that one of its files was read from.
    Directory { dir: NodeId, around: NodeId, kind: Kind },
    /// Files of one kind below directories above this one.
    Above(NodeId, Kind),
    /// All files of one kind.
    Kind(Kind),
    /// Files of these nodes, of one kind if it is told, of up to so many bytes.
    Nodes { nodes: Range<u64>, kind: Option<Kind>, size_max: u64 },
    /// These files.
    Files(VecDeque<NodeId>),
    /// Found, and not here when it was looked for.
    Ready(VecDeque<Wanted>),
}

/// What was put among the places already.
#[derive(Debug, PartialEq, Eq, Hash)]
enum Seen {
    Directory(NodeId, Kind),
    Below(NodeId, Kind),
    Kind(Kind),
    File(NodeId),
    /// A stretch of a long file, read so often, by and large.
    Stretch(NodeId, u64, u64),
}

pub(in crate::mount) struct Plan {
    /// Nobody's mount is kept for what nobody asked for.
    mount: Weak<Mount>,
    nodes: u64,
    places: BTreeMap<(Level, Reverse<u64>), Place>,
    /// How many places there were so far.
    count: u64,
    seen: HashSet<Seen>,
    /// What was in a piece already. Places overlap, and what is under way for one is not to be counted for another, or
    /// less than the line carries would be asked for.
    asked: HashSet<Hash>,
    /// How often each file was waited for.
    reads: HashMap<NodeId, u64>,
    nodes_left: u64,
    /// Whether the tree is short enough to be known whole.
    small: bool,
    index: Option<Index>,
    /// Whether waiting costs more than bringing what is only perhaps read.
    far: bool,
    /// How urgent pages are that are needed to look into places.
    urgency: Urgency,
}

impl Plan {
    /// Nothing but the pages of a small tree, as a beginning.
    pub(in crate::mount) fn new(mount: &Arc<Mount>) -> Self {
        let mut plan = Self {
            mount: Arc::downgrade(mount),
            nodes: mount.descriptor.totals.nodes,
            places: BTreeMap::new(),
            count: 0,
            seen: HashSet::new(),
            asked: HashSet::new(),
            reads: HashMap::new(),
            nodes_left: NODES_MAX,
            small: mount.descriptor.tree.bytes <= TREE_MAX_BYTES,
            index: None,
            far: false,
            urgency: Urgency::Expected,
        };
        if plan.small {
            plan.add(Level::Tree, Place::Tree);
        }
        plan
    }

    fn add(&mut self, level: Level, place: Place) {
        self.count += 1;
        self.places.insert((level, Reverse(self.count)), place);
    }

    /// What earlier launches read, after the pages and before all else.
    pub(in crate::mount) fn add_learned(&mut self, ranges: Vec<PathRange>) {
        self.add(Level::Learned, Place::Learned(ranges.into()));
    }

    /// From now on whatever might be read is worth bringing, not only what is next to what was read.
    pub(in crate::mount) fn is_far(&mut self) {
        self.far = true;
        let nodes = 1..self.nodes + 1;
        self.add(Level::Everything, Place::Nodes { nodes, kind: None, size_max: FILE_MAX_BYTES });
    }

    /// The version's files, which this plan needs to look far around; `None` if they are too many, or not all pages
    /// of the tree were asked for yet.
    pub(in crate::mount) fn wants_index(&self) -> Option<impl Future<Output = Result<Index>> + use<>> {
        let asked = self.places.first_key_value().is_none_or(|((level, _), _)| *level > Level::Tree);
        let wants = self.far && self.small && self.index.is_none() && asked;
        wants.then(|| Index::read(self.mount.clone(), self.nodes, self.urgency))
    }

    /// Uses the version's files.
    pub(in crate::mount) fn know(&mut self, index: Index) {
        self.index = Some(index);
    }

    /// Somebody had to wait for `offset` of the file `node`, which is in the directory, and of the kind, that are told.
    pub(in crate::mount) fn touched(&mut self, node: NodeId, offset: u64, name: Option<(NodeId, Kind)>) {
        let reads = self.reads.entry(node).or_default();
        *reads += 1;
        let reads = *reads;
        // Nearer to each other, they are of one place; and every other time, it is worth looking around again.
        let is_new = self.seen.insert(Seen::Stretch(node, offset / AFTER_BYTES, reads / 2));
        if is_new || reads == WHOLE_AFTER_READS {
            self.add(Level::Around, Place::Around { node, offset, reads });
        }
        let Some((dir, kind)) = name else { return };
        if self.seen.insert(Seen::Directory(dir, kind)) {
            self.add(Level::Directory, Place::Directory { dir, around: node, kind });
            if self.small {
                self.add(Level::Neighbours, Place::Above(dir, kind));
            }
        }
        if self.small && self.seen.insert(Seen::Kind(kind)) {
            self.add(Level::Kind, Place::Kind(kind));
        }
    }

    /// The likeliest place among those that are worth looking into by now.
    fn take(&mut self) -> Option<((Level, Reverse<u64>), Place)> {
        let level = self.places.first_key_value()?.0.0;
        let near_only = !self.far && level > Level::Directory;
        if near_only {
            return None;
        }
        if self.index.is_some() || !matches!(level, Level::Neighbours | Level::Kind | Level::Everything) || !self.small
        {
            return self.places.pop_first();
        }
        // Until the files are known, what needs no such knowledge.
        let key = self.places.keys().copied().find(|(level, _)| matches!(level, Level::Wide | Level::Whole))?;
        self.places.remove_entry(&key)
    }

    /// The next piece of up to `most` stored bytes (one block at least); `None` if nothing is left, or the mount is gone.
    ///
    /// # Errors
    /// If pages that are needed to go on cannot be had.
    pub(in crate::mount) async fn next(&mut self, most: u64) -> Result<Option<Vec<Wanted>>> {
        loop {
            let Some(mount) = self.mount.upgrade() else { return Ok(None) };
            let Some((key, place)) = self.take() else { return Ok(None) };
            match place {
                Place::Ready(mut ready) => {
                    let piece = cut(&mut ready, most, &mut self.asked);
                    if !ready.is_empty() {
                        self.places.insert(key, Place::Ready(ready));
                    }
                    if !piece.is_empty() {
                        return Ok(Some(piece));
                    }
                }
                Place::Tree => {
                    let all = mount.answer_for(self.urgency, |this, held| this.all_pages(held)).await?;
                    self.places.insert(key, Place::Ready(all.into()));
                }
                Place::Around { node, offset, reads } => {
                    let question = move |this: &Mount, held: &mut Held| Ok(this.file(held, node)?.size);
                    // What is wrong with it, whoever reads it is told.
                    let size = mount.answer_for(self.urgency, question).await.unwrap_or_default();
                    self.around(node, offset, reads, size);
                }
                Place::File(node, range) => {
                    let question = move |this: &Mount, held: &mut Held| this.not_local(held, node, &range);
                    let wanted = mount.answer_for(self.urgency, question).await.unwrap_or_default();
                    self.places.insert(key, Place::Ready(wanted.into()));
                }
                Place::Directory { dir, around, kind } => {
                    let question = move |this: &Mount, held: &mut Held| {
                        this.walk(held, |layout, pages| walk::directory(layout, pages, dir))
                    };
                    let (first, children, _) = mount.answer_for(self.urgency, question).await?;
                    let end = first + children;
                    let from = if children <= DIRECTORY_NODES_MAX { first } else { around.0.clamp(first, end) };
                    let nodes = from..end.min(from + DIRECTORY_NODES_MAX);
                    self.places.insert(key, Place::Nodes { nodes, kind: Some(kind), size_max: NEIGHBOUR_MAX_BYTES });
                }
                Place::Above(dir, kind) => {
                    let mut top = dir;
                    let mut tops = Vec::new();
                    for _ in 0..LEVELS_ABOVE {
                        let Some(parent) = self.index.as_ref().and_then(|index| index.parent(top)) else { break };
                        top = parent;
                        tops.push(top);
                    }
                    // The nearest above the others.
                    for top in tops
                        .into_iter()
                        .rev()
                        .filter(|top| self.seen.insert(Seen::Below(*top, kind)))
                        .collect::<Vec<_>>()
                    {
                        let files = self.below(top, kind, NEIGHBOUR_MAX_BYTES);
                        self.add(Level::Neighbours, Place::Files(files));
                    }
                }
                Place::Kind(kind) => {
                    let files = self.below(NodeId::ROOT, kind, FILE_MAX_BYTES);
                    self.places.insert(key, Place::Files(files));
                }
                Place::Nodes { nodes, kind, size_max } => {
                    let end = nodes.end.min(nodes.start + NODES_AT_ONCE.min(self.nodes_left));
                    if nodes.start >= end {
                        continue;
                    }
                    self.nodes_left -= end - nodes.start;
                    let now = nodes.start..end;
                    let question =
                        move |this: &Mount, held: &mut Held| short_files(this, held, now.clone(), kind, size_max);
                    let wanted = mount.answer_for(self.urgency, question).await?;
                    self.places.insert(key, Place::Nodes { nodes: end..nodes.end, kind, size_max });
                    self.add(key.0, Place::Ready(wanted.into()));
                }
                Place::Files(mut files) => {
                    let now: Vec<NodeId> = files.drain(..files.len().min(NODES_AT_ONCE as usize)).collect();
                    if now.is_empty() {
                        continue;
                    }
                    let question = move |this: &Mount, held: &mut Held| {
                        let mut wanted = Vec::new();
                        for node in &now {
                            wanted.extend(this.not_local(held, *node, &(0..u64::MAX))?);
                        }
                        Ok(wanted)
                    };
                    let wanted = mount.answer_for(self.urgency, question).await?;
                    self.places.insert(key, Place::Files(files));
                    self.add(key.0, Place::Ready(wanted.into()));
                }
                Place::Learned(mut ranges) => {
                    let now: Vec<PathRange> = ranges.drain(..ranges.len().min(RANGES_AT_ONCE)).collect();
                    if now.is_empty() {
                        continue;
                    }
                    let wanted = join_all(now.into_iter().map(|range| learned(&mount, range))).await;
                    self.places.insert(key, Place::Learned(ranges));
                    self.add(key.0, Place::Ready(wanted.into_iter().flatten().collect()));
                }
            }
        }
    }
}

impl Plan {
    /// What is worth bringing of a file of `size` bytes that was waited for at `offset`, and when.
    fn around(&mut self, node: NodeId, offset: u64, reads: u64, size: u64) {
        if size <= FILE_MAX_BYTES {
            if self.seen.insert(Seen::File(node)) {
                self.add(Level::Around, Place::File(node, 0..size));
            }
            return;
        }
        let part = |before: u64, after: u64| offset.saturating_sub(before)..offset.saturating_add(after).min(size);
        if self.seen.insert(Seen::File(node)) {
            self.add(Level::Around, Place::File(node, size - END_BYTES..size));
        }
        self.add(Level::Around, Place::File(node, part(BEFORE_BYTES, AFTER_BYTES)));
        let wider = (reads * WIDER_BYTES).min(WIDEST_BYTES);
        self.add(Level::Wide, Place::File(node, part(wider / 2, wider)));
        if reads == WHOLE_AFTER_READS {
            self.add(Level::Whole, Place::File(node, 0..size));
        }
    }

    fn below(&self, top: NodeId, kind: Kind, size_max: u64) -> VecDeque<NodeId> {
        self.index.as_ref().map(|index| index.below(top, kind, size_max).into()).unwrap_or_default()
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

/// Takes what is not here and was not `asked` for yet from the front of `ready`.
fn cut(ready: &mut VecDeque<Wanted>, most: u64, asked: &mut HashSet<Hash>) -> Vec<Wanted> {
    let mut piece: Vec<Wanted> = Vec::new();
    let mut bytes = 0;
    while let Some(wanted) = ready.front() {
        let is_here = wanted.home.as_ref().is_some_and(|(b, at)| b.is_verified(&(*at..at + u64::from(wanted.length))));
        if !is_here && !asked.contains(&wanted.hash) {
            bytes += u64::from(wanted.stored);
            if bytes > most && !piece.is_empty() {
                break;
            }
            asked.insert(wanted.hash);
            piece.push(wanted.clone());
        }
        ready.pop_front();
    }
    piece
}

/// Blocks that are not here of the files among `nodes` that are of the kind, and short enough to be brought unasked.
fn short_files(
    mount: &Mount,
    held: &mut Held,
    nodes: Range<u64>,
    kind: Option<Kind>,
    size_max: u64,
) -> Result<Vec<Wanted>, Need> {
    let mut files = Vec::new();
    for id in nodes.map(NodeId) {
        files.push(mount.walk(held, |layout, pages| {
            let page = walk::node_leaf(layout, pages, id)?;
            let record = walk::record(&page, id)?;
            Ok(match record.body {
                NodeBody::File { size, .. } => {
                    let is_wanted = (1..=size_max).contains(&size);
                    (id, size, is_wanted && kind.is_none_or(|kind| kind == Kind::of(record.name)))
                }
                _ => (id, 0, false),
            })
        })?);
    }
    let mut wanted = Vec::new();
    for id in index::bridged(files) {
        wanted.extend(mount.not_local(held, id, &(0..u64::MAX))?);
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

#[cfg(test)]
mod tests;
