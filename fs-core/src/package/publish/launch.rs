//! Launch objects: from a profile and the finished tree, what a launch touches, in order of first use, by and large:
//! in every [`GROUP_BYTES`] what belongs to one file stands together, which compresses better.
//!
//! Each of a profile's questions is asked of the new tree, and the pages that answering takes are noted in order, then the
//! blocks that a read touches: so every page stands before what it is needed for, and whoever reads the launch object from
//! its beginning can verify each block when it comes.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;

use super::cut::changed;
use super::profiles::ChosenProfile;
use super::resolve::{Kind, Names, resolve};
use super::scan::{ScannedBody, Tree};
use super::{Progress, pack_writer};
use crate::error::{Error, Result};
use crate::package::block::{self, Encoder, Extent};
use crate::package::descriptor::{LaunchRef, PageSum, TreeRef};
use crate::package::launch::{
    BodyEncoder, LAUNCH_BODY_MAX_BYTES, LAUNCH_ENTRIES_MAX, LAUNCH_LEVEL, LaunchEntry, encode_index, hash_prefix,
};
use crate::package::profile::{ProfileEvent, Use};
use crate::package::tree::page::NodeBody;
use crate::package::tree::walk::{self, Miss, Page, Pages, Walked};
use crate::package::tree::{PAGE_MAX_BYTES, PageAddress, PageTreeKind, TreeLayout};
use crate::package::{Hash, LAUNCH_DIR, NodeId, PROFILE_DIR};
use crate::platform;

/// Bytes of a launch object, uncompressed, in which blocks stand by file and position instead of by first use. On a line
/// of 100 Mbit/s they come within some 50 ms, and the object is 1 to 2 % shorter (decision 013).
const GROUP_BYTES: u64 = 2 << 20;

/// What became of one profile.
#[derive(Debug, Clone, Serialize)]
pub struct LaunchSummary {
    /// Which application it starts.
    pub name: String,
    /// Whether its profile is an earlier version's.
    pub inherited: bool,
    /// Blocks in the launch object.
    pub blocks: u64,
    /// Tree pages in it.
    pub pages: u64,
    /// Its length.
    pub bytes: u64,
    /// Bytes of its blocks and pages uncompressed.
    pub raw_bytes: u64,
    /// The profile's questions about what the version does not have; look-ups not counted, which may have found nothing
    /// when they were recorded.
    pub not_applicable: u64,
    /// The profile's last questions that went beyond what a launch object may hold.
    pub left_out: u64,
}

/// A launch object and its profile, complete in the scratch folder.
pub(super) struct LaunchObject {
    pub(super) reference: LaunchRef,
    pub(super) summary: LaunchSummary,
    object: (File, PathBuf),
    profile: (File, PathBuf),
}

impl LaunchObject {
    /// Makes it visible; how many bytes were not there before.
    pub(super) fn place(self, package_dir: &std::path::Path) -> Result<u64> {
        let (launch, profile) = (&self.reference, &self.reference.profile);
        let mut new = 0;
        let (file, aside) = self.profile;
        if pack_writer::place(file, &aside, &package_dir.join(PROFILE_DIR), &profile.object)? {
            new += profile.bytes;
        }
        let (file, aside) = self.object;
        if pack_writer::place(file, &aside, &package_dir.join(LAUNCH_DIR), &launch.object)? {
            new += launch.bytes;
        }
        Ok(new)
    }
}

/// Writes launch objects for one tree.
pub(super) struct LaunchWriter<'a> {
    tree: &'a Tree,
    walker: Walker<'a>,
    scratch: PathBuf,
}

impl<'a> LaunchWriter<'a> {
    /// A writer for the tree that was stored from `tree` to `stored`.
    pub(super) fn new(tree: &'a Tree, reference: &TreeRef, stored: &'a File, scratch: PathBuf) -> Result<Self> {
        let pages = TreePages { stored, pages: HashMap::new(), asked: Vec::new() };
        Ok(Self { tree, walker: Walker { layout: TreeLayout::new(reference)?, pages }, scratch })
    }

