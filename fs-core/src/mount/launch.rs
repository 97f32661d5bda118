//! Launch streams: bringing a launch set in its own order, ahead of the application that needs it.
//!
//! Nothing waits for a launch stream but what it is about to bring. Its first entries are the pages that mounting
//! itself needs, so a mount with a launch set costs no request more.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Weak};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use futures::{StreamExt as _, TryStreamExt as _};
use parking_lot::RwLock;
use serde::Serialize;
use tokio::sync::watch;

use super::pages::Held;
use super::{Mount, Need};
use crate::backend::ReadOptions;
use crate::cache::Blob;
use crate::error::{Error, Result};
use crate::fetch::arriving::Arriving;
use crate::fetch::{Fetcher, Urgency, Wanted};
use crate::package::descriptor::LaunchRef;
use crate::package::launch::{BodyDecoder, LAUNCH_INDEX_MAX_BYTES, LaunchEntry, hash_prefix, parse_index};
use crate::package::tree::PageTreeKind;
use crate::package::{Hash, NodeId, block};

/// Blocks that may wait for the disk: when it is slower than the line, the line waits.
const WAITING_FOR_DISK_MAX: usize = 256;
/// Pieces of the stream that may wait to be decoded.
const PIECES_WAITING_MAX: usize = 64;
/// Entries that are looked at to tell whether most of a launch set is on this machine.
const SAMPLES: usize = 48;
/// How many such groups are under way.
const CHUNKS_AT_ONCE: usize = 4;
/// Entries asked for together when a launch set is brought by single ranges.
const ENTRIES_AT_ONCE: usize = 64;
/// After so much of a stream, what was here before is weighed against what was not.
const PROBE_BYTES: u64 = 2 << 20;

/// Somebody who wants the blocks of the launch set as they come, verified: an adapter that hands them to the system
/// before anybody reads them. Called from the stream's own thread, which it may hold up only briefly.
pub trait Arrivals: Send + Sync {
    /// `block` stands at `offset` of the file `node`.
    fn arrived(&self, node: NodeId, offset: u64, block: &Bytes);
}

/// Which launch set a mount shall bring.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum LaunchChoice {
    /// The first of the version, if it has any.
    #[default]
    First,
    /// The one of this name.
    Named(String),
    /// None.
    Off,
}

/// How bringing a launch set goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LaunchPhase {
    /// There is none, or none was asked for.
    #[default]
    None,
    /// It comes as one stream.
    Streaming,
    /// Most of it is on this machine; the rest is fetched singly.
    Completing,
    /// All of it is on this machine.
    Complete,
    /// It could not be had whole. Reads fetch what they need by themselves.
    Failed,
}

impl LaunchPhase {
    /// Whether parts of the launch set are still to come.
    pub fn is_under_way(self) -> bool {
        matches!(self, LaunchPhase::Streaming | LaunchPhase::Completing)
    }
}

/// Counters of a mount's launch set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct LaunchStatistics {
    /// Its name; empty if there is none.
    pub name: String,
    /// How it goes.
    pub phase: LaunchPhase,
    /// Bytes of the launch object.
    pub bytes: u64,
    /// Of these, bytes that have come.
    pub bytes_received: u64,
    /// Blocks and pages of the set.
    pub entries: u64,
    /// Of these, those that are on this machine.
    pub entries_here: u64,
    /// Those that somebody was waiting for when they came.
    pub entries_waited_for: u64,
    /// Uncompressed bytes that came although they were here.
    pub bytes_repeated: u64,
}

#[derive(Debug, Default)]
struct Counters {
    bytes_received: AtomicU64,
    here: AtomicU64,
    waited_for: AtomicU64,
    repeated: AtomicU64,
}

/// The launch set of one mount.
#[derive(Debug)]
pub(super) struct LaunchState {
    set: RwLock<Option<Known>>,
    /// Parts of files that launches read, known otherwise.
    learned: RwLock<HashMap<NodeId, Vec<Range<u64>>>>,
    receivers: RwLock<Vec<ReceiverRef>>,
    phase: watch::Sender<LaunchPhase>,
    over: AtomicBool,
    counters: Counters,
}

