//! Publishing: from a directory to a new version at a content root on this machine, or on a server ([`staged`]).
//!
//! ```text
//! scan      the tree's names and attributes, numbered
//! hot       what launches read of each file, if there are profiles
//! cut       files into blocks: new ones compressed by all cores, known ones only referred to
//! pack      new blocks into packs: what launches read, then the rest in node order
//! tree, launch objects, descriptor, signed metadata
//! ```
//!
//! Same input at the same state of the package gives the same bytes, whatever the number of cores. Objects become
//! visible whole and by name (written aside, synced, renamed); the signed metadata comes last. So a publish that is
//! interrupted anywhere leaves the old versions as they were and at most some unreferenced objects.

mod cut;
mod hot;
mod launch;
mod pack_writer;
mod profiles;
mod resolve;
mod scan;
pub mod staged;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use serde::Serialize;

use self::cut::{BlockSink, FileBlocks};
use self::hot::Hot;
pub use self::launch::LaunchSummary;
use self::launch::{LaunchObject, LaunchWriter};
use self::pack_writer::PackStore;
use self::profiles::ChosenProfile;
use self::scan::{ScannedBody, Tree};
use self::staged::{SentObjects, ServerPackage, Staged};
use super::descriptor::{DESCRIPTOR_MAX_BYTES, Descriptor, TreeTotals};
use super::profile::Profile;
use super::tree::build::{NewBody, NewNode, NewXattrs, TreeBuilder};
use super::{FORMAT_VERSION, NodeId, TREE_DIR};
use crate::error::{Error, Result};
use crate::location::{Channel, PackageName, PackageVersion};
use crate::trust::keys::KeyStore;
use crate::trust::publisher::{Added, PublishOptions, Publisher, real_path};

/// zstd level unless told otherwise: 3 keeps publishing well above 100 MB/s a core (docs/PERFORMANCE.md).
pub const DEFAULT_LEVEL: i32 = 3;

/// What to publish, and where.
#[derive(Debug, Clone)]
pub struct PublishRequest {
    /// The directory whose content becomes the version.
    pub source: PathBuf,
    /// The content root, a folder.
    pub content_root: PathBuf,
    /// The package; its folder is made if needed.
    pub package: PackageName,
    /// Name of the new version.
    pub version: PackageVersion,
    /// Channels that shall point at it.
    pub channels: Vec<Channel>,
    /// Where private keys are kept; outside of the content root.
    pub keys_dir: PathBuf,
    /// zstd level, 1 to 22.
    pub level: i32,
    /// Leave out what cannot be stored instead of failing.
    pub skip_special: bool,
    /// Threads that compress; at least 1.
    pub threads: usize,
    /// Recordings of launches, of which launch sets are made: those of one name together, in the order of the names' first.
    pub profiles: Vec<Profile>,
    /// Whether a version without profiles takes over those of the version before.
    pub inherit_profiles: bool,
}

/// What was published.
#[derive(Debug, Clone, Serialize)]
pub struct PublishSummary {
    /// The package.
    pub package: String,
    /// The version.
    pub version: String,
    /// Regular files; a file with several names counts once.
    pub files: u64,
    /// Directories, with the root.
    pub directories: u64,
    /// Symbolic links.
    pub symlinks: u64,
    /// Bytes of the input that are not holes.
    pub bytes: u64,
    /// Blocks of the version, each counted once.
    pub blocks: u64,
    /// Of these, blocks that no earlier version had.
    pub new_blocks: u64,
    /// Launch sets, in their order.
    pub launch: Vec<LaunchSummary>,
    /// Names of launch sets that the version before has and this one does not.
    pub launch_sets_dropped: Vec<String>,
    /// Bytes added to the content root: packs, tree, launch objects, profiles and descriptor.
    pub new_bytes_stored: u64,
    /// Stored bytes that the version consists of, with those shared with earlier versions.
    pub stored_bytes_of_version: u64,
    /// Input bytes by stored bytes of the version.
    pub ratio: f64,
    /// What was left out, as paths and why.
    pub skipped: Vec<String>,
    /// Bytes that were sent to the server; none if it is a folder that was published to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sent_bytes: Option<u64>,
    /// How long it took.
    pub seconds: f64,
    /// SHA-256 of the descriptor, hexadecimal.
    pub descriptor_sha256: String,
    /// Whether signing keys were made, because this is the package's first version.
    pub root_key_created: bool,
}

/// Where long work tells how far it is, and learns that it shall stop.
pub trait Progress: Send + Sync {
    /// The whole amount of work.
    fn total(&self, bytes: u64, files: u64);
    /// More bytes are done.
    fn advance(&self, bytes: u64);
    /// What is being done, in words.
    fn message(&self, text: &str);
    /// Whether to stop; asked at least once a block.
    fn cancelled(&self) -> bool;
}