    /// Makes the launch object of the `number`th profile.
    pub(super) fn write(
        &mut self,
        number: usize,
        chosen: &ChosenProfile,
        progress: &dyn Progress,
    ) -> Result<LaunchObject> {
        let name = &chosen.profile.header.name;
        let mut contents = Contents::default();
        // Whatever is asked for begins at the root.
        self.walker.kind(NodeId::ROOT)?;
        contents.add_pages(self.walker.take_asked());
        let (mut not_applicable, mut left_out) = (0, 0);
        for event in &chosen.profile.events {
            if progress.cancelled() {
                return Err(Error::Cancelled);
            }
            if contents.full {
                left_out += 1;
                continue;
            }
            match self.walker.ask(event)? {
                Some(found) => contents.add(self.walker.take_asked(), found),
                None => {
                    contents.add_pages(self.walker.take_asked());
                    not_applicable += u64::from(event.use_ != Use::Lookup);
                }
            }
        }
        contents.group();
        let (object, hash, bytes, index) = self.store(number, &contents, progress)?;
        let profile = self.aside(&format!("profile-{number}"))?;
        write_all(&profile, &chosen.stored)?;
        let pages = contents.sources.iter().filter(|source| matches!(source, Source::Page(_))).count() as u64;
        let summary = LaunchSummary {
            name: name.clone(),
            inherited: chosen.inherited,
            blocks: contents.sources.len() as u64 - pages,
            pages,
            bytes,
            raw_bytes: contents.bytes,
            not_applicable,
            left_out,
        };
        let reference = LaunchRef {
            name: name.clone(),
            object: hash,
            bytes,
            index,
            body: contents.bytes,
            profile: chosen.reference.clone(),
        };
        Ok(LaunchObject { reference, summary, object, profile })
    }

    fn aside(&self, name: &str) -> Result<(File, PathBuf)> {
        let path = self.scratch.join(name);
        let file = File::create(&path).map_err(|e| Error::local("create", &path, e))?;
        Ok((file, path))
    }

    /// Writes index and body; the file, its hash and length, and what verifies the index.
    fn store(
        &mut self,
        number: usize,
        contents: &Contents,
        progress: &dyn Progress,
    ) -> Result<((File, PathBuf), Hash, u64, PageSum)> {
        let aside = self.aside(&format!("launch-{number}"))?;
        let mut hasher = blake3::Hasher::new();
        let mut bytes = 0;
        let mut write = |piece: &[u8]| {
            hasher.update(piece);
            bytes += piece.len() as u64;
            write_all(&aside, piece)
        };
        let index = encode_index(&contents.entries());
        let (length, hash) = (index.len() as u32, Hash::of(&index));
        let stored = Encoder::new(LAUNCH_LEVEL)?.encode(index);
        let index = PageSum { stored: stored.len() as u32, length, hash };
        write(&stored)?;
        let mut body = BodyEncoder::new(contents.bytes)?;
        let mut file = OpenFile::default();
        for source in &contents.sources {
            if progress.cancelled() {
                return Err(Error::Cancelled);
            }
            let ready = match source {
                Source::Page(address) => body.add(self.walker.pages.known(address).bytes())?,
                Source::Block(node, extent) => body.add(&file.read(self.tree, *node, extent)?)?,
            };
            write(&ready)?;
        }
        write(&body.finish()?)?;
        let hash = Hash(*hasher.finalize().as_bytes());
        Ok((aside, hash, bytes, index))
    }
}

fn write_all((file, path): &(File, PathBuf), bytes: &[u8]) -> Result<()> {
    let mut file = file;
    file.write_all(bytes).map_err(|e| Error::local("write", path, e))
}

/// Where an entry's bytes are.
enum Source {
    Page(PageAddress),
    Block(NodeId, Extent),
}

