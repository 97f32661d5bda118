//! What launches read of each file: where files are cut, and which blocks come first.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use super::resolve::{Kind, Names, resolve};
use super::scan::{ScannedBody, Tree};
use crate::error::Result;
use crate::package::NodeId;
use crate::package::profile::{Profile, Ranges, Use};
use crate::package::tree::name_hash;

/// What launches read of a tree.
#[derive(Debug, Default)]
pub(super) struct Hot {
    /// By index of the file's node: stretches by position, which neither overlap nor touch.
    files: HashMap<usize, Vec<Range<u64>>>,
    /// Every stretch, as index of the node and number among its stretches, in the order in which launches come to it.
    order: Vec<(usize, usize)>,
}

impl Hot {
    /// Finds what `profiles` read in `tree`.
    pub(super) fn plan<'a>(tree: &Tree, profiles: impl Iterator<Item = &'a Profile>) -> Result<Self> {
        let mut names = ScannedNames(tree);
        let mut reads = Vec::new();
        let mut paths: HashMap<&[u8], Option<(usize, u64)>> = HashMap::new();
        let mut ranges: HashMap<usize, Ranges> = HashMap::new();
        for event in profiles.flat_map(|profile| &profile.events) {
            let Use::Read { offset, length } = event.use_ else { continue };
            let known = paths.get(&event.path[..]).copied();
            let file = match known {
                Some(file) => file,
                None => {
                    let file = names.file(&event.path)?;
                    paths.insert(&event.path, file);
                    file
                }
            };
            let Some((node, size)) = file else { continue };
            let range = offset.min(size)..offset.saturating_add(length).min(size);
            if !range.is_empty() {
                ranges.entry(node).or_default().add(range.clone());
                reads.push((node, range));
            }
        }
        let files = ranges.into_iter().map(|(node, ranges)| (node, ranges.iter().collect())).collect();
        let mut hot = Self { files, order: Vec::new() };
        let mut seen = HashSet::new();
        for (node, range) in reads {
            let stretches = &hot.files[&node];
            let from = stretches.partition_point(|stretch| stretch.end <= range.start);
            let touched = stretches[from..].iter().take_while(|stretch| stretch.start < range.end).count();
            hot.order.extend((from..from + touched).map(|number| (node, number)).filter(|one| seen.insert(*one)));
        }
        Ok(hot)
    }

    /// Stretches in the order of launches: index of the node, and where.
    pub(super) fn in_order(&self) -> impl Iterator<Item = (usize, Range<u64>)> + '_ {
        self.order.iter().map(|(node, number)| (*node, self.files[node][*number].clone()))
    }

    /// The parts of a file that no launch reads, by position.
    pub(super) fn cold(&self, node: usize, size: u64) -> Vec<Range<u64>> {
        let mut cold = Vec::new();
        let mut at = 0;
        for stretch in self.files.get(&node).into_iter().flatten() {
            cold.push(at..stretch.start);
            at = stretch.end;
        }
        cold.push(at..size);
        cold.retain(|range| !range.is_empty());
        cold
    }
}

/// Names of a scanned tree.
struct ScannedNames<'a>(&'a Tree);

impl ScannedNames<'_> {
    /// Index and size of the file at `path`.
    fn file(&mut self, path: &[u8]) -> Result<Option<(usize, u64)>> {
        let Some((node, _)) = resolve(self, path, true)? else { return Ok(None) };
        let index = node.0 as usize - 1;
        match self.0.nodes[index].body {
            ScannedBody::File { size, .. } => Ok(Some((index, size))),
            _ => Ok(None),
        }
    }
}

impl Names for ScannedNames<'_> {
    fn child(&mut self, dir: NodeId, name: &[u8]) -> Result<Option<NodeId>> {
        let nodes = &self.0.nodes;
        let ScannedBody::Directory { first_child, children, .. } = nodes[dir.0 as usize - 1].body else {
            return Ok(None);
        };
        if children == 0 {
            return Ok(None);
        }
        let first = first_child as usize - 1;
        let children = &nodes[first..first + children as usize];
        let wanted = (name_hash(name), name);
        let found = children.binary_search_by(|node| (name_hash(&node.name), &node.name[..]).cmp(&wanted));
        Ok(found.ok().map(|at| match children[at].body {
            ScannedBody::Alias(target) => NodeId(target),
            _ => NodeId((first + at) as u64 + 1),
        }))
    }

    fn kind(&mut self, node: NodeId) -> Result<Kind> {
        Ok(match &self.0.nodes[node.0 as usize - 1].body {
            ScannedBody::Directory { parent, .. } => Kind::Directory { parent: *parent },
            ScannedBody::Symlink { target } => Kind::Symlink { target: target.clone() },
            ScannedBody::File { .. } | ScannedBody::Alias(_) => Kind::File,
        })
    }
}
