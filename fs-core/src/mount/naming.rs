//! Names of nodes for people, from what is here: nothing is fetched for a line in a log.

use super::Mount;
use super::pages::Held;
use crate::package::NodeId;
use crate::package::tree::page::NodeBody;
use crate::package::tree::walk;

/// Nodes that are looked at for the directory that holds one: a log line is not worth more.
const LOOKED_AT_MAX: u64 = 100_000;
/// No path is that deep; a damaged tree's could be.
const DEPTH_MAX: usize = 4096;

impl Mount {
    /// The path of a node within the version, as far as the pages at hand tell; `…` stands for what they do not.
    pub fn known_path(&self, id: NodeId) -> Option<String> {
        let mut parts = Vec::new();
        let mut at = id;
        while at != NodeId::ROOT && parts.len() < DEPTH_MAX {
            let Some(name) = self.known_name(at) else {
                parts.push("…".to_owned());
                break;
            };
            parts.push(name);
            match self.known_parent(at) {
                Some(parent) => at = parent,
                None => {
                    parts.push("…".to_owned());
                    break;
                }
            }
        }
        if parts == ["…"] {
            return None;
        }
        parts.reverse();
        Some(format!("/{}", parts.join("/")))
    }

    fn known_name(&self, id: NodeId) -> Option<String> {
        let name = self.walk(&mut Held::default(), |layout, pages| {
            let page = walk::node_leaf(layout, pages, id)?;
            Ok(String::from_utf8_lossy(walk::record(&page, id)?.name).into_owned())
        });
        name.ok()
    }

    /// The directory that holds a node: its number is smaller, and its children's are in a row.
    fn known_parent(&self, id: NodeId) -> Option<NodeId> {
        let mut held = Held::default();
        let mut at = id.0;
        let lowest = id.0.saturating_sub(LOOKED_AT_MAX).max(1);
        while at > lowest {
            at -= 1;
            let found = self.walk(&mut held, |layout, pages| {
                let page = walk::node_leaf(layout, pages, NodeId(at))?;
                let first = page.first().max(lowest);
                // The whole page at once.
                let holds = |node: &u64| match page.node(NodeId(*node)).map(|record| record.body) {
                    Some(NodeBody::Directory { first_child, children, .. }) => {
                        (first_child..first_child.saturating_add(children)).contains(&id.0)
                    }
                    _ => false,
                };
                Ok(((first..=at).rev().find(holds), first))
            });
            match found {
                Ok((Some(parent), _)) => return Some(NodeId(parent)),
                Ok((None, first)) => at = first,
                // That page is not here.
                Err(_) => {}
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use crate::stage::{Stage, at};

    #[tokio::test(flavor = "multi_thread")]
    async fn a_node_is_named_by_its_path() {
        let stage = Stage::new();
        let source = stage.folder("source");
        for dir in ["a/b/c", "a/empty", "z"] {
            fs::create_dir_all(source.join(dir)).unwrap();
        }
        for i in 0..500 {
            fs::write(source.join(format!("a/file-{i}")), "").unwrap();
        }
        fs::write(source.join("a/b/c/deep"), "x").unwrap();
        stage.publish(&source, "1");
        let (host, _) = stage.recorded("cache").await;
        let mount = stage.mount(&host, "1").await;
        for path in ["a/b/c/deep", "a/file-77", "a/empty", "z"] {
            let node = at(&mount, path).await;
            assert_eq!(mount.known_path(node.id).unwrap(), format!("/{path}"));
        }
        assert_eq!(mount.known_path(crate::package::NodeId(1 << 40)), None);
    }
}
