//! Paths of profiles to nodes of a tree.

use crate::error::Result;
use crate::package::NodeId;

/// Symbolic links that one path may lead through, as on Linux.
const LINKS_MAX: usize = 40;

/// What a path leads through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    Directory { parent: NodeId },
    File,
    Symlink { target: Vec<u8> },
}

/// Something that knows the names of a tree.
pub(super) trait Names {
    /// The node that `name` in the directory `dir` leads to: never a further name of another.
    fn child(&mut self, dir: NodeId, name: &[u8]) -> Result<Option<NodeId>>;
    /// What a node is.
    fn kind(&mut self, node: NodeId) -> Result<Kind>;
}

/// The node at `path`; `None` if there is none. Recorded paths lead through directories only, but what was a directory
/// may be a link to it in another version: so links that stay inside are followed, the last one if `follow_last`.
pub(super) fn resolve(names: &mut impl Names, path: &[u8], follow_last: bool) -> Result<Option<(NodeId, Kind)>> {
    let mut rest: Vec<Vec<u8>> = components(path).rev().map(<[u8]>::to_vec).collect();
    let mut links = 0;
    let mut dir = NodeId::ROOT;
    let mut here = (dir, names.kind(dir)?);
    while let Some(name) = rest.pop() {
        let Kind::Directory { parent } = here.1 else { return Ok(None) };
        dir = here.0;
        let next = if name == b".." { Some(parent) } else { names.child(dir, &name)? };
        let Some(next) = next else { return Ok(None) };
        let kind = names.kind(next)?;
        match &kind {
            Kind::Symlink { target } if !rest.is_empty() || follow_last => {
                links += 1;
                // Where an absolute one leads depends on where the version is mounted.
                if links > LINKS_MAX || target.starts_with(b"/") {
                    return Ok(None);
                }
                rest.extend(components(target).rev().map(<[u8]>::to_vec));
                here = (dir, names.kind(dir)?);
            }
            _ => here = (next, kind),
        }
    }
    Ok(Some(here))
}

fn components(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".")
}