/// What goes into one launch object.
#[derive(Default)]
struct Contents {
    sources: Vec<Source>,
    pages: HashSet<u32>,
    blocks: HashSet<Hash>,
    bytes: u64,
    full: bool,
}

/// What a question found.
enum Found {
    Nothing,
    Blocks(NodeId, Vec<Extent>),
}

impl Contents {
    fn add_pages(&mut self, asked: Vec<PageAddress>) {
        for address in asked {
            if self.has_room(address.sum.length) && self.pages.insert(address.number) {
                self.bytes += u64::from(address.sum.length);
                self.sources.push(Source::Page(address));
            }
        }
    }

    fn add(&mut self, asked: Vec<PageAddress>, found: Found) {
        self.add_pages(asked);
        let Found::Blocks(node, extents) = found else { return };
        for extent in extents {
            if self.has_room(extent.length) && self.blocks.insert(extent.hash) {
                self.bytes += u64::from(extent.length);
                self.sources.push(Source::Block(node, extent));
            }
        }
    }

    fn has_room(&mut self, length: u32) -> bool {
        let room = !self.full
            && self.sources.len() < LAUNCH_ENTRIES_MAX
            && self.bytes + u64::from(length) <= LAUNCH_BODY_MAX_BYTES;
        self.full |= !room;
        room
    }

    /// Puts what belongs together side by side, pages before blocks, and nothing far from where it was.
    fn group(&mut self) {
        let mut first_use: HashMap<NodeId, usize> = HashMap::new();
        for source in &self.sources {
            if let Source::Block(node, _) = source {
                let next = first_use.len();
                first_use.entry(*node).or_insert(next);
            }
        }
        let mut at = 0;
        let mut keyed: Vec<_> = Vec::with_capacity(self.sources.len());
        for source in self.sources.drain(..) {
            let group = at / GROUP_BYTES;
            let (length, rank, offset) = match &source {
                Source::Page(address) => (address.sum.length, 0, 0),
                Source::Block(node, extent) => (extent.length, 1 + first_use[node], extent.file_offset),
            };
            at += u64::from(length);
            keyed.push(((group, rank, offset), source));
        }
        // Pages stay in their order: it is a stable sort.
        keyed.sort_by_key(|(key, _)| *key);
        self.sources.extend(keyed.into_iter().map(|(_, source)| source));
    }

    fn entries(&self) -> Vec<LaunchEntry> {
        let entry = |source: &Source| match source {
            Source::Page(address) => LaunchEntry::Page(*address),
            Source::Block(node, extent) => LaunchEntry::Block {
                node: *node,
                offset: extent.file_offset,
                length: extent.length,
                prefix: hash_prefix(&extent.hash),
            },
        };
        self.sources.iter().map(entry).collect()
    }
}

/// The file that was read last.
#[derive(Default)]
struct OpenFile(Option<(NodeId, File)>);

impl OpenFile {
    fn read(&mut self, tree: &Tree, node: NodeId, extent: &Extent) -> Result<Vec<u8>> {
        let ScannedBody::File { path, .. } = &tree.nodes[node.0 as usize - 1].body else {
            unreachable!("blocks are found in files only");
        };
        let broken = |e| Error::local("read", path, e);
        if self.0.as_ref().is_none_or(|(open, _)| *open != node) {
            self.0 = Some((node, platform::open_no_follow(path).map_err(broken)?));
        }
        let (_, file) = self.0.as_ref().expect("it was opened above");
        match platform::read_exact_at(file, extent.length as usize, extent.file_offset) {
            Ok(bytes) if Hash::of(&bytes) == extent.hash => Ok(bytes),
            Err(e) if e.kind() != std::io::ErrorKind::UnexpectedEof => Err(broken(e)),
            _ => Err(changed(path)),
        }
    }
}

/// Pages of the finished tree object, and which were asked for.
struct TreePages<'a> {
    stored: &'a File,
    pages: HashMap<u32, Arc<Page>>,
    asked: Vec<PageAddress>,
}