#[derive(Debug, Clone)]
struct Known {
    of: LaunchRef,
    entries: Arc<Vec<LaunchEntry>>,
    /// Blocks by file, in order of position.
    pieces: Arc<HashMap<NodeId, Vec<Range<u64>>>>,
}

struct ReceiverRef(Weak<dyn Arrivals>);

impl std::fmt::Debug for ReceiverRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Arrivals")
    }
}

impl Default for LaunchState {
    fn default() -> Self {
        Self {
            set: RwLock::default(),
            learned: RwLock::default(),
            receivers: RwLock::default(),
            phase: watch::Sender::new(LaunchPhase::None),
            over: AtomicBool::new(false),
            counters: Counters::default(),
        }
    }
}

impl LaunchState {
    fn learn(&self, of: &LaunchRef, entries: Vec<LaunchEntry>) -> Arc<Vec<LaunchEntry>> {
        let mut pieces: HashMap<NodeId, Vec<Range<u64>>> = HashMap::new();
        for entry in &entries {
            if let LaunchEntry::Block { node, offset, length, .. } = entry {
                pieces.entry(*node).or_default().push(*offset..*offset + u64::from(*length));
            }
        }
        pieces.values_mut().for_each(|ranges| ranges.sort_by_key(|range| range.start));
        let entries = Arc::new(entries);
        *self.set.write() = Some(Known { of: of.clone(), entries: entries.clone(), pieces: Arc::new(pieces) });
        entries
    }

    fn tell_arrival(&self, node: NodeId, offset: u64, block: &Bytes) {
        for receiver in self.receivers.read().iter() {
            if let Some(receiver) = receiver.0.upgrade() {
                receiver.arrived(node, offset, block);
            }
        }
    }

    fn enter(&self, phase: LaunchPhase) {
        self.phase.send_replace(phase);
    }
}

/// A block on its way to the disk.
struct ToKeep {
    node: NodeId,
    offset: u64,
    blob: Arc<Blob>,
    hash: Hash,
    block: Bytes,
}

/// Why a stream ended before its end.
enum Stop {
    Failed(Error),
    /// It is damaged, or nearly all of it was here already: from this entry on it is better fetched singly.
    Singly(usize),
    /// The mount is gone.
    Abandoned,
}

impl Mount {
    /// Gives `receiver` the blocks of the launch set that come from now on, for as long as it lives.
    pub fn send_arrivals_to(&self, receiver: &Arc<dyn Arrivals>) {
        let mut receivers = self.launch.receivers.write();
        receivers.retain(|known| known.0.strong_count() > 0);
        receivers.push(ReceiverRef(Arc::downgrade(receiver)));
    }

    /// Parts of the file `node` that starting the application reads, by position; empty if none is known.
    pub fn launch_pieces(&self, node: NodeId) -> Vec<Range<u64>> {
        let set = self.launch.set.read();
        let published = set.as_ref().and_then(|set| set.pieces.get(&node).cloned());
        published.or_else(|| self.launch.learned.read().get(&node).cloned()).unwrap_or_default()
    }

    /// Adds to what is known of the launch from elsewhere than the version itself, such as a recording made on this
    /// machine.
    pub fn learn_launch_pieces(&self, learned: impl IntoIterator<Item = (NodeId, Range<u64>)>) {
        let mut pieces = self.launch.learned.write();
        for (node, piece) in learned {
            let of_file = pieces.entry(node).or_default();
            let at = of_file.partition_point(|known| known.start < piece.start);
            of_file.insert(at, piece);
        }
    }

    /// Whether a launch set is known: then what is read ahead of the application is known better than by guessing.
    pub fn has_launch_set(&self) -> bool {
        !self.descriptor.launch.is_empty() || !self.launch.learned.read().is_empty()
    }

