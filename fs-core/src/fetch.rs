//! Fetching: one fetch per block, whoever asks and however many.
//!
//! A caller names the blocks it wants ([`Wanted`]). Those that are being fetched already are waited for; the others
//! are looked for on disk, then fetched, neighbours in one range request. Each block is handed out as soon as its own
//! bytes have arrived and were verified, not when the request ends.
//!
//! Background work (load, read-ahead) starts no request while a demand read is outstanding. What a launch is expected
//! to read soon does not wait for that, or the line would be idle for the round trips of demand reads: whoever asks for
//! it bounds how much of it is under way.

pub(crate) mod arriving;
pub mod pace;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::TryStreamExt;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore, SemaphorePermit, watch};

use self::arriving::Arriving;
use crate::backend::{Backend, ObjectPath, ReadOptions, collect};
use crate::cache::{Blob, Cache};
use crate::error::{Error, Result};
use crate::package::Hash;
use crate::package::block;

/// Demand requests under way at once. HTTP/2 servers commonly allow 100 streams; 32 fill any network in FACTS.
const DEMAND_REQUESTS_MAX: usize = 32;
/// Background requests under way at once.
const BACKGROUND_REQUESTS_MAX: usize = 4;
/// Requests under way at once for what is expected to be read soon: short files, of which many are needed to fill a line.
/// With those for demand still fewer than the 100 streams that HTTP/2 servers commonly allow.
const EXPECTED_REQUESTS_MAX: usize = 64;
/// Longest range of a request that nobody waits for: a demand read that comes while it is under way shares the line
/// with it, so it must be short; at 1 MiB a round trip more or less is not noticed.
const BACKGROUND_RANGE_MAX_BYTES: u64 = 1 << 20;
/// Longest range of one request: bounds what one broken transfer costs and memory that waits for verification.
const RANGE_MAX_BYTES: u64 = 4 << 20;
/// Whoever tries again until the deadline knows why it failed, and is given this long to say so.
const GIVING_UP_MAX: Duration = Duration::from_millis(250);
/// Pauses of a launch stream while demand requests are under way.
const GIVE_WAY_MIN: Duration = Duration::from_millis(1);
const GIVE_WAY_MAX: Duration = Duration::from_millis(50);
/// No block or page is longer than this uncompressed.
const DECODED_MAX_BYTES: usize = block::BLOCK_MAX_BYTES;

/// How urgent a fetch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// Somebody waits.
    Demand,
    /// Somebody will most likely wait soon: it gives way to nobody, so its asker must keep what is under way small.
    Expected,
    /// Nobody waits yet.
    Background,
}

/// A block (or tree page) that is wanted, and everything needed to fetch, verify and keep it.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The stored object.
    pub object: Arc<ObjectPath>,
    /// Where its stored bytes begin.
    pub offset: u64,
    /// How many stored bytes.
    pub stored: u32,
    /// Length uncompressed.
    pub length: u32,
    /// Hash of the uncompressed bytes.
    pub hash: Hash,
    /// Where it belongs on disk: blob and position. `None`: in memory only.
    pub home: Option<(Arc<Blob>, u64)>,
    /// Whether to keep it in memory although it is on disk. Tree pages are not: whoever asked keeps them parsed.
    pub remember: bool,
}

impl Wanted {
    fn whence(&self) -> String {
        format!("{} at byte {}", self.object, self.offset)
    }
}

/// Where a block came from, as whoever waited for it sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// It was in memory.
    Memory,
    /// Read from the cache on disk and verified.
    Disk,
    /// The launch stream brought it.
    LaunchStream,
    /// Somebody else, or work in the background, was fetching it already.
    UnderWay,
    /// It was fetched from the origin because it was asked for.
    Origin,
}

type Outcome = Option<std::result::Result<(Bytes, Source), Arc<Error>>>;

/// Counters since the fetcher was made.
#[derive(Debug, Default)]
pub struct FetchCounters {
    requests: AtomicU64,
    bytes: AtomicU64,
    blocks: AtomicU64,
    blocks_from_disk: AtomicU64,
    damaged: AtomicU64,
    failed: AtomicU64,
}

