//! Answering questions from pages, wherever they come from.
//!
//! Every question is a plain function over a [`Pages`] that either has a page or reports that it is missing. The
//! caller fetches the missing page and asks again: so the same code serves the synchronous shortcut and the
//! asynchronous path, and never waits by itself.

use std::sync::Arc;

use super::page::{ExtentsPlace, NodeBody, PageKind};
pub use super::page::{NodeRecord, Page};
use super::{PageAddress, PageTreeKind, TreeLayout, name_hash};
use crate::error::Error;
use crate::package::NodeId;
use crate::package::block::{EXTENT_BYTES, Extent};

/// Why a question has no answer yet, or never.
#[derive(Debug)]
pub enum Miss {
    /// This page must be fetched first.
    Page(PageTreeKind, PageAddress),
    /// The pages contradict each other or the question is wrong.
    Failed(Error),
}

/// Answer, or what is missing for it.
pub type Walked<T> = Result<T, Miss>;

/// A place that may have pages.
pub trait Pages {
    /// The verified page at this address, if it is here.
    fn page(&mut self, kind: PageTreeKind, address: &PageAddress) -> Walked<Arc<Page>>;
}

fn broken<T>(what: &str) -> Walked<T> {
    Err(Miss::Failed(Error::damaged("the tree", what)))
}

/// The leaf in which the key is or would be.
fn leaf(
    layout: &TreeLayout,
    pages: &mut dyn Pages,
    kind: PageTreeKind,
    node: u64,
    position: u64,
) -> Walked<Option<(Arc<Page>, LeafPlace)>> {
    let Some((mut address, levels)) = layout.root(kind) else { return Ok(None) };
    let (index_kind, leaf_kind) = match kind {
        PageTreeKind::Nodes => (PageKind::NodeIndex, PageKind::NodeLeaf),
        PageTreeKind::Extents => (PageKind::ExtentIndex, PageKind::ExtentLeaf),
    };
    let mut next_key = None;
    for level in 1..levels {
        let page = pages.page(kind, &address)?;
        if page.kind() != index_kind {
            return broken("an index page was expected");
        }
        // A key before the first one would stand in the first leaf.
        let i = page.entry_for(node, position).unwrap_or(0);
        let Some(entry) = page.entry(i) else { return broken("an index entry is missing") };
        if let Some(after) = page.entry(i + 1) {
            next_key = Some((after.node, after.position));
        }
        let child = layout.child(kind, level, page.first() + i as u64, entry.offset, entry.sum);
        let Some(child) = child else { return broken("an index entry points outside of its level") };
        address = child;
    }
    let page = pages.page(kind, &address)?;
    if page.kind() != leaf_kind { broken("a leaf page was expected") } else { Ok(Some((page, LeafPlace { next_key }))) }
}

/// What stands after a leaf: the first key of the next one, if there is one.
struct LeafPlace {
    next_key: Option<(u64, u64)>,
}

/// The leaf that holds `node`.
pub fn node_leaf(layout: &TreeLayout, pages: &mut dyn Pages, node: NodeId) -> Walked<Arc<Page>> {
    match leaf(layout, pages, PageTreeKind::Nodes, node.0, 0)? {
        Some((page, _)) if page.holds(node) => Ok(page),
        _ => broken(&format!("there is no node {}", node.0)),
    }
}

/// The leaf that holds `node`, after following a hard link's further name to the node itself.
pub fn resolved(layout: &TreeLayout, pages: &mut dyn Pages, node: NodeId) -> Walked<(NodeId, Arc<Page>)> {
    let page = node_leaf(layout, pages, node)?;
    match record(&page, node)?.body {
        NodeBody::Alias { node: target } => {
            let target = NodeId(target);
            let page = node_leaf(layout, pages, target)?;
            match record(&page, target)?.body {
                NodeBody::File { .. } | NodeBody::Symlink { .. } => Ok((target, page)),
                _ => broken("a hard link leads to neither a file nor a symbolic link"),
            }
        }
        _ => Ok((node, page)),
    }
}

/// The node's record in its leaf.
pub fn record(page: &Page, node: NodeId) -> Walked<NodeRecord<'_>> {
    page.node(node).map_or_else(|| broken("a node is not in its page"), Ok)
}

/// A directory's children: first number, how many, and its parent.
pub fn directory(layout: &TreeLayout, pages: &mut dyn Pages, dir: NodeId) -> Walked<(u64, u64, NodeId)> {
    let page = node_leaf(layout, pages, dir)?;
    match record(&page, dir)?.body {
        NodeBody::Directory { first_child, children, parent } => {
            // Children come after their directory, or a damaged tree could contain itself.
            if children > 0 && first_child <= dir.0 {
                return broken("a directory's children stand before it");
            }
            Ok((first_child, children, NodeId(parent)))
        }
        _ => Err(Miss::Failed(Error::NotADirectory(dir.0))),
    }
}