impl TreePages<'_> {
    fn known(&self, address: &PageAddress) -> &Page {
        self.pages.get(&address.number).expect("a page that was asked for is known")
    }

    fn load(&self, address: &PageAddress) -> Result<Arc<Page>> {
        let whence = || format!("page {} of the tree being written", address.number);
        let stored = platform::read_exact_at(self.stored, address.sum.stored as usize, address.offset)
            .map_err(|e| Error::local("read", "the tree object", e))?;
        let length = address.sum.length as usize;
        let bytes = block::decode(&Bytes::from(stored), length, &address.sum.hash, PAGE_MAX_BYTES, &whence)?;
        Ok(Arc::new(Page::parse(bytes, &whence)?))
    }
}

impl Pages for TreePages<'_> {
    fn page(&mut self, _: PageTreeKind, address: &PageAddress) -> Walked<Arc<Page>> {
        self.asked.push(*address);
        if let Some(page) = self.pages.get(&address.number) {
            return Ok(page.clone());
        }
        let page = self.load(address).map_err(Miss::Failed)?;
        self.pages.insert(address.number, page.clone());
        Ok(page)
    }
}

/// Asks the finished tree what a launch asks.
struct Walker<'a> {
    layout: TreeLayout,
    pages: TreePages<'a>,
}

impl Walker<'_> {
    fn take_asked(&mut self) -> Vec<PageAddress> {
        std::mem::take(&mut self.pages.asked)
    }

    fn walk<T>(&mut self, question: impl FnOnce(&TreeLayout, &mut dyn Pages) -> Walked<T>) -> Result<T> {
        question(&self.layout, &mut self.pages).map_err(|miss| match miss {
            Miss::Failed(e) => e,
            Miss::Page(_, address) => {
                Error::damaged("the tree being written", format!("page {} is missing", address.number))
            }
        })
    }

    /// What answering an event takes; `None` if the tree has nothing that it could be about.
    fn ask(&mut self, event: &ProfileEvent) -> Result<Option<Found>> {
        let follow = !matches!(event.use_, Use::Lookup | Use::ReadLink);
        let Some((node, kind)) = resolve(self, &event.path, follow)? else { return Ok(None) };
        match (event.use_, kind) {
            (Use::Lookup | Use::Xattrs, _) | (Use::ReadLink, Kind::Symlink { .. }) => Ok(Some(Found::Nothing)),
            (Use::List, Kind::Directory { .. }) => {
                self.walk(|layout, pages| {
                    let (first, children, _) = walk::directory(layout, pages, node)?;
                    // Listings tell attributes, which those of further names are another node's.
                    (first..first + children)
                        .try_for_each(|child| walk::resolved(layout, pages, NodeId(child)).map(drop))
                })?;
                Ok(Some(Found::Nothing))
            }
            (Use::Read { offset, length }, Kind::File) => {
                let end = offset.saturating_add(length);
                let (_, extents) = self.walk(|layout, pages| walk::extents(layout, pages, node, offset, end))?;
                Ok(Some(Found::Blocks(node, extents)))
            }
            _ => Ok(None),
        }
    }
}

impl Names for Walker<'_> {
    fn child(&mut self, dir: NodeId, name: &[u8]) -> Result<Option<NodeId>> {
        self.walk(|layout, pages| match walk::find(layout, pages, dir, name)? {
            Some(found) => walk::resolved(layout, pages, found).map(|(node, _)| Some(node)),
            None => Ok(None),
        })
    }

    fn kind(&mut self, node: NodeId) -> Result<Kind> {
        self.walk(|layout, pages| {
            let page = walk::node_leaf(layout, pages, node)?;
            Ok(match walk::record(&page, node)?.body {
                NodeBody::Directory { parent, .. } => Kind::Directory { parent: NodeId(parent) },
                NodeBody::Symlink { target } => Kind::Symlink { target: target.to_vec() },
                NodeBody::File { .. } | NodeBody::Alias { .. } => Kind::File,
            })
        })
    }
}