    /// Whether the launch set names a part of `range`: what follows that is known better than by guessing, until the
    /// launch is over.
    pub(super) fn launch_reads(&self, node: NodeId, range: &Range<u64>) -> bool {
        if self.launch.over.load(Ordering::Relaxed) {
            return false;
        }
        let set = self.launch.set.read();
        let Some(pieces) = set.as_ref().and_then(|set| set.pieces.get(&node)) else { return false };
        let first = pieces.partition_point(|piece| piece.end <= range.start);
        pieces.get(first).is_some_and(|piece| piece.start < range.end)
    }

    /// Whether the files that the launch set names parts of are wholly on this machine, as far as can be told without
    /// reading them: then reading more of them than the launch does costs nothing.
    pub fn launch_files_are_here(&self) -> bool {
        let Some(pieces) = self.launch.set.read().as_ref().map(|set| set.pieces.clone()) else { return false };
        pieces.keys().all(|node| {
            let file = self.file(&mut Held::default(), *node);
            file.is_ok_and(|file| file.blob.present_bytes() >= file.allocated)
        })
    }

    /// Tells that the launch is over: from now on what is read is no longer what the launch set says.
    pub fn launch_is_over(&self) {
        self.launch.over.store(true, Ordering::Relaxed);
    }

    /// How bringing the launch set goes, to be waited upon.
    pub fn launch_phase(&self) -> watch::Receiver<LaunchPhase> {
        self.launch.phase.subscribe()
    }

    /// Counters of the launch set.
    pub fn launch_statistics(&self) -> LaunchStatistics {
        let get = |n: &AtomicU64| n.load(Ordering::Relaxed);
        let c = &self.launch.counters;
        let set = self.launch.set.read();
        LaunchStatistics {
            name: set.as_ref().map(|set| set.of.name.clone()).unwrap_or_default(),
            phase: *self.launch.phase.borrow(),
            bytes: set.as_ref().map_or(0, |set| set.of.bytes),
            bytes_received: get(&c.bytes_received),
            entries: set.as_ref().map_or(0, |set| set.entries.len() as u64),
            entries_here: get(&c.here),
            entries_waited_for: get(&c.waited_for),
            bytes_repeated: get(&c.repeated),
        }
    }

    /// Begins to bring a launch set, unless one is being brought already. Returns at once.
    ///
    /// # Errors
    /// `NotFound` if the version has none of that name.
    pub fn start_launch(self: &Arc<Self>, choice: &LaunchChoice) -> Result<()> {
        let sets = &self.descriptor.launch;
        let of = match choice {
            LaunchChoice::Off => return Ok(()),
            LaunchChoice::First => match sets.first() {
                Some(first) => first,
                None => return Ok(()),
            },
            LaunchChoice::Named(name) => sets.iter().find(|set| set.name == *name).ok_or_else(|| {
                let names: Vec<&str> = sets.iter().map(|set| set.name.as_str()).collect();
                let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
                let version = &self.identity.version;
                Error::InvalidInput(format!("version {version} has no launch set {name:?}; it has: {names}"))
            })?,
        };
        let started = self.launch.phase.send_if_modified(|phase| {
            let start = !phase.is_under_way();
            if start {
                *phase = LaunchPhase::Streaming;
            }
            start
        });
        if started {
            self.launch.over.store(false, Ordering::Relaxed);
            self.launch.counters.here.store(0, Ordering::Relaxed);
            // Known before anything else is asked for: those who ask wait for it rather than fetch by themselves.
            let stream = Arriving::new();
            self.fetcher.expect(&stream);
            let work = bring(Arc::downgrade(self), self.fetcher.clone(), of.clone(), stream);
            self.fetcher.runtime().spawn(work);
        }
        Ok(())
    }

    /// Where the block that `entry` speaks of belongs, and its hash; `None` if the tree says otherwise or its pages
    /// are not here.
    fn place_of(&self, held: &mut Held, entry: &LaunchEntry) -> std::result::Result<Option<Wanted>, Need> {
        let LaunchEntry::Block { node, offset, length, prefix } = *entry else { return Ok(None) };
        let file = self.file(held, node)?;
        let extents = self.extents(held, file.id, &(offset..offset + u64::from(length)))?;
        match &extents[..] {
            [only] if only.file_offset == offset && only.length == length && hash_prefix(&only.hash) == prefix => {
                self.wanted(only, Some((file.blob.clone(), offset))).map(Some).map_err(Need::Failed)
            }
            _ => Ok(None),
        }
    }
}