/// What was fetched.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct FetchStatistics {
    /// Range requests made.
    pub requests: u64,
    /// Stored bytes received.
    pub bytes_fetched: u64,
    /// Blocks received.
    pub blocks_fetched: u64,
    /// Blocks found on disk when they were not in memory.
    pub blocks_from_disk: u64,
    /// Blocks that came damaged, before they were asked for again.
    pub damaged: u64,
    /// Blocks that could not be had.
    pub failed: u64,
}

/// Fetches blocks of one package.
#[derive(Debug)]
pub struct Fetcher {
    backend: Arc<dyn Backend>,
    cache: Arc<Cache>,
    runtime: Handle,
    in_flight: Mutex<HashMap<Hash, InFlight>>,
    /// Launch streams under way.
    streams: Mutex<Vec<Arc<Arriving>>>,
    demand_slots: Semaphore,
    background_slots: Semaphore,
    expected_slots: Semaphore,
    demand_outstanding: AtomicUsize,
    /// Requests under way that somebody waits for.
    demand_requests: AtomicUsize,
    demand_done: Notify,
    deadline: Duration,
    counters: FetchCounters,
}

/// A block that somebody brings.
#[derive(Debug)]
struct InFlight {
    outcome: watch::Receiver<Outcome>,
    /// Set when a demand read joins a background fetch, which then must not give way to demand any more.
    promoted: Arc<watch::Sender<bool>>,
}

/// A block that this call must bring, and whom to tell.
#[derive(Debug)]
struct Claim {
    wanted: Wanted,
    urgency: Urgency,
    tell: watch::Sender<Outcome>,
    promoted: Arc<watch::Sender<bool>>,
}

/// A block that was asked for.
struct Asked {
    outcome: watch::Receiver<Outcome>,
    /// Somebody else brings it.
    joined: bool,
}

async fn arrival(mut outcome: watch::Receiver<Outcome>) -> Result<(Bytes, Source)> {
    match outcome.wait_for(Option::is_some).await.map(|outcome| outcome.clone()) {
        Ok(Some(Ok(block))) => Ok(block),
        Ok(Some(Err(e))) => Err(Error::Shared(e)),
        Ok(None) | Err(_) => Err(Error::Cancelled),
    }
}

/// Counts a waiting demand read; background work resumes when the last is gone.
struct DemandGuard<'a>(&'a Fetcher);

impl<'a> DemandGuard<'a> {
    fn new(fetcher: &'a Fetcher, urgency: Urgency) -> Option<Self> {
        (urgency == Urgency::Demand).then(|| {
            fetcher.demand_outstanding.fetch_add(1, Ordering::SeqCst);
            Self(fetcher)
        })
    }
}

impl Drop for DemandGuard<'_> {
    fn drop(&mut self) {
        if self.0.demand_outstanding.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.demand_done.notify_waiters();
        }
    }
}

/// Counts a request that somebody waits for.
struct RequestGuard<'a>(Option<&'a Fetcher>);

impl<'a> RequestGuard<'a> {
    fn new(fetcher: &'a Fetcher, demanded: bool) -> Self {
        if demanded {
            fetcher.demand_requests.fetch_add(1, Ordering::SeqCst);
        }
        Self(demanded.then_some(fetcher))
    }
}