/// Finds `name` in `dir`: the number of the child of that name (perhaps a hard link's further name).
pub fn find(layout: &TreeLayout, pages: &mut dyn Pages, dir: NodeId, name: &[u8]) -> Walked<Option<NodeId>> {
    let (first, children, _) = directory(layout, pages, dir)?;
    let wanted = name_hash(name);
    let (mut low, mut high) = (first, first + children);
    // Keys before and at the ends of [low, high), for interpolation.
    let (mut low_hash, mut high_hash) = (0u64, 1u64 << 32);
    let mut probes = 0;
    while low < high {
        let span = high - low;
        let guess = if probes < 4 {
            let share = u128::from(u64::from(wanted).saturating_sub(low_hash)) * u128::from(span);
            low + ((share / u128::from(high_hash.saturating_sub(low_hash).max(1))) as u64).min(span - 1)
        } else {
            low + span / 2
        };
        probes += 1;
        let page = node_leaf(layout, pages, NodeId(guess))?;
        let begin = page.first().max(low);
        let end = (page.first() + page.count() as u64).min(high);
        let first = record(&page, NodeId(begin))?;
        let last = record(&page, NodeId(end - 1))?;
        // Names are compared with the hashes: those of one hash may fill more than a page.
        if (wanted, name) < (first.name_hash, first.name) {
            (high, high_hash) = (begin, u64::from(first.name_hash));
        } else if (wanted, name) > (last.name_hash, last.name) {
            (low, low_hash) = (end, u64::from(last.name_hash));
        } else {
            return search_page(&page, begin, end, wanted, name);
        }
    }
    Ok(None)
}

fn search_page(page: &Page, begin: u64, end: u64, wanted: u32, name: &[u8]) -> Walked<Option<NodeId>> {
    let (mut low, mut high) = (begin, end);
    while low < high {
        let middle = low + (high - low) / 2;
        let here = record(page, NodeId(middle))?;
        match (here.name_hash, here.name).cmp(&(wanted, name)) {
            std::cmp::Ordering::Equal => return Ok(Some(NodeId(middle))),
            std::cmp::Ordering::Less => low = middle + 1,
            std::cmp::Ordering::Greater => high = middle,
        }
    }
    Ok(None)
}

/// A file's size, allocated bytes, and extents that touch `[offset, end)`, sorted.
pub fn extents(
    layout: &TreeLayout,
    pages: &mut dyn Pages,
    node: NodeId,
    offset: u64,
    end: u64,
) -> Walked<(u64, Vec<Extent>)> {
    let (node, page) = resolved(layout, pages, node)?;
    let (size, place) = match record(&page, node)?.body {
        NodeBody::File { size, extents, .. } => (size, extents),
        NodeBody::Directory { .. } => return Err(Miss::Failed(Error::IsADirectory(node.0))),
        _ => return Err(Miss::Failed(Error::InvalidInput(format!("node {} is not a file", node.0)))),
    };
    let end = end.min(size);
    let mut found = Vec::new();
    if offset >= end {
        return Ok((size, found));
    }
    match place {
        ExtentsPlace::Inline(raw) => {
            let all = raw.chunks_exact(EXTENT_BYTES).filter_map(|one| Extent::decode(one, 0));
            found.extend(all.filter(|e| e.file_offset < end && e.file_end() > offset));
        }
        ExtentsPlace::Outside { .. } => {
            let mut position = offset;
            while let Some((page, place)) = leaf(layout, pages, PageTreeKind::Extents, node.0, position)? {
                let before = found.len();
                for i in 0..page.count() {
                    match page.node_extent(i) {
                        Some((n, e)) if n == node.0 && e.file_offset < end && e.file_end() > position => found.push(e),
                        _ => {}
                    }
                }
                let overlaps =
                    found[..].windows(2).skip(before.saturating_sub(1)).any(|w| w[0].file_end() > w[1].file_offset);
                if overlaps || found.last().is_some_and(|e| e.file_end() > size) {
                    return broken("the extents of a file overlap or reach past its end");
                }
                match place.next_key {
                    Some((n, p)) if n == node.0 && p < end && p > position => position = p,
                    _ => break,
                }
            }
        }
    }
    Ok((size, found))
}

/// Addresses of all pages of both trees.
pub fn all_pages(layout: &TreeLayout, pages: &mut dyn Pages) -> Walked<Vec<PageAddress>> {
    let mut all = Vec::new();
    for kind in [PageTreeKind::Nodes, PageTreeKind::Extents] {
        let Some((root, levels)) = layout.root(kind) else { continue };
        let mut above = vec![root];
        for level in 1..levels {
            let mut below = Vec::new();
            for address in &above {
                let page = pages.page(kind, address)?;
                for i in 0..page.count() {
                    let Some(entry) = page.entry(i) else { return broken("an index page was expected") };
                    let child = layout.child(kind, level, page.first() + i as u64, entry.offset, entry.sum);
                    let Some(child) = child else { return broken("an index entry points outside of its level") };
                    below.push(child);
                }
            }
            all.append(&mut above);
            above = below;
        }
        all.append(&mut above);
    }
    Ok(all)
}
