//! What waits to be sent on one connection, and in which order it goes.
//!
//! Words (responses, notices) go first: they are short. Then answers take turns, a piece each, whoever is waited for
//! before the others; of every few turns one is of the others, so that a busy reader does not stop a stream for good. An
//! answer without credit, or one that pauses, is parked and costs nothing but its place.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Answers that a connection may have under way.
pub(super) const UNDER_WAY_MAX: usize = 512;
/// Words that may wait before no more requests are taken: a client that asks and reads nothing shall not fill memory.
const WORDS_MAX_BYTES: usize = 256 << 10;
/// Every so many turns one is of those that nobody waits for.
const OTHERS_EVERY: u64 = 8;

/// An answer: the number of its session on this connection, and the request's id.
pub(super) type Key = (u16, u32);

/// Why an answer does not begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotBegun {
    /// As many are under way as may be.
    Full,
    /// One of that id is under way.
    Taken,
}

/// How far an answer may go.
#[derive(Debug)]
pub(super) struct Flow {
    cancelled: AtomicBool,
    paused: AtomicBool,
    allowed: AtomicU64,
    sent: AtomicU64,
}

impl Flow {
    /// Bytes that may be sent at present.
    pub(super) fn room(&self) -> u64 {
        self.allowed.load(Ordering::Acquire).saturating_sub(self.sent.load(Ordering::Acquire))
    }

    /// Tells that so many bytes are sent.
    pub(super) fn spend(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Ordering::AcqRel);
    }

    /// Whether nobody wants it any more.
    pub(super) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }

    fn is_parked(&self) -> bool {
        self.paused.load(Ordering::Acquire) || self.room() == 0
    }
}

/// An answer whose turn it is.
#[derive(Debug)]
pub(super) struct Turn<T> {
    pub(super) key: Key,
    pub(super) flow: Arc<Flow>,
    /// What is being sent.
    pub(super) work: T,
    /// Whether nobody else has a turn at present.
    pub(super) alone: bool,
    /// Its next turn comes no earlier.
    pub(super) due: Option<Instant>,
    urgent: bool,
}

/// Whose turn it is.
#[derive(Debug)]
pub(super) enum Next<T> {
    Turn(Box<Turn<T>>),
    /// Nobody's before then.
    NotBefore(Instant),
    Nobody,
}

struct Queues<T> {
    words: VecDeque<Bytes>,
    words_bytes: usize,
    urgent: VecDeque<Turn<T>>,
    others: VecDeque<Turn<T>>,
    parked: HashMap<Key, Turn<T>>,
    /// All under way, also the one whose turn it is.
    flows: HashMap<Key, Arc<Flow>>,
    /// How often was looked whose turn it is.
    turns: u64,
    /// When a turn ended last.
    last_turn: Option<Instant>,
    closing: bool,
}

/// What waits to be sent on one connection.
pub(super) struct Outbox<T> {
    queues: Mutex<Queues<T>>,
    changed: Notify,
    roomy: Notify,
}

impl<T> Default for Outbox<T> {
    fn default() -> Self {
        let queues = Queues {
            words: VecDeque::new(),
            words_bytes: 0,
            urgent: VecDeque::new(),
            others: VecDeque::new(),
            parked: HashMap::new(),
            flows: HashMap::new(),
            turns: 0,
            last_turn: None,
            closing: false,
        };
        Self { queues: Mutex::new(queues), changed: Notify::new(), roomy: Notify::new() }
    }
}

impl<T> Queues<T> {
    fn queue(&mut self, turn: Turn<T>) {
        if turn.flow.is_parked() {
            self.parked.insert(turn.key, turn);
        } else if turn.urgent {
            self.urgent.push_back(turn);
        } else {
            self.others.push_back(turn);
        }
    }

    /// What changed may let a parked answer go on.
    fn unpark(&mut self, key: Key) {
        if let Some(turn) = self.parked.remove(&key) {
            self.queue(turn);
        }
    }

    fn forget(&mut self, gone: impl Fn(Key) -> bool) -> bool {
        let before = self.flows.len();
        self.flows.retain(|key, flow| {
            let stays = !gone(*key);
            if !stays {
                // The one whose turn it is sees it by this.
                flow.cancelled.store(true, Ordering::Release);
            }
            stays
        });
        self.urgent.retain(|turn| !gone(turn.key));
        self.others.retain(|turn| !gone(turn.key));
        self.parked.retain(|key, _| !gone(*key));
        self.flows.len() < before
    }
}