impl Drop for RequestGuard<'_> {
    fn drop(&mut self) {
        if let Some(fetcher) = self.0 {
            fetcher.demand_requests.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

impl Fetcher {
    /// A fetcher from `backend` into `cache`. No wait is longer than `deadline`. Must be called within a runtime, which runs
    /// the fetches.
    pub fn new(backend: Arc<dyn Backend>, cache: Arc<Cache>, deadline: Duration) -> Arc<Self> {
        Arc::new(Self {
            backend,
            cache,
            runtime: Handle::current(),
            in_flight: Mutex::default(),
            streams: Mutex::default(),
            demand_slots: Semaphore::new(DEMAND_REQUESTS_MAX),
            background_slots: Semaphore::new(BACKGROUND_REQUESTS_MAX),
            expected_slots: Semaphore::new(EXPECTED_REQUESTS_MAX),
            demand_outstanding: AtomicUsize::new(0),
            demand_requests: AtomicUsize::new(0),
            demand_done: Notify::new(),
            deadline,
            counters: FetchCounters::default(),
        })
    }

    /// Where it fetches from.
    pub fn backend(&self) -> &Arc<dyn Backend> {
        &self.backend
    }

    /// Where it keeps blocks.
    pub fn cache(&self) -> &Arc<Cache> {
        &self.cache
    }

    /// The runtime that runs the fetches.
    pub fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// No wait is longer.
    pub(crate) fn deadline(&self) -> Duration {
        self.deadline
    }

    /// Counters since it was made.
    pub fn statistics(&self) -> FetchStatistics {
        let c = &self.counters;
        let get = |n: &AtomicU64| n.load(Ordering::Relaxed);
        FetchStatistics {
            requests: get(&c.requests),
            bytes_fetched: get(&c.bytes),
            blocks_fetched: get(&c.blocks),
            blocks_from_disk: get(&c.blocks_from_disk),
            damaged: get(&c.damaged),
            failed: get(&c.failed),
        }
    }

    /// Brings all of `wanted`, in that order, decoded and verified. Nobody waits for background work: it may stay in
    /// its queue for as long as others are served, and only what is being fetched has a deadline then.
    ///
    /// # Errors
    /// The first block's that could not be had, or `TimedOut`.
    pub async fn get(self: &Arc<Self>, wanted: Vec<Wanted>, urgency: Urgency) -> Result<Vec<Bytes>> {
        Ok(self.get_with_source(wanted, urgency).await?.into_iter().map(|(block, _)| block).collect())
    }

    /// As [`Self::get`], and tells where each came from.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn get_with_source(
        self: &Arc<Self>,
        wanted: Vec<Wanted>,
        urgency: Urgency,
    ) -> Result<Vec<(Bytes, Source)>> {
        let _demand = DemandGuard::new(self, urgency);
        let asked = self.request(&wanted, urgency);
        let mut blocks = Vec::with_capacity(asked.len());
        let all = async {
            for (wanted, Asked { outcome, joined }) in wanted.iter().zip(asked) {
                let mut brought = arrival(outcome).await;
                if brought.is_err() && joined && urgency == Urgency::Demand {
                    // Somebody else's fetch may have failed by what only they wanted: a neighbour that is damaged.
                    for Asked { outcome, .. } in self.request(std::slice::from_ref(wanted), urgency) {
                        brought = arrival(outcome).await;
                    }
                }
                let (block, mut source) = brought?;
                if joined && source == Source::Origin {
                    source = Source::UnderWay;
                }
                if block.len() != wanted.length as usize {
                    let reason =
                        format!("its place tells {} bytes, the block of that hash has {}", wanted.length, block.len());
                    return Err(Error::damaged(wanted.whence(), reason));
                }
                blocks.push((block, source));
            }
            Ok(())
        };
        if urgency != Urgency::Demand {
            return all.await.map(|()| blocks);
        }
        match tokio::time::timeout(self.deadline + GIVING_UP_MAX, all).await {
            Ok(result) => result.map(|()| blocks),
            Err(_) => Err(self.timed_out(wanted.get(blocks.len()).map_or_else(String::new, |w| w.object.to_string()))),
        }
    }

    fn timed_out(&self, object: String) -> Error {
        Error::TimedOut { object, origin: self.backend.origin().to_owned(), after: self.deadline }
    }

    /// Waits for a step of a transfer, no longer than the deadline.
    pub(crate) async fn within<T>(&self, object: &ObjectPath, step: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::time::timeout(self.deadline + GIVING_UP_MAX, step)
            .await
            .unwrap_or_else(|_| Err(self.timed_out(object.to_string())))
    }

    /// A block on this machine's disk, verified. Reads the disk.
    pub(crate) fn on_disk(&self, wanted: &Wanted) -> Option<Bytes> {
        let (blob, at) = wanted.home.as_ref()?;
        self.cache.on_disk(blob, *at, wanted.length, &wanted.hash)
    }

    /// Keeps a block that came otherwise and was verified; whether it is on disk now.
    pub(crate) fn keep(&self, wanted: &Wanted, block: &Bytes) -> bool {
        wanted.home.as_ref().is_some_and(|(blob, at)| self.cache.store(blob, *at, &wanted.hash, block))
    }

    /// Counts a request that was made past [`Self::get`].
    pub(crate) fn count_request(&self) {
        self.counters.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts stored bytes that came past [`Self::get`].
    pub(crate) fn count_bytes(&self, bytes: u64) {
        self.counters.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Leaves the line to demand requests, if there are any, for as long as the last piece was waited for (`waited`):
    /// so a stream has at most half of it while somebody waits for something else.
    pub(crate) async fn give_way(&self, waited: Duration) {
        if self.demand_requests.load(Ordering::SeqCst) > 0 {
            tokio::time::sleep(waited.clamp(GIVE_WAY_MIN, GIVE_WAY_MAX)).await;
        }
    }

    /// Starts whatever is not under way yet.
    fn request(self: &Arc<Self>, wanted: &[Wanted], urgency: Urgency) -> Vec<Asked> {
        let mut claims = Vec::new();
        let mut asked = Vec::with_capacity(wanted.len());
        let promoted = Arc::new(watch::Sender::new(urgency == Urgency::Demand));
        let mut in_flight = self.in_flight.lock();
        for wanted in wanted {
            // One whose bringer is gone without a word (it panicked) must not be waited for by all who come after.
            let fetch = in_flight.get(&wanted.hash).filter(|fetch| fetch.outcome.has_changed().is_ok());
            if let Some(fetch) = fetch {
                if urgency == Urgency::Demand {
                    fetch.promoted.send_if_modified(|promoted| !std::mem::replace(promoted, true));
                }
                asked.push(Asked { outcome: fetch.outcome.clone(), joined: true });
                continue;
            }
            let (tell, outcome) = watch::channel(None);
            if let Some(block) = self.cache.in_memory(&wanted.hash) {
                tell.send_replace(Some(Ok((block, Source::Memory))));
            } else {
                in_flight.insert(wanted.hash, InFlight { outcome: outcome.clone(), promoted: promoted.clone() });
                claims.push(Claim { wanted: wanted.clone(), urgency, tell, promoted: promoted.clone() });
            }
            asked.push(Asked { outcome, joined: false });
        }
        drop(in_flight);
        if !claims.is_empty() {
            let this = self.clone();
            self.runtime.spawn(async move { this.bring(claims).await });
        }
        asked
    }

    /// From disk what is there, from the origin the rest, neighbours together.
    async fn bring(self: Arc<Self>, claims: Vec<Claim>) {
        let this = self.clone();
        let looked = tokio::task::spawn_blocking(move || this.look_on_disk(claims)).await;
        // The closure does not panic; if the runtime is shutting down, dropping the claims tells the waiters.
        let Ok(missing) = looked else { return };
        self.fetch_missing(self.leave_to_streams(missing));
    }

    /// By requests of their own.
    fn fetch_missing(self: &Arc<Self>, mut missing: Vec<Claim>) {
        missing.sort_by(|a, b| (&a.wanted.object, a.wanted.offset).cmp(&(&b.wanted.object, b.wanted.offset)));
        for run in runs(missing) {
            let this = self.clone();
            self.runtime.spawn(async move { this.fetch_run(run).await });
        }
    }

    fn look_on_disk(&self, claims: Vec<Claim>) -> Vec<Claim> {
        let mut missing = Vec::new();
        for claim in claims {
            // A stream may have brought it meanwhile.
            if let Some(block) = self.cache.in_memory(&claim.wanted.hash) {
                self.deliver(claim, Ok((block, Source::Memory)));
                continue;
            }
            let Wanted { home, length, hash, .. } = &claim.wanted;
            match home.as_ref().and_then(|(blob, at)| self.cache.on_disk(blob, *at, *length, hash)) {
                Some(block) => {
                    self.counters.blocks_from_disk.fetch_add(1, Ordering::Relaxed);
                    self.deliver(claim, Ok((block, Source::Disk)));
                }
                None => missing.push(claim),
            }
        }
        missing
    }

    /// Hands a block out. It is in memory before it stops being under way, so that nobody fetches it again.
    fn deliver(&self, claim: Claim, outcome: Result<(Bytes, Source)>) {
        let hash = claim.wanted.hash;
        let outcome = match outcome {
            Ok((block, source)) => {
                if claim.wanted.remember {
                    self.cache.remember(hash, block.clone());
                }
                Ok((block, source))
            }
            Err(e) => {
                self.counters.failed.fetch_add(1, Ordering::Relaxed);
                Err(Arc::new(e))
            }
        };
        self.in_flight.lock().remove(&hash);
        claim.tell.send_replace(Some(outcome));
    }

    /// Waits for its turn: at once for demand and what is expected; when nobody waits, or somebody comes to wait for
    /// it, otherwise.
    async fn turn(&self, urgency: Urgency, mut promoted: watch::Receiver<bool>) -> Option<SemaphorePermit<'_>> {
        let in_background = async {
            if urgency == Urgency::Expected {
                return self.expected_slots.acquire().await;
            }
            let slot = self.background_slots.acquire().await;
            self.until_no_demand().await;
            slot
        };
        let demanded = async {
            // The sender lives as long as the claim, so this waits for nothing but the promotion.
            let _ = promoted.wait_for(|p| *p).await;
        };
        let slot = tokio::select! {
            biased;
            () = demanded => self.demand_slots.acquire().await,
            slot = in_background => slot,
        };
        slot.ok()
    }

    async fn fetch_run(self: &Arc<Self>, run: Vec<Claim>) {
        let mut waiting: std::collections::VecDeque<Claim> = run.into();
        let (Some(first), Some(last)) = (waiting.front(), waiting.back()) else { return };
        let _slot = self.turn(first.urgency, first.promoted.subscribe()).await;
        let waited_for = *first.promoted.borrow();
        let _demand = RequestGuard::new(self, waited_for);
        let object = first.wanted.object.clone();
        let range = first.wanted.offset..last.wanted.offset + u64::from(last.wanted.stored);
        let mut position = range.start;
        let mut buffer = BytesMut::new();
        self.counters.requests.fetch_add(1, Ordering::Relaxed);
        let result = async {
            let options = ReadOptions { waited_for, ..ReadOptions::default() };
            let mut stream = self.within(&object, self.backend.read_range(&object, range, options)).await?;
            while let Some(piece) = self.within(&object, stream.try_next()).await? {
                self.counters.bytes.fetch_add(piece.len() as u64, Ordering::Relaxed);
                buffer.extend_from_slice(&piece);
                while let Some(claim) = waiting.front() {
                    let stored = claim.wanted.stored as usize;
                    // A gap never occurs: runs hold adjacent blocks only.
                    debug_assert_eq!(claim.wanted.offset, position, "runs hold adjacent blocks");
                    if buffer.len() < stored {
                        break;
                    }
                    position += stored as u64;
                    let bytes = buffer.split_to(stored).freeze();
                    let claim = waiting.pop_front().expect("it was looked at just now");
                    let this = self.clone();
                    self.runtime.spawn(async move { this.arrived(claim, bytes).await });
                }
            }
            Ok(())
        }
        .await;
        let error = match result {
            Ok(()) => Error::BadAnswer {
                object: object.to_string(),
                origin: self.backend.origin().to_owned(),
                reason: "it ended too early".into(),
            },
            Err(e) => e,
        };
        if waiting.is_empty() {
            return;
        }
        let error = Arc::new(error);
        for claim in waiting {
            self.deliver(claim, Err(Error::Shared(error.clone())));
        }
    }

    /// Whether a demand read is waiting for the origin at present: background work is paused then.
    pub fn has_demand(&self) -> bool {
        self.demand_outstanding.load(Ordering::SeqCst) > 0
    }

    async fn until_no_demand(&self) {
        loop {
            let done = self.demand_done.notified();
            if self.demand_outstanding.load(Ordering::SeqCst) == 0 {
                return;
            }
            done.await;
        }
    }

    /// Verifies a block and keeps it; asks once more, past intermediaries, if it is damaged.
    async fn arrived(self: &Arc<Self>, claim: Claim, stored: Bytes) {
        let (claim, mut outcome) = match self.check(claim, stored).await {
            Some(checked) => checked,
            None => return,
        };
        if let Err(Error::Damaged { reason, .. }) = &outcome {
            tracing::warn!(
                "{} from {} came damaged: {reason}; asking again",
                claim.wanted.whence(),
                self.backend.origin()
            );
            self.counters.damaged.fetch_add(1, Ordering::Relaxed);
            self.counters.requests.fetch_add(1, Ordering::Relaxed);
            let Wanted { object, offset, stored, .. } = &claim.wanted;
            let range = *offset..offset + u64::from(*stored);
            let options = ReadOptions { bypass_caches: true, waited_for: *claim.promoted.borrow() };
            let again =
                async { collect(self.backend.read_range(object, range, options).await?, *stored as usize).await };
            match self.within(object, again).await {
                Ok(bytes) => {
                    self.counters.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                    if let Some((claim, outcome)) = self.check(claim, bytes).await {
                        self.finish(claim, outcome);
                    }
                    return;
                }
                Err(e) => outcome = Err(e),
            }
        }
        self.finish(claim, outcome);
    }

    fn finish(&self, claim: Claim, outcome: Result<Bytes>) {
        if outcome.is_ok() {
            self.counters.blocks.fetch_add(1, Ordering::Relaxed);
        }
        self.deliver(claim, outcome.map(|block| (block, Source::Origin)));
    }

    /// Decodes off the runtime's threads: a block costs up to a millisecond. `None` if the runtime is shutting down.
    async fn check(self: &Arc<Self>, mut claim: Claim, stored: Bytes) -> Option<(Claim, Result<Bytes>)> {
        let this = self.clone();
        let checked = tokio::task::spawn_blocking(move || {
            let w = &claim.wanted;
            let outcome = block::decode(&stored, w.length as usize, &w.hash, DECODED_MAX_BYTES, &|| w.whence());
            if let (Ok(block), Some((blob, at))) = (&outcome, &w.home) {
                // What the disk does not keep, memory must, or it would be fetched again and again.
                claim.wanted.remember |= !this.cache.store(blob, *at, &w.hash, block);
            }
            (claim, outcome)
        });
        checked.await.ok()
    }
}

/// Groups claims, sorted by place, into runs of adjacent stored bytes. What somebody waits for and what not, and what is
/// promoted by different requests, does not go together: a run waits for its turn as its first claim does.
fn runs(claims: Vec<Claim>) -> Vec<Vec<Claim>> {
    let mut all: Vec<Vec<Claim>> = Vec::new();
    let mut run_bytes = 0;
    for claim in claims {
        let stored = u64::from(claim.wanted.stored);
        let longest = if claim.urgency == Urgency::Demand { RANGE_MAX_BYTES } else { BACKGROUND_RANGE_MAX_BYTES };
        let follows = all.last().and_then(|run| run.last()).is_some_and(|before| {
            before.wanted.object == claim.wanted.object
                && before.wanted.offset + u64::from(before.wanted.stored) == claim.wanted.offset
                && run_bytes + stored <= longest
                && (Arc::ptr_eq(&before.promoted, &claim.promoted)
                    || (before.urgency == Urgency::Demand && claim.urgency == Urgency::Demand))
        });
        match all.last_mut() {
            Some(run) if follows => {
                run_bytes += stored;
                run.push(claim);
            }
            _ => {
                run_bytes = stored;
                all.push(vec![claim]);
            }
        }
    }
    all
}

#[cfg(test)]
mod tests;