/// Progress that nobody watches.
#[derive(Debug, Default, Clone, Copy)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn total(&self, _: u64, _: u64) {}
    fn advance(&self, _: u64) {}
    fn message(&self, _: &str) {}
    fn cancelled(&self) -> bool {
        false
    }
}

/// Publishes a directory as a new version. Blocks the calling thread.
///
/// # Errors
/// `InvalidInput` for a source that cannot be published, `Busy` while another publish holds the package,
/// `Local` for failing disks, `Cancelled`. The package is then as it was.
pub fn publish(request: &PublishRequest, progress: &dyn Progress) -> Result<PublishSummary> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Error::local("start", "the publisher's runtime", e))?;
    carry_out(request, None, &runtime, progress)
}

/// Publishes a directory as a new version of a package on a server; the request's content root has no meaning. Blocks the
/// calling thread.
///
/// # Errors
/// As those of [`publish`] and [`Staged::send`].
pub fn publish_to_server(
    request: &PublishRequest,
    server: &ServerPackage,
    progress: &dyn Progress,
) -> Result<PublishSummary> {
    // A thread of its own keeps connections alive while this one packs.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.map_err(|e| Error::local("start", "the publisher's runtime", e))?;
    progress.message("asking the server what it has");
    let staged = runtime.block_on(async {
        tokio::select! {
            staged = Staged::open(server) => staged,
            () = until_cancelled(progress) => Err(Error::Cancelled),
        }
    })?;
    let request = PublishRequest { content_root: staged.content_root().to_owned(), ..request.clone() };
    carry_out(&request, Some(&staged), &runtime, progress)
}

