//! Launch streams: bringing a launch set in its own order, ahead of the application that needs it.
//!
//! Nothing waits for a launch stream but what it is about to bring. Its first entries are the pages that mounting
//! itself needs, so a mount with a launch set costs no request more. Where `head` brought its beginning along, the request
//! for the rest is under way while that arrives.

mod known;
mod pieces;
mod stream;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use parking_lot::RwLock;
use serde::Serialize;
use tokio::sync::watch;

use self::known::Known;
use self::stream::{Stop, receive};
use super::pages::Held;
use super::{Mount, Need};
use crate::backend::{LaunchReport, LaunchWish};
use crate::cache::Blob;
use crate::error::{Error, Result};
use crate::fetch::arriving::Arriving;
use crate::fetch::{Fetcher, Urgency, Wanted};
use crate::location::PackageLocation;
use crate::package::descriptor::LaunchRef;
use crate::package::launch::{LaunchEntry, hash_prefix, parse_index};
use crate::package::tree::PageTreeKind;
use crate::package::{Hash, NodeId};
use crate::trust::tail::Tail;

/// Entries that are looked at to tell whether most of a launch set is on this machine.
const SAMPLES: usize = 48;
/// How many such groups are under way.
const CHUNKS_AT_ONCE: usize = 4;
/// Asking for a page that is here takes about as long, once through the kernel, while the machine has other things to do.
const ASKING_PER_PAGE: Duration = Duration::from_micros(80);
/// Unit in which systems ask for what they map.
const PAGE_BYTES: u64 = 4096;
/// Whoever opens a file will read it at once: so long a wait costs nothing.
const NEAR_AT_OPEN: Duration = Duration::from_millis(50);
/// Nobody who opens a file is held longer.
const AT_OPEN_MAX: Duration = Duration::from_secs(3);
/// Entries asked for together when a launch set is brought by single ranges.
const ENTRIES_AT_ONCE: usize = 64;

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

impl LaunchChoice {
    /// What an origin is told of it.
    pub(super) fn wish(&self, location: &PackageLocation) -> Option<LaunchWish> {
        let set = match self {
            LaunchChoice::First => None,
            LaunchChoice::Named(name) => Some(name.clone()),
            LaunchChoice::Off => return None,
        };
        Some(LaunchWish { selector: location.selector.clone(), set })
    }
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
    /// It could not be had whole, or was of no use. Reads fetch what they need by themselves.
    Failed,
}

impl LaunchPhase {
    /// Whether parts of the launch set are still to come.
    pub fn is_under_way(self) -> bool {
        matches!(self, LaunchPhase::Streaming | LaunchPhase::Completing)
    }
}

/// Counters of a mount's launch set.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
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
    /// Bytes of its blocks that were read, or handed to the system when their file was opened, uncompressed.
    pub bytes_used: u64,
    /// Bytes of its blocks that were not: when the launch is over, this was wasted.
    pub bytes_unused: u64,
    /// Bytes that were read before the launch was over and are not in the set.
    pub bytes_outside: u64,
    /// Part of what the launch read that was in the set, from 0 to 1; none before anything was read.
    pub hit_rate: Option<f64>,
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
    set: RwLock<Option<Arc<Known>>>,
    /// Parts of files that launches read, known otherwise.
    learned: RwLock<HashMap<NodeId, Vec<Range<u64>>>>,
    receivers: RwLock<Vec<ReceiverRef>>,
    /// What brings it now.
    stream: RwLock<Weak<Arriving>>,
    phase: watch::Sender<LaunchPhase>,
    over: AtomicBool,
    counters: Counters,
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
            stream: RwLock::default(),
            phase: watch::Sender::new(LaunchPhase::None),
            over: AtomicBool::new(false),
            counters: Counters::default(),
        }
    }
}

impl LaunchState {
    fn learn(&self, of: &LaunchRef, entries: Vec<LaunchEntry>) -> Arc<Vec<LaunchEntry>> {
        let known = Arc::new(Known::new(of.clone(), entries));
        let entries = known.entries.clone();
        *self.set.write() = Some(known);
        entries
    }

    fn known(&self) -> Option<Arc<Known>> {
        self.set.read().clone()
    }

