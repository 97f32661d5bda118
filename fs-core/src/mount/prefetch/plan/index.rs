//! All files of a version, in short: where they are, what kind of file, how long.

use std::collections::{HashMap, HashSet};
use std::hash::{Hash, Hasher};
use std::ops::Range;
use std::sync::Weak;

use crate::error::Result;
use crate::fetch::Urgency;
use crate::mount::pages::Held;
use crate::mount::{Mount, Need};
use crate::package::NodeId;
use crate::package::tree::page::NodeBody;
use crate::package::tree::walk;

/// Nodes that are looked at in one go, before others get their turn.
const NODES_AT_ONCE: u64 = 2048;
/// Bytes between two files that are wanted that are rather brought than left out: as stored, they are about what a line
/// carries in the time that a request takes of the few that may be under way.
const BRIDGE_MAX_BYTES: u64 = 32 << 10;

/// What kind of file a name promises: names that end alike are of one kind. Two kinds that are taken for one, since only
/// a hash is kept, cost bandwidth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::mount) struct Kind(u64);

impl Kind {
    /// By what follows the last dot; a shared library of whatever version is a shared library.
    pub(in crate::mount) fn of(name: &[u8]) -> Self {
        let is_library = name.ends_with(b".so") || name.windows(4).any(|part| part == b".so.");
        let suffix = match name.iter().rposition(|b| *b == b'.') {
            _ if is_library => b"so",
            Some(dot) if dot > 0 => &name[dot + 1..],
            _ => b"",
        };
        let mut hasher = std::hash::DefaultHasher::new();
        suffix.hash(&mut hasher);
        Self(hasher.finish())
    }
}

#[derive(Debug)]
struct File {
    node: NodeId,
    dir: NodeId,
    size: u64,
    kind: Kind,
}

/// The files of one version, in stored order, and its directories.
#[derive(Debug, Default)]
pub(in crate::mount) struct Index {
    files: Vec<File>,
    /// Each directory with the one it is in, in ascending order: a directory stands after the one it is in.
    dirs: Vec<(NodeId, NodeId)>,
}

/// What a page tells of one node.
enum Found {
    Directory { first: u64, children: u64, parent: NodeId },
    File { size: u64, kind: Kind },
    Other,
}

impl Index {
    /// Looks at all `nodes` of the version; nothing if the mount is gone meanwhile.
    ///
    /// # Errors
    /// If a page cannot be had.
    pub(super) async fn read(mount: Weak<Mount>, nodes: u64, urgency: Urgency) -> Result<Self> {
        let mut index = Self::default();
        // Who the parent of a stretch of nodes is, by the first of them.
        let mut children: HashMap<u64, (u64, NodeId)> = HashMap::new();
        let mut family: Option<(u64, NodeId)> = None;
        let mut from = 1;
        while from <= nodes {
            let Some(mount) = mount.upgrade() else { return Ok(Self::default()) };
            let now = from..(from + NODES_AT_ONCE).min(nodes + 1);
            from = now.end;
            let question = move |this: &Mount, held: &mut Held| look_at(this, held, now.clone());
            for (id, found) in mount.answer_for(urgency, question).await? {
                if family.is_none_or(|(end, _)| id.0 >= end) {
                    family = children.remove(&id.0);
                }
                match found {
                    Found::Directory { first, children: count, parent } => {
                        index.dirs.push((id, parent));
                        children.insert(first, (first.saturating_add(count), id));
                    }
                    Found::File { size, kind } => {
                        let dir = family.map_or(NodeId::ROOT, |(_, dir)| dir);
                        index.files.push(File { node: id, dir, size, kind });
                    }
                    Found::Other => {}
                }
            }
            drop(mount);
            tokio::task::yield_now().await;
        }
        Ok(index)
    }

    /// Files of one kind and up to `size_max` bytes, in stored order: those anywhere below `top`, and what
    /// [`bridged`] adds.
    pub(super) fn below(&self, top: NodeId, kind: Kind, size_max: u64) -> Vec<NodeId> {
        let mut dirs = HashSet::from([top]);
        for (dir, parent) in &self.dirs {
            if dirs.contains(parent) {
                dirs.insert(*dir);
            }
        }
        let wanted = |f: &File| f.kind == kind && (1..=size_max).contains(&f.size) && dirs.contains(&f.dir);
        bridged(self.files.iter().map(|f| (f.node, f.size, wanted(f))))
    }

    /// The directory that holds `dir`, unless it is the root, or none.
    pub(super) fn parent(&self, dir: NodeId) -> Option<NodeId> {
        let at = self.dirs.binary_search_by_key(&dir, |(dir, _)| *dir).ok()?;
        Some(self.dirs[at].1).filter(|parent| *parent != dir)
    }
}