/// Brings one launch set, by the way that costs least.
async fn bring(mount: Weak<Mount>, fetcher: Arc<Fetcher>, of: LaunchRef, stream: Arc<Arriving>) {
    let begun = Instant::now();
    let outcome = match known_index(&mount, &of) {
        Some(entries) if mostly_here(&mount, &entries).await => Err(Stop::Singly(0)),
        Some(_) | None => receive(&mount, &fetcher, &of, &stream).await,
    };
    fetcher.stream_over(&stream);
    let Some(mount) = mount.upgrade() else { return };
    let phase = match outcome {
        Ok(()) => LaunchPhase::Complete,
        Err(Stop::Abandoned) => return,
        Err(Stop::Singly(from)) => {
            mount.launch.enter(LaunchPhase::Completing);
            // What came after that is counted when it is looked at again.
            mount.launch.counters.here.store(from as u64, Ordering::Relaxed);
            complete(&mount, from).await
        }
        Err(Stop::Failed(error)) => {
            tracing::warn!(set = of.name, %error, "the launch set of {} cannot be had; reads go on without it", mount.identity.package_key());
            LaunchPhase::Failed
        }
    };
    tracing::debug!(set = of.name, ?phase, ms = begun.elapsed().as_millis() as u64, "launch set brought");
    mount.launch.enter(phase);
}

fn index_blob(mount: &Mount, of: &LaunchRef) -> Arc<Blob> {
    let mut hasher = blake3::Hasher::new_derive_key("streamfs 1 cached launch index");
    hasher.update(&of.index.hash.0);
    let length = u64::from(of.index.length);
    mount.fetcher.cache().blob(Hash(*hasher.finalize().as_bytes()), length, length)
}

/// The index, if this machine has it.
fn known_index(mount: &Weak<Mount>, of: &LaunchRef) -> Option<Arc<Vec<LaunchEntry>>> {
    let mount = mount.upgrade()?;
    let blob = index_blob(&mount, of);
    let bytes = mount.fetcher.cache().on_disk(&blob, 0, of.index.length, &of.index.hash)?;
    let entries = mount.entries_of(of, &bytes, &of.path().to_string()).ok()?;
    Some(mount.launch.learn(of, entries))
}

/// Whether most of what a few entries speak of is on this machine.
async fn mostly_here(mount: &Weak<Mount>, entries: &Arc<Vec<LaunchEntry>>) -> bool {
    let (mount, entries) = (mount.clone(), entries.clone());
    let looked = tokio::task::spawn_blocking(move || {
        let Some(mount) = mount.upgrade() else { return false };
        let step = (entries.len() / SAMPLES).max(1);
        let samples: Vec<_> = entries.iter().step_by(step).collect();
        let here = samples.iter().filter(|entry| mount.is_here(entry)).count();
        here * 2 > samples.len()
    });
    looked.await.unwrap_or(false)
}

impl Mount {
    /// The entries of a launch set, all of which speak of this version.
    fn entries_of(&self, of: &LaunchRef, index: &[u8], whence: &str) -> Result<Vec<LaunchEntry>> {
        let entries = parse_index(index, whence)?;
        let tree = &self.descriptor.tree;
        let roots = [PageTreeKind::Nodes, PageTreeKind::Extents].map(|kind| self.layout.root(kind));
        let fits = |entry: &LaunchEntry| match entry {
            LaunchEntry::Page(page) => {
                let end = page.offset.checked_add(u64::from(page.sum.stored));
                // Two versions of one root are the same.
                let mut roots = roots.iter().flatten().map(|(root, _)| root);
                page.number < self.layout.pages()
                    && end.is_some_and(|end| end <= tree.bytes)
                    && roots.all(|root| root.number != page.number || root == page)
            }
            LaunchEntry::Block { node, .. } => node.0 <= self.totals.nodes,
        };
        if entries.iter().map(|entry| u64::from(entry.length())).sum::<u64>() != of.body || !entries.iter().all(fits) {
            return Err(Error::damaged(whence, "its index speaks of another version"));
        }
        Ok(entries)
    }

