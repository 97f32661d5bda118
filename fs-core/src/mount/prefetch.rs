//! Launches of which no publisher's launch set tells what they read.
//!
//! What an earlier launch on this machine read is brought in that order, as soon as the version is mounted. Where
//! there was none, reads that have to wait are watched. When they look like a program that starts, the line is not left
//! idle while they are: what stands near to what is read is brought too ([`plan`]), about as much at a time as the line
//! carries in a round trip ([`window`]). It ends when the reads pause or the budget is spent.
//!
//! Nothing is brought that something else would have to be evicted for.

pub(super) mod plan;
mod window;

#[cfg(test)]
mod tests;

use std::collections::{HashSet, VecDeque};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::future::OptionFuture;
use futures::stream::FuturesUnordered;
use lru::LruCache;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};

use self::plan::{Kind, PathRange, Plan};
use self::window::Window;
use super::Mount;
use super::learn::{LearnedSets, Learner};
use super::observe::{Observed, Observer, Operation};
pub use crate::config::Prefetch;
use crate::fetch::{Fetcher, Source, Urgency, Wanted};
use crate::package::NodeId;

/// Bytes of a version that one launch may bring without being asked, unless told otherwise: more than any launch
/// measured reads, less than a minute of 100 Mbit/s.
pub const DEFAULT_BUDGET_BYTES: u64 = 512 << 20;
/// A launch is over when nothing was asked for this long.
pub const DEFAULT_QUIET: Duration = Duration::from_secs(3);

/// Stored bytes of one piece.
const PIECE_BYTES: u64 = 256 << 10;
/// Different files that reads waited for within [`START_WITHIN`] look like a program that starts.
const START_FILES: usize = 4;
const START_WITHIN: Duration = Duration::from_secs(3);
/// After what was learned has been brought, so many must be missing before more is brought.
const START_FILES_LEARNED: usize = 16;
/// On a line with shorter round trips, waiting costs less than bringing what is not read.
const FAR: Duration = Duration::from_millis(15);
/// Reads that waited and were not looked at yet.
const TOUCHED_MAX: usize = 1024;
/// Nodes whose directories and kinds are remembered.
const NAMES_MAX: NonZeroUsize = NonZeroUsize::new(1 << 16).expect("it is not zero");

/// How launches without a publisher's launch set are helped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrefetchPolicy {
    /// Whether anything is brought that nobody asked for.
    pub prefetch: Prefetch,
    /// Whether launches are recorded, and recordings used.
    pub learn: bool,
    /// Most stored bytes that one launch may bring unasked.
    pub budget_bytes: u64,
    /// A launch is over when nothing was asked for this long.
    pub quiet: Duration,
}

impl Default for PrefetchPolicy {
    fn default() -> Self {
        Self { prefetch: Prefetch::Launch, learn: true, budget_bytes: DEFAULT_BUDGET_BYTES, quiet: DEFAULT_QUIET }
    }
}

/// What was done for launches of one mount.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrefetchStatistics {
    /// Ranges of earlier launches on this machine that were used.
    pub learned_ranges: u64,
    /// Stored bytes that were brought unasked.
    pub bytes: u64,
    /// Launches that were noticed by their reads.
    pub launches_noticed: u64,
    /// Whether something is being brought at present.
    pub active: bool,
    /// Whether a launch of this mount was learned.
    pub learned_now: bool,
}

/// What is known of the reads of one mount, and done about it.
#[derive(Debug)]
pub(super) struct Assistance {
    began: Instant,
    policy: PrefetchPolicy,
    gone: AtomicBool,
    /// Something that waited is to be looked at, or the mount is gone.
    news: Notify,
    /// Content was read for the first time.
    pub(super) first_read: Notify,
    reads: AtomicU64,
    last_read_ms: AtomicU64,
    touched: Mutex<VecDeque<Touched>>,
    /// In which directory each node was found, and what kind of file its name promises.
    names: Mutex<LruCache<NodeId, (NodeId, Kind)>>,
    learned_ranges: AtomicU64,
    bytes: AtomicU64,
    work: watch::Sender<Work>,
    pub(super) learned_now: watch::Sender<bool>,
}

