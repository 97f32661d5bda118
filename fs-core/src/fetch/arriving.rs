//! Blocks that come in a known order without being asked for one by one: a launch stream.
//!
//! Whoever asks for such a block waits for it if it is near, and fetches it by a request of its own otherwise; one who
//! waits longer than expected is sent to fetch, too. So a stream that is slow, broken or of the wrong order costs
//! bandwidth, never an answer.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use super::{Claim, Fetcher, Source};
use crate::package::Hash;
use crate::package::launch::{HashPrefix, LaunchEntry, hash_prefix};

/// How long the beginning of a stream, which tells its order, is waited for.
const ORDER_PATIENCE: Duration = Duration::from_secs(2);
/// What is expected later than twice the stream's first round trip and this is not waited for: a request of its own
/// would bring it sooner.
const NEAR: Duration = Duration::from_millis(100);
/// The same while the stream brings nearly all that is wanted. Then the line is what everybody waits for, and bringing
/// a block twice makes all the others later.
const NEAR_WHILE_RIGHT: Duration = Duration::from_secs(2);
/// The stream is right while no more than one of so many wanted blocks is not in it; the first few count for it.
const RIGHT_OF: u32 = 8;
/// A stream that took longer than this to begin is no measure of a round trip.
const BEGINNING_MAX: Duration = Duration::from_secs(1);
/// Waiting this much longer than twice the expected time means that the stream has become slower.
const GRACE: Duration = Duration::from_millis(200);
/// How often those who wait are looked after.
const CHECK_EVERY: Duration = Duration::from_millis(50);

/// A stream of blocks and pages.
#[derive(Debug)]
pub(crate) struct Arriving {
    begun: Instant,
    state: Mutex<State>,
    /// Entries that have come; no more can when it is over.
    came: watch::Sender<usize>,
}

#[derive(Debug, Default)]
struct State {
    order: Option<Order>,
    /// When the order was known, which is one round trip after the beginning; or what was asked for then began to come.
    ordered_after: Duration,
    /// What comes is what stood behind `head`: neither how soon nor how fast it comes says anything of the rest.
    ahead: bool,
    /// Entries that had come at `ordered_after`.
    ordered_at: usize,
    /// Entries that have come.
    next: usize,
    waiting: Vec<Waiting>,
    /// Somebody waited too long, and nothing has come since: nobody else shall.
    stalled: bool,
    over: bool,
    /// Wanted blocks that are in the order, and those that are not.
    expected: u32,
    unexpected: u32,
}

#[derive(Debug)]
struct Order {
    by_prefix: HashMap<HashPrefix, usize>,
    /// Where each entry ends in the decoded stream.
    ends: Vec<u64>,
}

#[derive(Debug)]
struct Waiting {
    claim: Claim,
    /// Its place in the stream, once the order is known.
    entry: Option<usize>,
    until: Instant,
}

/// What the stream says to somebody who wants a block.
enum Outlook {
    /// It comes soon enough.
    Wait { entry: Option<usize>, patience: Duration },
    /// It came already.
    Passed,
    /// It does not come, or too late.
    Fetch,
}

impl Order {
    /// When `entry` comes, if those from `first` to before `next` came while it has been `flowing`.
    fn expected(&self, first: usize, next: usize, entry: usize, flowing: Duration) -> Duration {
        let end_of = |next: usize| next.checked_sub(1).map_or(0, |last| self.ends[last]);
        let came = end_of(next);
        // Another launch set's stream may have fewer entries: what it does not have never comes.
        let Some(far) = self.ends.get(entry).map(|end| end.saturating_sub(came)) else { return Duration::MAX };
        // At the average rate so far; before anything came, only what stands at the very beginning is near.
        let rate = (came.saturating_sub(end_of(first)).max(64 << 10) as f64)
            / flowing.max(Duration::from_millis(1)).as_secs_f64();
        Duration::try_from_secs_f64(far as f64 / rate).unwrap_or(Duration::MAX)
    }
}