    /// What is known of the set, until the launch is over.
    fn known_while_it_lasts(&self) -> Option<Arc<Known>> {
        if self.over.load(Ordering::Relaxed) { None } else { self.known() }
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

impl Mount {
    /// Gives `receiver` the blocks of the launch set that come from now on, for as long as it lives.
    pub fn send_arrivals_to(&self, receiver: &Arc<dyn Arrivals>) {
        let mut receivers = self.launch.receivers.write();
        receivers.retain(|known| known.0.strong_count() > 0);
        receivers.push(ReceiverRef(Arc::downgrade(receiver)));
    }

    /// Parts of the file `node` that starting the application reads, by position; empty if none is known.
    pub fn launch_pieces(&self, node: NodeId) -> Vec<Range<u64>> {
        let published = self.launch.known().and_then(|set| set.ranges(node).map(<[_]>::to_vec));
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

    /// Whether a launch set is brought or was, or is known otherwise: then what is read ahead of the application is known
    /// better than by guessing.
    pub fn has_launch_set(&self) -> bool {
        *self.launch.phase.borrow() != LaunchPhase::None || !self.launch.learned.read().is_empty()
    }

    /// Whether the launch set names a part of `range`: what follows that is known better than by guessing, until the
    /// launch is over.
    pub(super) fn launch_reads(&self, node: NodeId, range: &Range<u64>) -> bool {
        self.launch.known_while_it_lasts().is_some_and(|set| set.touches(node, range))
    }

    /// Notes that `range` was read, or handed to the system before anybody read it.
    pub(super) fn launch_used(&self, node: NodeId, range: &Range<u64>) {
        if let Some(set) = self.launch.known_while_it_lasts() {
            set.used(node, range);
        }
    }

    /// Waits for what the launch stream brings of the file `node`, where that takes less time than asking for it page by
    /// page afterwards; `None` if it does not, or nothing more comes.
    pub fn launch_arriving(&self, node: NodeId) -> Option<BoxFuture<'static, ()>> {
        let (last, bytes) = self.launch.known_while_it_lasts()?.last_of(node)?;
        let stream = self.launch.stream.read().upgrade()?;
        let expected = stream.expected(last)?;
        let pages = u32::try_from(bytes.div_ceil(PAGE_BYTES)).unwrap_or(u32::MAX);
        let worth = (NEAR_AT_OPEN + ASKING_PER_PAGE.saturating_mul(pages)).min(AT_OPEN_MAX / 2);
        tracing::trace!(node = node.0, bytes, ?expected, ?worth, "a file is opened that the launch stream is bringing");
        (expected <= worth)
            .then(|| -> BoxFuture<'static, ()> { Box::pin(async move { stream.came(last, worth * 2).await }) })
    }

    /// Whether the files that the launch set names parts of are wholly on this machine, as far as can be told without
    /// reading them: then reading more of them than the launch does costs nothing.
    pub fn launch_files_are_here(&self) -> bool {
        let Some(set) = self.launch.known() else { return false };
        set.files().all(|node| {
            let file = self.file(&mut Held::default(), node);
            file.is_ok_and(|file| file.blob.present_bytes() >= file.allocated)
        })
    }

    /// Tells that the application is about to start: until [`Self::launch_is_over`], what is read is what the launch set
    /// says.
    pub fn launch_begins(&self) {
        self.launch.over.store(false, Ordering::Relaxed);
    }

    /// Tells that the launch is over: from now on what is read is no longer what the launch set says.
    pub fn launch_is_over(&self) {
        self.launch.over.store(true, Ordering::Relaxed);
        let Some(took) = self.metrics.launch_is_over() else { return };
        let name = self.launch_statistics().name;
        let report = LaunchReport {
            version: self.descriptor.version.clone(),
            app: (!name.is_empty()).then_some(name),
            ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        };
        let backend = self.fetcher.backend().clone();
        self.fetcher.runtime().spawn(async move {
            if let Err(error) = backend.report_launch(&report).await {
                tracing::debug!(%error, "nobody was told how long a launch took");
            }
        });
    }

    /// How bringing the launch set goes, to be waited upon.
    pub fn launch_phase(&self) -> watch::Receiver<LaunchPhase> {
        self.launch.phase.subscribe()
    }

    /// Counters of the launch set.
    pub fn launch_statistics(&self) -> LaunchStatistics {
        let get = |n: &AtomicU64| n.load(Ordering::Relaxed);
        let c = &self.launch.counters;
        let set = self.launch.known();
        let (used, all, outside) = set.as_ref().map(|set| set.usage()).unwrap_or_default();
        LaunchStatistics {
            name: set.as_ref().map(|set| set.of.name.clone()).unwrap_or_default(),
            phase: *self.launch.phase.borrow(),
            bytes: set.as_ref().map_or(0, |set| set.of.bytes),
            bytes_received: get(&c.bytes_received),
            entries: set.as_ref().map_or(0, |set| set.entries.len() as u64),
            entries_here: get(&c.here),
            entries_waited_for: get(&c.waited_for),
            bytes_repeated: get(&c.repeated),
            bytes_used: used,
            bytes_unused: all - used,
            bytes_outside: outside,
            hit_rate: (used + outside > 0).then(|| used as f64 / (used + outside) as f64),
        }
    }

    /// Begins to bring a launch set, unless one is being brought already. Returns at once.
    ///
    /// # Errors
    /// `NotFound` if the version has none of that name.
    pub fn start_launch(self: &Arc<Self>, choice: &LaunchChoice) -> Result<()> {
        self.start_launch_with(choice, None)
    }

    /// As [`Self::start_launch`]; begins with what came behind `head`, if that is of the same launch object. Otherwise
    /// that is dropped at once.
    ///
    /// # Errors
    /// As [`Self::start_launch`].
    pub(crate) fn start_launch_with(self: &Arc<Self>, choice: &LaunchChoice, tail: Option<Tail>) -> Result<()> {
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
            self.launch.counters.here.store(0, Ordering::Relaxed);
            // Known before anything else is asked for: those who ask wait for it rather than fetch by themselves.
            let stream = Arriving::new();
            self.fetcher.expect(&stream);
            *self.launch.stream.write() = Arc::downgrade(&stream);
            let tail = tail.filter(|tail| pieces::is_beginning(tail, of));
            let work = bring(Arc::downgrade(self), self.fetcher.clone(), of.clone(), stream, tail);
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
async fn bring(mount: Weak<Mount>, fetcher: Arc<Fetcher>, of: LaunchRef, stream: Arc<Arriving>, tail: Option<Tail>) {
    let begun = Instant::now();
    let outcome = match known_index(&mount, &of) {
        Some(entries) if mostly_here(&mount, &entries).await => {
            drop(tail);
            Err(Stop::Singly(0))
        }
        Some(_) | None => receive(&mount, &fetcher, &of, &stream, tail).await,
    };
    fetcher.stream_over(&stream);
    let Some(package) = mount.upgrade().map(|mount| mount.identity.package_key()) else { return };
    let phase = match outcome {
        Ok(()) => LaunchPhase::Complete,
        Err(Stop::Abandoned) => return,
        Err(Stop::Wrong) => {
            tracing::info!(set = of.name, "what is read of {package} is not in its launch set, which is left alone");
            LaunchPhase::Failed
        }
        Err(Stop::Singly(from)) => complete(&mount, from).await,
        Err(Stop::Failed(error)) => {
            tracing::warn!(set = of.name, %error, "the launch set of {package} cannot be had; reads go on without it");
            LaunchPhase::Failed
        }
    };
    let Some(mount) = mount.upgrade() else { return };
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

/// Brings entries singly, from `first` on, those on this machine from its disk.
async fn complete(mount: &Weak<Mount>, first: usize) -> LaunchPhase {
    let known = mount.upgrade().and_then(|mount| {
        mount.launch.enter(LaunchPhase::Completing);
        // What came after that is counted when it is looked at again.
        mount.launch.counters.here.store(first as u64, Ordering::Relaxed);
        mount.launch.known()
    });
    let Some(entries) = known.map(|set| set.entries.clone()) else { return LaunchPhase::Failed };
    let chunks = (first..entries.len()).step_by(ENTRIES_AT_ONCE);
    let work = chunks.map(|start| {
        let chunk = start..(start + ENTRIES_AT_ONCE).min(entries.len());
        complete_some(mount.clone(), entries.clone(), chunk)
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
    let Some(fetcher) = mount.upgrade().map(|mount| mount.fetcher.clone()) else { return false };
    let (places, wanted): (Vec<_>, Vec<_>) = wanted.into_iter().unzip();
    // A mount that goes away meanwhile is not kept for this.
    let Ok(blocks) = fetcher.get(wanted, Urgency::Background).await else { return false };
    let Some(mount) = mount.upgrade() else { return false };
    for (place, block) in places.iter().zip(&blocks) {
        mount.launch.counters.here.fetch_add(1, Ordering::Relaxed);
        if let Some((node, offset)) = place {
            mount.launch.tell_arrival(*node, *offset, block);
        }
    }
    whole
}
