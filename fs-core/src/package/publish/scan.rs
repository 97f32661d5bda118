//! Reading a directory tree: names, attributes, hard links; numbered as the tree format wants it.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use super::Progress;
use crate::error::{Error, Result};
use crate::package::NodeId;
use crate::package::block::BLOCK_MAX_BYTES;
use crate::package::tree::page::encode_xattrs;
use crate::package::tree::{NAME_MAX_BYTES, TARGET_MAX_BYTES, name_hash};
use crate::platform::{self, Facts};

/// What a scanned node is.
#[derive(Debug)]
pub(super) enum ScannedBody {
    File { path: PathBuf, size: u64, facts: Facts },
    Directory { first_child: u64, children: u64, parent: NodeId },
    Symlink { target: Vec<u8> },
    Alias(u64),
}

#[derive(Debug)]
pub(super) struct ScannedNode {
    pub(super) name: Vec<u8>,
    pub(super) mode: u16,
    pub(super) mtime: (i64, u32),
    pub(super) links: u32,
    pub(super) body: ScannedBody,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A scanned tree; `nodes[i]` is node `i + 1`.
#[derive(Debug)]
pub(super) struct Tree {
    pub(super) nodes: Vec<ScannedNode>,
    pub(super) skipped: Vec<String>,
    /// Bytes to read, holes not counted where the file system tells.
    pub(super) bytes: u64,
    pub(super) files: u64,
}

struct Scanner<'a> {
    skip_special: bool,
    progress: &'a dyn Progress,
    tree: Tree,
    /// Node of the first name of each file with several, and how many names were seen.
    linked: HashMap<(u64, u64), (u64, u32)>,
    directories: VecDeque<(PathBuf, usize)>,
}

/// Scans `source`.
pub(super) fn scan(source: &Path, skip_special: bool, progress: &dyn Progress) -> Result<Tree> {
    let tree = Tree { nodes: Vec::new(), skipped: Vec::new(), bytes: 0, files: 0 };
    let mut scanner = Scanner { skip_special, progress, tree, linked: HashMap::new(), directories: VecDeque::new() };
    // The source itself may be a link to the directory; what is in it is not followed.
    let source = source.canonicalize().map_err(|e| Error::local("read the directory", source, e))?;
    let meta = std::fs::symlink_metadata(&source).map_err(|e| Error::local("read attributes of", &source, e))?;
    scanner.add(Vec::new(), &source, &meta, NodeId::ROOT)?;
    while let Some((path, index)) = scanner.directories.pop_front() {
        scanner.children(&path, index)?;
    }
    for (first, names) in scanner.linked.values() {
        scanner.tree.nodes[*first as usize - 1].links = *names;
    }
    Ok(scanner.tree)
}

/// Why a path of the source cannot be read. What the system cannot name can be published from nearer to the root.
fn unreadable(action: &'static str, path: &Path, e: std::io::Error) -> Error {
    if e.kind() != std::io::ErrorKind::InvalidFilename {
        return Error::local(action, path, e);
    }
    let length = path.as_os_str().len();
    Error::InvalidInput(format!(
        "cannot {action} a path of {length} bytes, which is more than the system allows; move the directory nearer to the root, or mount it there (mount --bind), and publish from there. The path is {}",
        path.display()
    ))
}