impl State {
    fn outlook(&mut self, age: Duration, hash: &Hash) -> Outlook {
        if self.over {
            return Outlook::Fetch;
        }
        let Some(order) = &self.order else {
            return match ORDER_PATIENCE.checked_sub(age) {
                Some(patience) => Outlook::Wait { entry: None, patience },
                None => Outlook::Fetch,
            };
        };
        let Some(&entry) = order.by_prefix.get(&hash_prefix(hash)) else {
            tracing::trace!(%hash, "a block is wanted that the launch stream does not bring");
            self.unexpected += 1;
            return Outlook::Fetch;
        };
        if entry < self.next {
            return Outlook::Passed;
        }
        if self.stalled {
            return Outlook::Fetch;
        }
        let expected = order.expected(self.ordered_at, self.next, entry, age.saturating_sub(self.ordered_after));
        self.expected += 1;
        let right = self.unexpected * RIGHT_OF <= self.expected + RIGHT_OF;
        let near = expected <= self.ordered_after.min(BEGINNING_MAX) * 2 + if right { NEAR_WHILE_RIGHT } else { NEAR };
        tracing::trace!(entry, next = self.next, ?expected, near, "a block that the launch stream brings is wanted");
        let mut patience = expected * 2 + GRACE;
        if self.ahead {
            patience = patience.max(ORDER_PATIENCE.saturating_sub(age));
        }
        if near { Outlook::Wait { entry: Some(entry), patience } } else { Outlook::Fetch }
    }
}

impl Arriving {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { begun: Instant::now(), state: Mutex::default(), came: watch::Sender::new(0) })
    }

    /// Its beginning stood behind `head` and was asked for before it.
    pub(crate) fn begins_ahead(&self) {
        self.state.lock().ahead = true;
    }

    /// What was asked for when it began comes now.
    pub(crate) fn rest_comes(&self) {
        let mut state = self.state.lock();
        if std::mem::take(&mut state.ahead) && state.order.is_some() {
            (state.ordered_after, state.ordered_at) = (self.begun.elapsed(), state.next);
        }
    }

    /// When `entry` is expected to have come; `None` if it has, or never will.
    pub(crate) fn expected(&self, entry: usize) -> Option<Duration> {
        let state = self.state.lock();
        let order = state.order.as_ref().filter(|_| !state.over && !state.stalled && entry >= state.next)?;
        let flowing = self.begun.elapsed().saturating_sub(state.ordered_after);
        Some(order.expected(state.ordered_at, state.next, entry, flowing))
    }

    /// Waits until `entry` has come, or nothing comes any more, but no longer than `patience`.
    pub(crate) async fn came(&self, entry: usize, patience: Duration) {
        let mut came = self.came.subscribe();
        // Whoever waits reads by itself what did not come.
        let _ = tokio::time::timeout(patience, came.wait_for(|came| *came > entry)).await;
    }

    /// Takes the claims that are worth waiting for here and gives back the others, those which came already apart.
    fn take(&self, claims: Vec<Claim>) -> (Vec<Claim>, Vec<Claim>) {
        let (mut passed, mut others) = (Vec::new(), Vec::new());
        let now = Instant::now();
        let mut state = self.state.lock();
        for claim in claims {
            match state.outlook(now - self.begun, &claim.wanted.hash) {
                Outlook::Wait { entry, patience } => {
                    state.waiting.push(Waiting { claim, entry, until: now + patience })
                }
                Outlook::Passed => passed.push(claim),
                Outlook::Fetch => others.push(claim),
            }
        }
        (passed, others)
    }

    /// The order is known. Those who wait for what is not in it are given back.
    fn order(&self, entries: &[LaunchEntry]) -> Vec<Claim> {
        let mut order =
            Order { by_prefix: HashMap::with_capacity(entries.len()), ends: Vec::with_capacity(entries.len()) };
        let mut end = 0;
        for (i, entry) in entries.iter().enumerate() {
            end += u64::from(entry.length());
            order.ends.push(end);
            order.by_prefix.entry(entry.prefix()).or_insert(i);
        }
        let mut state = self.state.lock();
        state.order = Some(order);
        state.ordered_after = self.begun.elapsed();
        let claims = std::mem::take(&mut state.waiting).into_iter().map(|w| w.claim).collect();
        drop(state);
        // Nothing has come yet, so nothing has passed.
        let (passed, others) = self.take(claims);
        debug_assert!(passed.is_empty(), "nothing can have come before the order");
        others
    }

    /// Entry `index` has come: who waits for it.
    fn pass(&self, index: usize) -> Vec<Claim> {
        let mut state = self.state.lock();
        state.next = index + 1;
        state.stalled = false;
        self.came.send_replace(index + 1);
        let mut met = Vec::new();
        let mut i = 0;
        while i < state.waiting.len() {
            if state.waiting[i].entry.is_some_and(|entry| entry <= index) {
                met.push(state.waiting.swap_remove(i).claim);
            } else {
                i += 1;
            }
        }
        met
    }

    /// Those who have waited too long; if there are any and the order is known, all who wait: it has stalled.
    fn overdue(&self) -> Vec<Claim> {
        let now = Instant::now();
        let mut state = self.state.lock();
        if state.waiting.iter().all(|w| w.until > now) {
            return Vec::new();
        }
        let all = std::mem::take(&mut state.waiting);
        state.stalled |= state.order.is_some();
        let (late, waiting) = match state.stalled {
            true => (all, Vec::new()),
            false => all.into_iter().partition(|w| w.until <= now),
        };
        state.waiting = waiting;
        for w in &late {
            tracing::trace!(entry = w.entry, next = state.next, "the launch stream is slower than expected");
        }
        late.into_iter().map(|w| w.claim).collect()
    }

    fn end(&self) -> Vec<Claim> {
        let mut state = self.state.lock();
        state.over = true;
        self.came.send_replace(usize::MAX);
        std::mem::take(&mut state.waiting).into_iter().map(|w| w.claim).collect()
    }

    /// How many wait.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.state.lock().waiting.len()
    }

    fn is_over(&self) -> bool {
        self.state.lock().over
    }
}