    fn is_here(&self, entry: &LaunchEntry) -> bool {
        let wanted = match *entry {
            LaunchEntry::Page(address) => Some(self.pages.wanted(&address)),
            LaunchEntry::Block { .. } => self.place_of(&mut Held::default(), entry).ok().flatten(),
        };
        wanted.is_some_and(|wanted| self.fetcher.on_disk(&wanted).is_some())
    }
}

/// Streams the launch object.
async fn receive(
    mount: &Weak<Mount>,
    fetcher: &Arc<Fetcher>,
    of: &LaunchRef,
    stream: &Arc<Arriving>,
) -> std::result::Result<(), Stop> {
    let object = of.path();
    let whence = object.to_string();
    fetcher.count_request();
    let read = fetcher.backend().read_range(&object, 0..of.bytes, ReadOptions::default());
    let mut pieces = unless_gone(mount, fetcher.within(&object, read)).await?;
    let mut head = BytesMut::new();
    let mut worker: Option<Worker> = None;
    loop {
        let asked = Instant::now();
        let Some(piece) = unless_gone(mount, fetcher.within(&object, pieces.try_next())).await? else { break };
        let waited = asked.elapsed();
        fetcher.count_bytes(piece.len() as u64);
        let Some(alive) = mount.upgrade() else { return Err(Stop::Abandoned) };
        alive.launch.counters.bytes_received.fetch_add(piece.len() as u64, Ordering::Relaxed);
        let body = match &worker {
            Some(_) => piece,
            None => {
                head.extend_from_slice(&piece);
                if head.len() < of.index.stored as usize {
                    continue;
                }
                let index = head.split_to(of.index.stored as usize).freeze();
                let entries = read_index(&alive, of, &index, &whence).map_err(Stop::Failed)?;
                fetcher.stream_ordered(stream, &entries);
                worker = Some(Worker::start(mount.clone(), fetcher.clone(), entries, stream.clone(), whence.clone()));
                std::mem::take(&mut head).freeze()
            }
        };
        drop(alive);
        if let Some(worker) = &worker
            && worker.pieces.send(body).await.is_err()
        {
            break;
        }
        fetcher.give_way(waited).await;
    }
    match worker {
        Some(worker) => worker.finish().await,
        None => Err(Stop::Failed(Error::damaged(whence, "it is shorter than its index"))),
    }
}

/// Waits for a step of a transfer, or for the end of the mount that it is for.
async fn unless_gone<T>(mount: &Weak<Mount>, step: impl Future<Output = Result<T>>) -> std::result::Result<T, Stop> {
    let mut phase = mount.upgrade().ok_or(Stop::Abandoned)?.launch_phase();
    let gone = async { while phase.changed().await.is_ok() {} };
    tokio::select! {
        step = step => step.map_err(Stop::Failed),
        () = gone => Err(Stop::Abandoned),
    }
}

fn read_index(mount: &Mount, of: &LaunchRef, stored: &Bytes, whence: &str) -> Result<Arc<Vec<LaunchEntry>>> {
    let bytes =
        block::decode(stored, of.index.length as usize, &of.index.hash, LAUNCH_INDEX_MAX_BYTES, &|| whence.to_owned())?;
    let entries = mount.entries_of(of, &bytes, whence)?;
    // Failing to keep it costs a request at the next launch.
    mount.fetcher.cache().store(&index_blob(mount, of), 0, &of.index.hash, &bytes);
    Ok(mount.launch.learn(of, entries))
}

/// The threads behind a stream: one decodes, verifies and hands out, the other writes to disk.
struct Worker {
    pieces: tokio::sync::mpsc::Sender<Bytes>,
    ended: tokio::task::JoinHandle<std::result::Result<(), Stop>>,
}