impl<T> Outbox<T> {
    /// Sends words before anything else.
    pub(super) fn say(&self, words: Bytes) {
        let mut queues = self.queues.lock();
        queues.words_bytes += words.len();
        queues.words.push_back(words);
        drop(queues);
        self.changed.notify_one();
    }

    /// Waits until not too many words wait.
    pub(super) async fn has_room(&self) {
        loop {
            let roomy = self.roomy.notified();
            if self.queues.lock().words_bytes < WORDS_MAX_BYTES {
                return;
            }
            roomy.await;
        }
    }

    /// Moves all words that wait behind `out`.
    pub(super) fn take_words(&self, out: &mut VecDeque<Bytes>) {
        let mut queues = self.queues.lock();
        out.append(&mut queues.words);
        queues.words_bytes = 0;
        drop(queues);
        self.roomy.notify_one();
    }

    /// Whether so many more answers may begin, and none of these ids is taken.
    pub(super) fn may_begin(&self, keys: &[Key]) -> Result<(), NotBegun> {
        let queues = self.queues.lock();
        if queues.flows.len() + keys.len() > UNDER_WAY_MAX {
            return Err(NotBegun::Full);
        }
        if keys.iter().any(|key| queues.flows.contains_key(key)) { Err(NotBegun::Taken) } else { Ok(()) }
    }

    /// Lets an answer take turns from now on, of which `window` bytes may go before there is credit for more.
    pub(super) fn begin(&self, key: Key, urgent: bool, window: Option<u64>, work: T) {
        let flow = Arc::new(Flow {
            cancelled: AtomicBool::new(false),
            paused: AtomicBool::new(false),
            allowed: AtomicU64::new(window.unwrap_or(u64::MAX)),
            sent: AtomicU64::new(0),
        });
        let mut queues = self.queues.lock();
        queues.flows.insert(key, flow.clone());
        queues.queue(Turn { key, flow, work, alone: false, due: None, urgent });
        drop(queues);
        self.changed.notify_one();
    }

    /// Lets so many more bytes of an answer go. One that has ended has no need of it.
    pub(super) fn credit(&self, key: Key, bytes: u64) {
        let mut queues = self.queues.lock();
        let Some(flow) = queues.flows.get(&key) else { return };
        let more = |allowed: u64| Some(allowed.saturating_add(bytes));
        // It cannot fail: `more` always gives a number.
        let _ = flow.allowed.fetch_update(Ordering::AcqRel, Ordering::Acquire, more);
        queues.unpark(key);
        drop(queues);
        self.changed.notify_one();
    }

    /// Makes an answer pause or go on; `false` if there is none.
    pub(super) fn pause(&self, key: Key, paused: bool) -> bool {
        let mut locked = self.queues.lock();
        let queues = &mut *locked;
        let Some(flow) = queues.flows.get(&key) else { return false };
        flow.paused.store(paused, Ordering::Release);
        if paused {
            for queue in [&mut queues.urgent, &mut queues.others] {
                if let Some(at) = queue.iter().position(|turn| turn.key == key)
                    && let Some(turn) = queue.remove(at)
                {
                    queues.parked.insert(key, turn);
                }
            }
        } else {
            queues.unpark(key);
        }
        drop(locked);
        self.changed.notify_one();
        true
    }

    /// Ends an answer before its end; `false` if there is none.
    pub(super) fn cancel(&self, key: Key) -> bool {
        self.queues.lock().forget(|other| other == key)
    }

    /// Ends all answers of a session.
    pub(super) fn cancel_session(&self, session: u16) {
        self.queues.lock().forget(|(of, _)| of == session);
    }

    /// How many answers are under way.
    pub(super) fn under_way(&self) -> usize {
        self.queues.lock().flows.len()
    }

    /// When a turn ended last: a sign that the client takes what is sent.
    pub(super) fn last_turn(&self) -> Option<Instant> {
        self.queues.lock().last_turn
    }