impl Fetcher {
    /// From now on blocks may come through `stream`. Whoever made it must call [`Self::stream_over`].
    pub(crate) fn expect(self: &Arc<Self>, stream: &Arc<Arriving>) {
        self.streams.lock().push(stream.clone());
        let (this, stream) = (self.clone(), stream.clone());
        self.runtime.spawn(async move {
            while !stream.is_over() {
                tokio::time::sleep(CHECK_EVERY).await;
                this.fetch_missing(stream.overdue());
            }
        });
    }

    /// The order of `stream` is known.
    pub(crate) fn stream_ordered(self: &Arc<Self>, stream: &Arc<Arriving>, entries: &[LaunchEntry]) {
        self.fetch_missing(stream.order(entries));
    }

    /// Entry `index` of `stream` has come; `block` if it is what it should be. It is kept in memory if `remember`. Tells
    /// whether anybody was waiting for it.
    pub(crate) fn stream_brought(
        self: &Arc<Self>,
        stream: &Arriving,
        index: usize,
        block: Option<(Hash, &Bytes)>,
        remember: bool,
    ) -> bool {
        if let Some((hash, bytes)) = block.filter(|_| remember) {
            // Before it counts as passed: who asks from then on finds it.
            self.cache.remember(hash, bytes.clone());
        }
        let claims = stream.pass(index);
        let waited = !claims.is_empty();
        let mut unserved = Vec::new();
        for claim in claims {
            match block {
                Some((hash, bytes)) if claim.wanted.hash == hash => {
                    self.deliver(claim, Ok((bytes.clone(), Source::LaunchStream)));
                }
                _ => unserved.push(claim),
            }
        }
        self.fetch_missing(unserved);
        waited
    }

    /// `stream` brings nothing any more.
    pub(crate) fn stream_over(self: &Arc<Self>, stream: &Arc<Arriving>) {
        self.streams.lock().retain(|known| !Arc::ptr_eq(known, stream));
        self.fetch_missing(stream.end());
    }

    /// Leaves with the streams what they bring soon; the rest.
    pub(super) fn leave_to_streams(&self, mut claims: Vec<Claim>) -> Vec<Claim> {
        let streams = self.streams.lock().clone();
        for stream in streams {
            let (passed, others) = stream.take(claims);
            claims = others;
            // It came between the look on this machine and now.
            claims.extend(self.look_on_disk(passed));
        }
        claims
    }
}