/// What is being done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Work {
    launches: u64,
    active: bool,
    learned_brought: bool,
}

/// A read that had to wait.
#[derive(Debug, Clone, Copy)]
struct Touched {
    node: NodeId,
    offset: u64,
    at: Instant,
    /// For how long it waited for its own fetch.
    origin: Option<Duration>,
}

/// Watches a mount for as long as the mount lives.
struct Watching(Arc<Assistance>);

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.gone.store(true, Ordering::Release);
        self.0.news.notify_one();
        self.0.first_read.notify_one();
    }
}

impl Observer for Watching {
    fn observed(&self, event: &Observed) {
        self.0.note(event);
    }
}

impl Assistance {
    fn new(policy: PrefetchPolicy) -> Arc<Self> {
        Arc::new(Self {
            began: Instant::now(),
            policy,
            gone: AtomicBool::new(false),
            news: Notify::new(),
            first_read: Notify::new(),
            reads: AtomicU64::new(0),
            last_read_ms: AtomicU64::new(0),
            touched: Mutex::default(),
            names: Mutex::new(LruCache::new(NAMES_MAX)),
            learned_ranges: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            work: watch::Sender::default(),
            learned_now: watch::Sender::default(),
        })
    }

    pub(super) fn statistics(&self) -> PrefetchStatistics {
        let work = *self.work.borrow();
        PrefetchStatistics {
            learned_ranges: self.learned_ranges.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            launches_noticed: work.launches,
            active: work.active,
            learned_now: *self.learned_now.borrow(),
        }
    }

    pub(super) fn policy(&self) -> &PrefetchPolicy {
        &self.policy
    }

    /// Whether the mount is gone.
    pub(super) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// For how long no content was read.
    pub(super) fn quiet_for(&self) -> Duration {
        let last = Duration::from_millis(self.last_read_ms.load(Ordering::Relaxed));
        self.began.elapsed().saturating_sub(last)
    }

    fn note(&self, event: &Observed) {
        match &event.operation {
            Operation::Lookup { parent, name, found: Some(node) } => {
                self.names.lock().put(*node, (*parent, Kind::of(name)));
            }
            Operation::List { dir, entries } => {
                let mut names = self.names.lock();
                for (name, node) in entries {
                    names.put(*node, (*dir, Kind::of(name)));
                }
            }
            Operation::Read { node, offset, .. } => {
                let at = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
                self.last_read_ms.store(at, Ordering::Relaxed);
                if self.reads.fetch_add(1, Ordering::Relaxed) == 0 {
                    self.first_read.notify_one();
                }
                if matches!(event.waits.farthest, Some(Source::Origin | Source::UnderWay)) {
                    let origin = event.waits.farthest == Some(Source::Origin);
                    let origin = origin.then_some(event.waits.blocks).filter(|waited| !waited.is_zero());
                    let mut touched = self.touched.lock();
                    if touched.len() < TOUCHED_MAX {
                        touched.push_back(Touched { node: *node, offset: *offset, at: Instant::now(), origin });
                    }
                    self.news.notify_one();
                }
            }
            _ => {}
        }
    }

    fn name(&self, node: NodeId) -> Option<(NodeId, Kind)> {
        self.names.lock().get(&node).copied()
    }
}

/// Begins to help launches of `mount`, unless that is being done.
pub(super) fn begin(mount: &Arc<Mount>, policy: PrefetchPolicy, learned: &Arc<LearnedSets>) {
    if policy.prefetch == Prefetch::None && !policy.learn {
        return;
    }
    let assistance = Assistance::new(policy);
    if mount.assistance.set(assistance.clone()).is_err() {
        return;
    }
    mount.watch(Arc::new(Watching(assistance.clone())));
    if policy.learn {
        Learner::begin(mount, assistance.clone(), learned.clone());
    }
    if policy.prefetch == Prefetch::Launch {
        let (mount, fetcher, learned) = (Arc::downgrade(mount), mount.fetcher.clone(), learned.clone());
        fetcher.runtime().spawn(async move { attend(mount, assistance, learned).await });
    }
}