async fn until_cancelled(progress: &dyn Progress) {
    while !progress.cancelled() {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

fn carry_out(
    request: &PublishRequest,
    staged: Option<&Staged>,
    runtime: &tokio::runtime::Runtime,
    progress: &dyn Progress,
) -> Result<PublishSummary> {
    let started = Instant::now();
    let package_dir = request.content_root.join(request.package.as_str());
    check_request(request)?;
    progress.message("reading the directory");
    let tree = scan::scan(&request.source, request.skip_special, progress)?;

    let keys = KeyStore::new(&request.keys_dir);
    let options = PublishOptions { staged: staged.is_some(), ..PublishOptions::default() };
    let mut publisher = runtime.block_on(Publisher::open(&package_dir, &keys, options))?;
    let root_key_created = publisher.catalog().versions.is_empty();
    let known = runtime.block_on(known_descriptors(&publisher))?;
    let ancestor = profiles::ancestor(publisher.catalog(), request);
    let ancestor = known.iter().find(|known| ancestor.is_some_and(|record| known.version == record.version));
    if let (Some(staged), Some(ancestor)) = (staged, ancestor) {
        runtime.block_on(staged.fetch_profiles(ancestor))?;
    }
    let chosen = choose_profiles(request, ancestor, &package_dir)?;
    let hot = Hot::plan(&tree, chosen.iter().map(|chosen| &chosen.profile))?;
    let mut packs = PackStore::open(&package_dir, &known, |pack| match staged {
        Some(staged) => runtime.block_on(staged.pack_index(pack)),
        None => pack_writer::read_index(&package_dir, pack),
    })?;

    progress.total(tree.bytes, tree.files);
    progress.message("storing blocks");
    let store = |sink: &mut BlockSink<'_>| store_files(&tree, &hot, sink, progress);
    let mut blocks = cut::run(request.level, request.threads, &mut packs, store)?;
    packs.finish()?;

    progress.message("writing the tree");
    let (mut descriptor, tree_file) = write_tree(request, &tree, &mut blocks, &mut packs)?;
    let launch_objects = write_launch_objects(&chosen, &tree, &descriptor, &tree_file.0, &packs, progress)?;
    if let Some(LaunchSummary { name, .. }) =
        launch_objects.iter().map(|object| &object.summary).find(|set| !set.inherited && set.blocks == 0)
    {
        // It would replace a good one that would have been inherited.
        return Err(Error::InvalidInput(format!(
            "the recording of {name} names nothing to read in this version: it is empty, or of another package; record the launch again, or publish without --profile"
        )));
    }
    descriptor.launch = launch_objects.iter().map(|object| object.reference.clone()).collect();
    if progress.cancelled() {
        return Err(Error::Cancelled);
    }
    let bytes = Bytes::from(descriptor.to_bytes());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs().cast_signed());
    if bytes.len() as u64 > DESCRIPTOR_MAX_BYTES {
        return Err(Error::InvalidInput(format!(
            "{} needs {} packs, more than a version can list; publish it as several packages",
            request.source.display(),
            descriptor.packs.len()
        )));
    }
    // Refused here, if at all, before anything becomes visible.
    let added = publisher.add_version(&request.version, bytes.clone(), &request.channels, now)?;
    packs.place_all()?;
    let (file, aside) = tree_file;
    let tree_is_new = pack_writer::place(file, &aside, &package_dir.join(TREE_DIR), &descriptor.tree.object)?;
    let launch = launch_objects.iter().map(|object| object.summary.clone()).collect();
    let mut launch_bytes_new = 0;
    for object in launch_objects {
        launch_bytes_new += object.place(&package_dir)?;
    }
    runtime.block_on(publisher.commit())?;
    let sent = staged.map(|staged| runtime.block_on(staged.send(&publisher, tree.bytes, progress))).transpose()?;

    let tree_bytes_new = if tree_is_new { descriptor.tree.bytes } else { 0 };
    let descriptor_bytes_new = if added == Added::New { bytes.len() as u64 } else { 0 };
    let new_bytes_stored = packs.new_bytes() + tree_bytes_new + launch_bytes_new + descriptor_bytes_new;
    let launch_bytes: u64 = descriptor.launch.iter().map(|set| set.bytes + set.profile.bytes).sum();
    let stored = packs.used_bytes() + descriptor.tree.bytes + launch_bytes + bytes.len() as u64;
    let has = |name: &String| descriptor.launch.iter().any(|set| set.name == *name);
    let before = ancestor.iter().flat_map(|ancestor| &ancestor.launch).map(|set| set.name.clone());
    let launch_sets_dropped = before.filter(|name| !has(name)).collect();
    Ok(PublishSummary {
        package: request.package.to_string(),
        version: request.version.to_string(),
        files: descriptor.totals.files,
        directories: descriptor.totals.directories,
        symlinks: descriptor.totals.symlinks,
        bytes: descriptor.totals.allocated_bytes,
        blocks: packs.used_blocks(),
        new_blocks: packs.new_blocks(),
        new_bytes_stored: sent.map_or(new_bytes_stored, |sent| sent.bytes),
        launch,
        launch_sets_dropped,
        stored_bytes_of_version: stored,
        ratio: if stored == 0 { 1.0 } else { descriptor.totals.allocated_bytes as f64 / stored as f64 },
        skipped: tree.skipped,
        sent_bytes: sent.map(|SentObjects { bytes, .. }| bytes),
        seconds: started.elapsed().as_secs_f64(),
        descriptor_sha256: hex::encode(<sha2::Sha256 as sha2::Digest>::digest(&bytes)),
        root_key_created,
    })
}

fn check_request(request: &PublishRequest) -> Result<()> {
    let source = request.source.canonicalize().map_err(|e| Error::local("read the directory", &request.source, e))?;
    if !source.is_dir() {
        return Err(Error::InvalidInput(format!("{} is not a directory", request.source.display())));
    }
    if !(1..=22).contains(&request.level) {
        return Err(Error::InvalidInput(format!("compression level {} is not within 1 to 22", request.level)));
    }
    let within = |outer: &Path, inner: &Path| {
        Error::InvalidInput(format!(
            "{} lies in {}; publish from a directory outside of the content root, which holds packages only",
            inner.display(),
            outer.display()
        ))
    };
    // Looked at before the content root is made: a refused publish makes nothing.
    let root = std::path::absolute(&request.content_root).and_then(|root| real_path(&root));
    let root = root.map_err(|e| Error::local("read the content root", &request.content_root, e))?;
    if root.starts_with(&source) {
        return Err(within(&source, &root));
    }
    if source.starts_with(&root) {
        return Err(within(&root, &source));
    }
    std::fs::create_dir_all(&root).map_err(|e| Error::local("create the content root", &root, e))
}

/// Descriptors of the versions that are already there: their packs hold blocks that need not be stored again.
async fn known_descriptors(publisher: &Publisher) -> Result<Vec<Descriptor>> {
    let mut known = Vec::new();
    for record in &publisher.catalog().versions {
        let bytes = publisher.descriptor(record).await?;
        known.push(Descriptor::parse(&bytes, &format!("the descriptor of version {}", record.version))?);
    }
    Ok(known)
}

/// The profiles of the new version's launch sets.
fn choose_profiles(
    request: &PublishRequest,
    ancestor: Option<&Descriptor>,
    package_dir: &Path,
) -> Result<Vec<ChosenProfile>> {
    match ancestor {
        Some(ancestor) if request.profiles.is_empty() && request.inherit_profiles => {
            profiles::inherited(package_dir, ancestor)
        }
        _ => profiles::given(&request.profiles),
    }
}

/// Cuts every file of the tree, what launches read first; the result stands at the node's index.
fn store_files(tree: &Tree, hot: &Hot, sink: &mut BlockSink<'_>, progress: &dyn Progress) -> Result<Vec<FileBlocks>> {
    let mut blocks: Vec<FileBlocks> = Vec::new();
    blocks.resize_with(tree.nodes.len(), FileBlocks::default);
    for (index, stretch) in hot.in_order() {
        if let ScannedBody::File { path, size, facts } = &tree.nodes[index].body {
            let cuts = sink.store_parts(path, *size, facts, std::slice::from_ref(&stretch), progress)?;
            blocks[index].cuts.extend(cuts);
        }
    }
    for (index, (node, file)) in tree.nodes.iter().zip(&mut blocks).enumerate() {
        if let ScannedBody::File { path, size, facts } = &node.body {
            file.cuts.extend(sink.store_parts(path, *size, facts, &hot.cold(index, *size), progress)?);
            file.cuts.sort_by_key(|cut| cut.file_offset);
        }
        if let Err(encoded) = NewXattrs::encode(&node.xattrs) {
            file.xattrs = Some(sink.store_bytes(&encoded)?);
        }
    }
    Ok(blocks)
}

/// Writes the tree object aside; the file and where it is.
fn write_tree(
    request: &PublishRequest,
    tree: &Tree,
    blocks: &mut [FileBlocks],
    packs: &mut PackStore,
) -> Result<(Descriptor, (File, PathBuf))> {
    let scratch = packs.scratch_dir().to_owned();
    let mut builder = TreeBuilder::new(&scratch)?;
    let mut totals = TreeTotals::default();
    for (node, blocks) in tree.nodes.iter().zip(blocks) {
        totals.nodes += 1;
        let body = match &node.body {
            ScannedBody::File { size, .. } => {
                let extents = packs.extents(&std::mem::take(&mut blocks.cuts))?;
                totals.files += 1;
                totals.bytes += size;
                totals.allocated_bytes += extents.iter().map(|e| u64::from(e.length)).sum::<u64>();
                NewBody::File { size: *size, extents }
            }
            ScannedBody::Directory { first_child, children, parent } => {
                totals.directories += 1;
                NewBody::Directory { first_child: *first_child, children: *children, parent: *parent }
            }
            ScannedBody::Symlink { target } => {
                totals.symlinks += 1;
                NewBody::Symlink { target: target.clone() }
            }
            ScannedBody::Alias(target) => NewBody::Alias(NodeId(*target)),
        };
        let xattrs = match (NewXattrs::encode(&node.xattrs), &blocks.xattrs) {
            (Ok(inline), _) => inline,
            (Err(_), Some(cut)) => NewXattrs::Block(packs.extents(std::slice::from_ref(cut))?[0]),
            (Err(_), None) => unreachable!("store_files stored every long attribute set"),
        };
        builder.push(&NewNode {
            name: node.name.clone(),
            mode: node.mode,
            mtime: node.mtime,
            links: node.links,
            body,
            xattrs,
        })?;
    }
    let aside = scratch.join("tree");
    // Read again for launch objects.
    let out = File::options().read(true).write(true).create(true).truncate(true).open(&aside);
    let mut out = out.map_err(|e| Error::local("create", &aside, e))?;
    let tree_ref = builder.finish(&mut out)?;
    let descriptor = Descriptor {
        format: FORMAT_VERSION,
        package: request.package.clone(),
        version: request.version.clone(),
        packs: packs.pack_refs(),
        launch: Vec::new(),
        totals,
        tree: tree_ref,
    };
    Ok((descriptor, (out, aside)))
}

/// Writes launch objects aside, in the order of their profiles.
fn write_launch_objects(
    chosen: &[ChosenProfile],
    tree: &Tree,
    descriptor: &Descriptor,
    tree_file: &File,
    packs: &PackStore,
    progress: &dyn Progress,
) -> Result<Vec<LaunchObject>> {
    if chosen.is_empty() {
        return Ok(Vec::new());
    }
    progress.message("writing launch objects");
    let mut writer = LaunchWriter::new(tree, &descriptor.tree, tree_file, packs.scratch_dir().to_owned())?;
    chosen.iter().enumerate().map(|(number, chosen)| writer.write(number, chosen, progress)).collect()
}

#[cfg(test)]
mod tests;