impl Scanner<'_> {
    fn children(&mut self, dir: &Path, index: usize) -> Result<()> {
        if self.progress.cancelled() {
            return Err(Error::Cancelled);
        }
        let failed = |e| unreadable("read the directory", dir, e);
        let mut found = Vec::new();
        for entry in std::fs::read_dir(dir).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = platform::name_bytes(&entry.file_name());
            if name.len() > NAME_MAX_BYTES {
                return Err(Error::InvalidInput(format!(
                    "{} has a name over {NAME_MAX_BYTES} bytes",
                    entry.path().display()
                )));
            }
            found.push((name_hash(&name), name, entry.path()));
        }
        found.sort();
        let parent = NodeId(index as u64 + 1);
        let first_child = self.tree.nodes.len() as u64 + 1;
        let (mut children, mut subdirectories) = (0, 0);
        for (_, name, path) in found {
            let meta = std::fs::symlink_metadata(&path).map_err(|e| unreadable("read attributes of", &path, e))?;
            if self.add(name, &path, &meta, parent)? {
                children += 1;
                subdirectories += u32::from(meta.is_dir());
            }
        }
        let node = &mut self.tree.nodes[index];
        node.links = 2 + subdirectories;
        if let ScannedBody::Directory { first_child: first, children: count, .. } = &mut node.body {
            (*first, *count) = (first_child, children);
        }
        Ok(())
    }

    /// Adds a node; `false` if it is left out.
    fn add(&mut self, name: Vec<u8>, path: &Path, meta: &std::fs::Metadata, parent: NodeId) -> Result<bool> {
        let facts = platform::facts(meta);
        let number = self.tree.nodes.len() as u64 + 1;
        let kind = meta.file_type();
        let body = if kind.is_dir() {
            self.directories.push_back((path.to_owned(), number as usize - 1));
            ScannedBody::Directory { first_child: 0, children: 0, parent }
        } else if kind.is_file() || kind.is_symlink() {
            match facts.identity.filter(|_| facts.links > 1) {
                Some(identity) => match self.linked.get_mut(&identity) {
                    Some((first, names)) => {
                        *names += 1;
                        ScannedBody::Alias(*first)
                    }
                    None => {
                        self.linked.insert(identity, (number, 1));
                        self.content(path, meta, &facts)?
                    }
                },
                None => self.content(path, meta, &facts)?,
            }
        } else {
            let what = special_name(kind);
            if !self.skip_special {
                return Err(Error::InvalidInput(format!(
                    "{} is a {what}, which a package cannot hold; remove it or publish with --skip-special",
                    path.display()
                )));
            }
            self.tree.skipped.push(format!("{}: {what}", path.display()));
            return Ok(false);
        };
        let xattrs = match &body {
            ScannedBody::File { .. } | ScannedBody::Directory { .. } => {
                platform::xattrs(path).map_err(|e| Error::local("read extended attributes of", path, e))?
            }
            _ => Vec::new(),
        };
        if xattrs.len() > 1 && encode_xattrs(&xattrs).len() > BLOCK_MAX_BYTES {
            return Err(Error::InvalidInput(format!(
                "{} has more than {BLOCK_MAX_BYTES} bytes of extended attributes",
                path.display()
            )));
        }
        self.tree.nodes.push(ScannedNode { name, mode: facts.mode, mtime: facts.mtime, links: 1, body, xattrs });
        Ok(true)
    }

    fn content(&mut self, path: &Path, meta: &std::fs::Metadata, facts: &Facts) -> Result<ScannedBody> {
        if meta.is_file() {
            self.tree.bytes += meta.len().min(facts.allocated.max(4096));
            self.tree.files += 1;
            return Ok(ScannedBody::File { path: path.to_owned(), size: meta.len(), facts: *facts });
        }
        let target = std::fs::read_link(path).map_err(|e| Error::local("read the link", path, e))?;
        let target = platform::name_bytes(target.as_os_str());
        if target.is_empty() || target.len() > TARGET_MAX_BYTES {
            return Err(Error::InvalidInput(format!(
                "{} points to a target over {TARGET_MAX_BYTES} bytes",
                path.display()
            )));
        }
        Ok(ScannedBody::Symlink { target })
    }
}

#[cfg(unix)]
fn special_name(kind: std::fs::FileType) -> &'static str {
    use std::os::unix::fs::FileTypeExt;
    if kind.is_socket() {
        "socket"
    } else if kind.is_fifo() {
        "named pipe"
    } else if kind.is_block_device() || kind.is_char_device() {
        "device"
    } else {
        "special file"
    }
}

#[cfg(not(unix))]
fn special_name(_: std::fs::FileType) -> &'static str {
    "special file"
}