    /// Whose turn it is.
    pub(super) fn next(&self, now: Instant) -> Next<T> {
        let mut locked = self.queues.lock();
        let queues = &mut *locked;
        queues.turns = queues.turns.wrapping_add(1);
        let others_first = queues.turns.is_multiple_of(OTHERS_EVERY);
        let mut earliest: Option<Instant> = None;
        for urgent in [!others_first, others_first] {
            let queue = if urgent { &mut queues.urgent } else { &mut queues.others };
            let ready = queue.iter().position(|turn| turn.due.is_none_or(|due| due <= now));
            if let Some(mut turn) = ready.and_then(|at| queue.remove(at)) {
                turn.alone = queues.urgent.is_empty() && queues.others.is_empty();
                return Next::Turn(Box::new(turn));
            }
            let due = queue.iter().filter_map(|turn| turn.due).min();
            earliest = [earliest, due].into_iter().flatten().min();
        }
        earliest.map_or(Next::Nobody, Next::NotBefore)
    }

    /// Ends a turn. `done` if it was the answer's last.
    pub(super) fn put_back(&self, turn: Turn<T>, done: bool) {
        let mut queues = self.queues.lock();
        queues.last_turn = Some(Instant::now());
        if done {
            // Not one of the same id that began after this was cancelled.
            if queues.flows.get(&turn.key).is_some_and(|flow| Arc::ptr_eq(flow, &turn.flow)) {
                queues.flows.remove(&turn.key);
            }
        } else if !(turn.flow.is_cancelled() || queues.closing && turn.due.is_some()) {
            queues.queue(turn);
        }
    }

    /// Nothing new comes: what can be sent is, then it is over. What goes slowly on purpose ends: it might take hours, and
    /// nobody can stop it any more, or is even there.
    pub(super) fn close(&self) {
        let mut queues = self.queues.lock();
        queues.closing = true;
        queues.urgent.retain(|turn| turn.due.is_none());
        queues.others.retain(|turn| turn.due.is_none());
        drop(queues);
        self.changed.notify_one();
    }

    /// Whether nothing waits, and nothing will. What is parked then has nobody left to credit it.
    pub(super) fn is_over(&self) -> bool {
        let queues = self.queues.lock();
        queues.closing && queues.words.is_empty() && queues.urgent.is_empty() && queues.others.is_empty()
    }