/// Brings what was learned, then helps launches as they are noticed.
async fn attend(mount: Weak<Mount>, assistance: Arc<Assistance>, learned: Arc<LearnedSets>) {
    let mut start_files = START_FILES;
    let package = mount.upgrade().map(|mount| mount.identity.package_key());
    if let Some(package) = package.filter(|_| assistance.policy.learn) {
        let ranges = learned.ranges(&package).await;
        if let Some(run) = mount.upgrade().filter(|_| !ranges.is_empty()).map(|mount| Run::new(&mount, &assistance)) {
            start_files = START_FILES_LEARNED;
            bring_learned(run, ranges).await;
        }
    }
    let mut recent: Vec<Touched> = Vec::new();
    loop {
        assistance.news.notified().await;
        if assistance.is_gone() {
            return;
        }
        let Some(mount) = mount.upgrade() else { return };
        recent.extend(assistance.touched.lock().drain(..));
        recent.retain(|touched| touched.at.elapsed() < START_WITHIN);
        let files: HashSet<NodeId> = recent.iter().map(|touched| touched.node).collect();
        if files.len() >= start_files || (start_files == START_FILES && is_program(&mount, &recent).await) {
            assistance.work.send_modify(|work| (work.launches, work.active) = (work.launches + 1, true));
            let run = Run::new(&mount, &assistance);
            drop(mount);
            let work = bring_near(run, std::mem::take(&mut recent));
            if let Err(error) = work.await {
                tracing::debug!(%error, "a launch is left to itself");
            }
            assistance.work.send_modify(|work| work.active = false);
        }
    }
}

/// Whether one of the reads was of the beginning of a file that can be executed.
async fn is_program(mount: &Arc<Mount>, recent: &[Touched]) -> bool {
    for touched in recent.iter().filter(|touched| touched.offset == 0) {
        if mount.node(touched.node).wait().await.is_ok_and(|node| node.mode & 0o111 != 0) {
            return true;
        }
    }
    false
}

async fn bring_learned(mut run: Run<'_>, ranges: Vec<PathRange>) {
    let assistance = run.assistance;
    assistance.learned_ranges.store(ranges.len() as u64, Ordering::Relaxed);
    assistance.work.send_modify(|work| work.active = true);
    run.plan.add_learned(ranges);
    loop {
        let goes_on = run.fill().await;
        match run.under_way.next().await {
            Some(done) => run.came(done),
            None if goes_on.is_ok_and(|more| more) => {}
            None => break,
        }
    }
    assistance.work.send_modify(|work| (work.active, work.learned_brought) = (false, true));
}

/// Brings what stands near to what is read, until the reads pause.
async fn bring_near(mut run: Run<'_>, first: Vec<Touched>) -> crate::Result<()> {
    let assistance = run.assistance;
    run.take_in(first);
    let mut far = false;
    let mut nothing_left = false;
    let mut reads_index = false;
    let mut index = OptionFuture::default();
    loop {
        let touched: Vec<Touched> = assistance.touched.lock().drain(..).collect();
        nothing_left &= touched.is_empty();
        run.take_in(touched);
        if !far && run.window.round_trip().is_some_and(|shortest| shortest >= FAR) {
            far = true;
            nothing_left = false;
            run.plan.is_far();
        }
        let quiet = assistance.quiet_for();
        if quiet >= assistance.policy.quiet || assistance.is_gone() || run.is_spent() {
            return Ok(());
        }
        if !nothing_left {
            nothing_left = !run.fill().await?;
        }
        if !reads_index && let Some(read) = run.plan.wants_index() {
            reads_index = true;
            index = Some(Box::pin(read)).into();
        }
        tokio::select! {
            Some(files) = &mut index => {
                index = OptionFuture::default();
                run.plan.know(files?);
                nothing_left = false;
            }
            Some(done) = run.under_way.next(), if !run.under_way.is_empty() => run.came(done),
            () = assistance.news.notified() => {}
            () = tokio::time::sleep(assistance.policy.quiet.saturating_sub(quiet)) => {}
        }
    }
}