impl Worker {
    fn start(
        mount: Weak<Mount>,
        fetcher: Arc<Fetcher>,
        entries: Arc<Vec<LaunchEntry>>,
        stream: Arc<Arriving>,
        whence: String,
    ) -> Self {
        let (pieces, queue) = tokio::sync::mpsc::channel(PIECES_WAITING_MAX);
        let (keep, to_keep) = sync_channel(WAITING_FOR_DISK_MAX);
        let keeper = {
            let mount = mount.clone();
            tokio::task::spawn_blocking(move || keep_blocks(&mount, &to_keep))
        };
        let (next, missing, probing, fresh, repeated) = (0, None, true, 0, 0);
        let decode = Decode { mount, fetcher, entries, stream, keep, next, missing, probing, fresh, repeated };
        let decoder = tokio::task::spawn_blocking(move || decode.run(queue, &whence));
        let ended = tokio::spawn(async move {
            let outcome = decoder.await.unwrap_or(Err(Stop::Failed(Error::Cancelled)));
            // The decoder has closed its end.
            let _ = keeper.await;
            outcome
        });
        Self { pieces, ended }
    }

    async fn finish(self) -> std::result::Result<(), Stop> {
        drop(self.pieces);
        self.ended.await.unwrap_or(Err(Stop::Failed(Error::Cancelled)))
    }
}

struct Decode {
    mount: Weak<Mount>,
    fetcher: Arc<Fetcher>,
    entries: Arc<Vec<LaunchEntry>>,
    stream: Arc<Arriving>,
    keep: SyncSender<ToKeep>,
    next: usize,
    /// The first entry that did not come as it should be.
    missing: Option<usize>,
    /// Whether it is still to be found out if most of it is here.
    probing: bool,
    /// Bytes that were not here, and bytes that were.
    fresh: u64,
    repeated: u64,
}

impl Decode {
    fn run(mut self, mut queue: tokio::sync::mpsc::Receiver<Bytes>, whence: &str) -> std::result::Result<(), Stop> {
        let mut decoder = BodyDecoder::new(&self.entries, whence).map_err(Stop::Failed)?;
        let entries = self.entries.clone();
        while let Some(piece) = queue.blocking_recv() {
            let Some(mount) = self.mount.upgrade() else { return Err(Stop::Abandoned) };
            let fed = decoder.feed(&piece, &mut |index, bytes| self.entry(&mount, index, &entries[index], bytes));
            if let Err(error) = fed {
                tracing::warn!(%error, "a launch stream came damaged; its blocks are fetched singly");
                return Err(Stop::Singly(self.whole_until()));
            }
            if self.probing && self.fresh + self.repeated >= PROBE_BYTES {
                self.probing = false;
                if self.repeated * 10 > (self.fresh + self.repeated) * 7 {
                    return Err(Stop::Singly(self.whole_until()));
                }
            }
        }
        // What broke off is told by the stream; what is merely short or damaged here and there, here.
        if self.whole_until() < entries.len() { Err(Stop::Singly(self.whole_until())) } else { Ok(()) }
    }

    /// All entries before this one came as they should be.
    fn whole_until(&self) -> usize {
        self.missing.unwrap_or(self.next)
    }