/// Of files in stored order, those that are wanted, and short stretches of others between them: one request brings what
/// stands together.
pub(super) fn bridged(files: impl IntoIterator<Item = (NodeId, u64, bool)>) -> Vec<NodeId> {
    let mut all = Vec::new();
    let (mut between, mut between_bytes) = (Vec::new(), u64::MAX);
    for (node, size, wanted) in files {
        if wanted {
            if between_bytes <= BRIDGE_MAX_BYTES {
                all.append(&mut between);
            }
            all.push(node);
            between.clear();
            between_bytes = 0;
        } else if between_bytes <= BRIDGE_MAX_BYTES {
            between_bytes = between_bytes.saturating_add(size);
            if size > 0 {
                between.push(node);
            }
        }
    }
    all
}

fn look_at(mount: &Mount, held: &mut Held, nodes: Range<u64>) -> Result<Vec<(NodeId, Found)>, Need> {
    mount.walk(held, |layout, pages| {
        let mut found = Vec::with_capacity((nodes.end - nodes.start) as usize);
        let mut leaf: Option<std::sync::Arc<walk::Page>> = None;
        for id in nodes.map(NodeId) {
            let page = match leaf.take().filter(|page| page.holds(id)) {
                Some(page) => page,
                None => walk::node_leaf(layout, pages, id)?,
            };
            let record = walk::record(&page, id)?;
            let what = match record.body {
                NodeBody::Directory { first_child, children, parent } => {
                    Found::Directory { first: first_child, children, parent: NodeId(parent) }
                }
                NodeBody::File { size, .. } => Found::File { size, kind: Kind::of(record.name) },
                _ => Found::Other,
            };
            found.push((id, what));
            leaf = Some(page);
        }
        Ok(found)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_end_alike_are_of_one_kind() {
        let same = |a: &str, b: &str| Kind::of(a.as_bytes()) == Kind::of(b.as_bytes());
        assert!(same("os.cpython-311.pyc", "re.pyc"));
        assert!(same("libz.so", "libstdc++.so.6.0.33"));
        assert!(same("python3", ".profile"), "neither has a suffix");
        assert!(same("LICENSE", "README"));
        assert!(!same("os.py", "os.pyc"));
        assert!(!same("so", "lib.so"));
        assert!(!same("a.sort", "a.so"));
    }

    /// Too long to be bridged.
    const LONG: u64 = BRIDGE_MAX_BYTES + 2;

    fn index() -> Index {
        let (so, py) = (Kind::of(b"a.so"), Kind::of(b"a.py"));
        let file = |node, dir, size, kind| File { node: NodeId(node), dir: NodeId(dir), size, kind };
        Index {
            dirs: [(1, 1), (2, 1), (3, 1), (4, 2), (9, 4)].map(|(dir, up)| (NodeId(dir), NodeId(up))).to_vec(),
            files: vec![
                file(5, 1, 10, so),
                file(6, 2, 10, so),
                file(7, 2, LONG, py),
                file(8, 3, LONG - 1, so),
                file(10, 9, 10, so),
                file(11, 9, LONG, so),
                file(12, 9, 0, so),
            ],
        }
    }

    #[test]
    fn what_stands_below_a_directory_is_found_by_kind_and_size() {
        let index = index();
        let below = |top, size| -> Vec<u64> {
            index.below(NodeId(top), Kind::of(b"x.so"), size).iter().map(|node| node.0).collect()
        };
        assert_eq!(below(2, LONG - 1), [6, 10]);
        assert_eq!(below(2, LONG), [6, 10, 11]);
        assert_eq!(below(1, LONG - 1), [5, 6, 8, 10]);
        assert_eq!(below(3, LONG), [8]);
        assert!(below(77, LONG).is_empty());
    }

    #[test]
    fn short_stretches_between_wanted_files_come_with_them() {
        let files = |sizes: &[(u64, bool)]| -> Vec<u64> {
            let files = sizes.iter().zip(1..).map(|((size, wanted), node)| (NodeId(node), *size, *wanted));
            bridged(files).iter().map(|node| node.0).collect()
        };
        let half = BRIDGE_MAX_BYTES / 2;
        assert_eq!(files(&[(9, false), (9, true), (half, false), (half, false), (9, true), (9, false)]), [2, 3, 4, 5]);
        assert_eq!(
            files(&[(9, true), (half, false), (half + 1, false), (9, true), (9, false), (9, true)]),
            [1, 4, 5, 6]
        );
        assert_eq!(files(&[(9, true), (0, false), (9, true)]), [1, 3], "what is empty is not to be brought");
        assert!(files(&[(9, false)]).is_empty());
    }

    #[test]
    fn the_root_is_in_no_directory() {
        let index = index();
        assert_eq!(index.parent(NodeId(9)), Some(NodeId(4)));
        assert_eq!(index.parent(NodeId(1)), None);
        assert_eq!(index.parent(NodeId(77)), None);
    }
}