/// What came of one piece: when it was asked for, its stored bytes, and if it came, how many of them crossed the line.
type Done = (Instant, u64, crate::Result<u64>);

/// Bringing pieces, as many at a time as the line carries.
struct Run<'a> {
    fetcher: Arc<Fetcher>,
    assistance: &'a Assistance,
    plan: Plan,
    window: Window,
    under_way: FuturesUnordered<futures::future::BoxFuture<'static, Done>>,
    under_way_bytes: u64,
    budget_bytes: u64,
    failed: bool,
}

impl<'a> Run<'a> {
    fn new(mount: &Arc<Mount>, assistance: &'a Assistance) -> Self {
        let budget_bytes = assistance.policy.budget_bytes;
        let (fetcher, plan) = (mount.fetcher.clone(), Plan::new(mount));
        let (window, under_way) = (Window::new(), FuturesUnordered::new());
        Self { fetcher, assistance, plan, window, under_way, under_way_bytes: 0, budget_bytes, failed: false }
    }

    fn take_in(&mut self, touched: Vec<Touched>) {
        for Touched { node, offset, at, origin } in touched {
            self.plan.touched(node, offset, self.assistance.name(node));
            if let Some(waited) = origin {
                self.window.demand(at, waited);
            }
        }
    }

    /// Whether no more may be brought.
    fn is_spent(&self) -> bool {
        self.failed || self.budget_bytes < PIECE_BYTES
    }

    /// Asks for as much as may be under way; `false` if there is nothing more to ask for.
    async fn fill(&mut self) -> crate::Result<bool> {
        while !self.is_spent() && self.under_way_bytes + PIECE_BYTES <= self.window.bytes() {
            // Uncompressed it is longer; four times is rare.
            if self.fetcher.cache().room_bytes() < self.under_way_bytes + 4 * PIECE_BYTES {
                tracing::debug!("the cache has no room for what was not asked for");
                self.failed = true;
                return Ok(false);
            }
            let Some(piece) = self.plan.next(PIECE_BYTES).await? else { return Ok(false) };
            self.ask(piece);
        }
        Ok(!self.is_spent())
    }

    fn ask(&mut self, piece: Vec<Wanted>) {
        let bytes: u64 = piece.iter().map(|w| u64::from(w.stored)).sum();
        self.budget_bytes = self.budget_bytes.saturating_sub(bytes);
        self.under_way_bytes += bytes;
        let fetcher = self.fetcher.clone();
        let asked = Instant::now();
        let work = async move {
            let stored: Vec<u64> = piece.iter().map(|wanted| u64::from(wanted.stored)).collect();
            let came = fetcher.get_with_source(piece, Urgency::Expected).await;
            let from_origin = |(length, (_, source))| if source == Source::Origin { length } else { 0 };
            (asked, bytes, came.map(|blocks| stored.into_iter().zip(blocks).map(from_origin).sum()))
        };
        self.under_way.push(Box::pin(work));
    }

    fn came(&mut self, (asked, bytes, result): Done) {
        self.under_way_bytes -= bytes;
        match result {
            Ok(crossed) => {
                self.assistance.bytes.fetch_add(bytes, Ordering::Relaxed);
                // What was here or half-way already says nothing of the line's round trip.
                let took = (crossed == bytes).then(|| asked.elapsed());
                self.window.piece(Instant::now(), crossed, took);
            }
            Err(error) => {
                // Whoever reads there will be told.
                tracing::debug!(%error, "nothing more is brought unasked");
                self.failed = true;
            }
        }
    }
}