    fn entry(&mut self, mount: &Arc<Mount>, index: usize, entry: &LaunchEntry, bytes: Bytes) {
        self.next = index + 1;
        let counters = &mount.launch.counters;
        let hash = Hash::of(&bytes);
        let waited = match entry {
            LaunchEntry::Page(address) => {
                let good = hash == address.sum.hash;
                let stored = good && self.fetcher.keep(&mount.pages.wanted(address), &bytes);
                if good {
                    counters.here.fetch_add(1, Ordering::Relaxed);
                } else {
                    self.missing.get_or_insert(index);
                }
                self.fetcher.stream_brought(&self.stream, index, good.then_some((hash, &bytes)), !stored)
            }
            LaunchEntry::Block { node, offset, .. } => {
                let place = mount.place_of(&mut Held::default(), entry).ok().flatten();
                let Some(place) = place.filter(|place| place.hash == hash) else {
                    // Whoever waits knows the hash from the tree, and is served if it is that.
                    self.missing.get_or_insert(index);
                    self.fetcher.stream_brought(&self.stream, index, Some((hash, &bytes)), false);
                    return;
                };
                let waited = self.fetcher.stream_brought(&self.stream, index, Some((hash, &bytes)), true);
                if let Some((blob, offset_in_blob)) = place.home {
                    debug_assert_eq!(offset_in_blob, *offset);
                    let length = bytes.len() as u64;
                    // Looking for copies in other files costs as much as storing one.
                    let known = match self.probing {
                        true => self.fetcher.cache().on_disk(&blob, *offset, length as u32, &hash).is_some(),
                        false => blob.is_verified(&(*offset..*offset + length)),
                    };
                    *(if known { &mut self.repeated } else { &mut self.fresh }) += length;
                    if known {
                        counters.repeated.fetch_add(length, Ordering::Relaxed);
                    }
                    let to_keep = ToKeep { node: *node, offset: *offset, blob, hash, block: bytes };
                    // The keeper ends only with this thread.
                    let _ = self.keep.send(to_keep);
                }
                waited
            }
        };
        if waited {
            counters.waited_for.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn keep_blocks(mount: &Weak<Mount>, queue: &Receiver<ToKeep>) {
    while let Ok(ToKeep { node, offset, blob, hash, block }) = queue.recv() {
        let Some(mount) = mount.upgrade() else { return };
        mount.launch.tell_arrival(node, offset, &block);
        mount.fetcher.cache().store(&blob, offset, &hash, &block);
        mount.launch.counters.here.fetch_add(1, Ordering::Relaxed);
    }
}

/// Brings entries singly, from `first` on, those on this machine from its disk.
async fn complete(mount: &Arc<Mount>, first: usize) -> LaunchPhase {
    let Some(entries) = mount.launch.set.read().as_ref().map(|set| set.entries.clone()) else {
        return LaunchPhase::Failed;
    };
    let weak = Arc::downgrade(mount);
    let chunks = (first..entries.len()).step_by(ENTRIES_AT_ONCE);
    let work = chunks.map(|start| {
        let chunk = start..(start + ENTRIES_AT_ONCE).min(entries.len());
        complete_some(weak.clone(), entries.clone(), chunk)
    });
    let mut done = futures::stream::iter(work).buffered(CHUNKS_AT_ONCE);
    let mut whole = true;
    while let Some(here) = done.next().await {
        whole &= here;
    }
    if whole { LaunchPhase::Complete } else { LaunchPhase::Failed }
}

async fn complete_some(mount: Weak<Mount>, entries: Arc<Vec<LaunchEntry>>, chunk: Range<usize>) -> bool {
    let mut wanted = Vec::new();
    let mut whole = true;
    for entry in &entries[chunk] {
        let Some(mount) = mount.upgrade() else { return false };
        match *entry {
            LaunchEntry::Page(address) => wanted.push((None, mount.pages.wanted(&address))),
            LaunchEntry::Block { node, offset, .. } => {
                let entry = *entry;
                match mount.answer(move |this, held| this.place_of(held, &entry)).wait().await {
                    Ok(Some(place)) => wanted.push((Some((node, offset)), place)),
                    // The tree has no such block.
                    Ok(None) => whole = false,
                    Err(_) => return false,
                }
            }
        }
    }
    let Some(mount) = mount.upgrade() else { return false };
    let (places, wanted): (Vec<_>, Vec<_>) = wanted.into_iter().unzip();
    let Ok(blocks) = mount.fetcher.get(wanted, Urgency::Background).await else { return false };
    for (place, block) in places.iter().zip(&blocks) {
        mount.launch.counters.here.fetch_add(1, Ordering::Relaxed);
        if let Some((node, offset)) = place {
            mount.launch.tell_arrival(*node, *offset, block);
        }
    }
    whole
}