    /// Waits until something was said, begun, credited, resumed or closed since the last time.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn turn<T>(outbox: &Outbox<T>) -> Turn<T> {
        match outbox.next(Instant::now()) {
            Next::Turn(turn) => *turn,
            _ => panic!("it is nobody's turn"),
        }
    }

    /// Ids in the order of their turns, each put back afterwards.
    fn order(outbox: &Outbox<()>, turns: usize) -> Vec<u32> {
        let once = |_| {
            let turn = turn(outbox);
            let id = turn.key.1;
            outbox.put_back(turn, false);
            id
        };
        (0..turns).map(once).collect()
    }

    #[tokio::test]
    async fn all_take_turns() {
        let outbox = Outbox::default();
        for id in 1..=3 {
            outbox.begin((1, id), false, None, ());
        }
        assert_eq!(order(&outbox, 7), [1, 2, 3, 1, 2, 3, 1]);
    }

    #[tokio::test]
    async fn who_is_waited_for_goes_first_and_nobody_starves() {
        let outbox = Outbox::default();
        outbox.begin((1, 1), false, None, ());
        assert!(turn_is_alone(&outbox));
        outbox.begin((1, 2), true, None, ());
        outbox.begin((1, 3), true, None, ());
        let order = order(&outbox, 32);
        assert_eq!(order.iter().filter(|id| **id == 1).count(), 4, "{order:?}");
        let between = order.iter().filter(|id| **id == 2).count();
        assert_eq!(between, 14, "the urgent ones share: {order:?}");
    }

    #[tokio::test]
    async fn what_goes_slowly_on_purpose_ends_when_nobody_is_left_to_stop_it() {
        for in_turn in [false, true] {
            let outbox = Outbox::default();
            outbox.begin((1, 1), false, None, ());
            let mut slow = turn(&outbox);
            slow.due = Some(Instant::now() + Duration::from_secs(3600));
            if in_turn {
                outbox.close();
                outbox.put_back(slow, false);
            } else {
                outbox.put_back(slow, false);
                outbox.close();
            }
            assert!(outbox.is_over());
        }
    }

    fn turn_is_alone(outbox: &Outbox<()>) -> bool {
        let turn = turn(outbox);
        let alone = turn.alone;
        outbox.put_back(turn, false);
        alone
    }

    #[tokio::test]
    async fn without_credit_there_is_no_turn() {
        let outbox = Outbox::default();
        outbox.begin((1, 1), false, Some(10), ());
        let first = turn(&outbox);
        assert_eq!(first.flow.room(), 10);
        first.flow.spend(10);
        outbox.put_back(first, false);
        assert!(matches!(outbox.next(Instant::now()), Next::Nobody));
        outbox.credit((1, 1), 5);
        let second = turn(&outbox);
        assert_eq!(second.flow.room(), 5);
        // Credit that comes meanwhile counts, too.
        second.flow.spend(5);
        outbox.credit((1, 1), u64::MAX);
        outbox.put_back(second, false);
        assert_eq!(turn(&outbox).flow.room(), u64::MAX - 15);
    }

    #[tokio::test]
    async fn what_is_cancelled_has_no_more_turns() {
        let outbox = Outbox::default();
        for id in 1..=3 {
            outbox.begin((1, id), false, None, ());
        }
        outbox.begin((2, 1), false, Some(1), ());
        let first = turn(&outbox);
        assert!(outbox.cancel((1, 1)) && outbox.cancel((1, 2)) && !outbox.cancel((1, 2)));
        assert!(first.flow.is_cancelled());
        outbox.put_back(first, false);
        assert_eq!(order(&outbox, 2), [3, 1]);
        // A new one of that id is another.
        outbox.begin((1, 1), false, None, ());
        outbox.cancel_session(1);
        assert_eq!((order(&outbox, 2), outbox.under_way()), (vec![1, 1], 1));
    }

    #[tokio::test]
    async fn pauses_end_where_they_began() {
        let outbox = Outbox::default();
        assert!(!outbox.pause((1, 0), true));
        outbox.begin((1, 0), false, None, ());
        assert!(outbox.pause((1, 0), true));
        assert!(matches!(outbox.next(Instant::now()), Next::Nobody));
        outbox.credit((1, 0), 7);
        assert!(matches!(outbox.next(Instant::now()), Next::Nobody), "credit does not end a pause");
        assert!(outbox.pause((1, 0), false));
        assert_eq!(order(&outbox, 1), [0]);
    }

    #[tokio::test]
    async fn what_is_not_due_waits() {
        let outbox = Outbox::default();
        outbox.begin((1, 1), false, None, ());
        let mut first = turn(&outbox);
        let due = Instant::now() + Duration::from_secs(5);
        first.due = Some(due);
        outbox.put_back(first, false);
        assert!(matches!(outbox.next(Instant::now()), Next::NotBefore(at) if at == due));
        assert!(matches!(outbox.next(due), Next::Turn(_)));
    }

    #[tokio::test]
    async fn places_and_words_are_bounded() {
        let outbox: Outbox<()> = Outbox::default();
        for id in 1..=UNDER_WAY_MAX as u32 {
            outbox.may_begin(&[(1, id)]).unwrap();
            outbox.begin((1, id), false, None, ());
        }
        assert_eq!(outbox.may_begin(&[(1, 0)]), Err(NotBegun::Full));
        let last = turn(&outbox);
        outbox.put_back(last, true);
        assert_eq!(outbox.may_begin(&[(1, 2)]), Err(NotBegun::Taken));
        outbox.may_begin(&[(1, 1)]).unwrap();

        outbox.has_room().await;
        outbox.say(vec![0; WORDS_MAX_BYTES].into());
        assert!(futures::poll!(std::pin::pin!(outbox.has_room())).is_pending());
        let mut out = VecDeque::new();
        outbox.take_words(&mut out);
        outbox.has_room().await;
        assert_eq!(out.len(), 1);
    }

    #[tokio::test]
    async fn it_is_over_when_nothing_can_be_sent_any_more() {
        let outbox = Outbox::default();
        outbox.begin((1, 1), false, None, ());
        outbox.begin((1, 2), false, Some(1), ());
        outbox.say("x".into());
        outbox.close();
        outbox.take_words(&mut VecDeque::new());
        assert!(!outbox.is_over());
        for _ in 0..2 {
            let turn = turn(&outbox);
            turn.flow.spend(1);
            let done = turn.key.1 == 1;
            outbox.put_back(turn, done);
        }
        assert!(outbox.is_over(), "what waits for credit gets none any more");
    }
}
