//! Identities that were established a moment ago.
//!
//! Credentials come with each request, and checking them costs a hash that is slow on purpose, or a conversation with
//! a directory. So an identity is remembered under a keyed hash of what was presented, until it has to be established
//! anew. Of several requests that present the same at once, one check answers all. Refusals are not remembered.

use std::collections::HashMap;
use std::num::NonZeroUsize;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared};
use lru::LruCache;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{Identity, Refusal};

/// What a check comes to.
pub(super) type Outcome = Result<Identity, Refusal>;

/// A check, to be run.
pub(super) type Check = BoxFuture<'static, Outcome>;

/// A keyed hash of what was presented.
pub(super) type Key = [u8; 32];

/// From so many checks under way on, those that were abandoned are looked for.
const ABANDONED_CHECK: usize = 256;

pub(super) struct Remembered {
    /// Of this process alone, so that what is in memory tells nothing about the credentials.
    hash_key: [u8; 32],
    entries: Mutex<LruCache<Key, Identity>>,
    under_way: Mutex<HashMap<Key, WeakShared<Check>>>,
}

impl Remembered {
    pub(super) fn new(entries_max: usize) -> Self {
        let entries_max = NonZeroUsize::new(entries_max).unwrap_or(NonZeroUsize::MIN);
        Self { hash_key: rand::random(), entries: Mutex::new(LruCache::new(entries_max)), under_way: Mutex::default() }
    }

    /// The key of `parts`; what they are parts of is the first.
    pub(super) fn key(&self, parts: &[&str]) -> Key {
        let mut hasher = blake3::Hasher::new_keyed(&self.hash_key);
        for part in parts {
            // With their lengths, so that no two lists of parts are the same bytes.
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        *hasher.finalize().as_bytes()
    }

    /// The identity that is remembered, unless it has to be established anew.
    pub(super) fn get(&self, key: &Key) -> Option<Identity> {
        let mut entries = self.entries.lock();
        let identity = entries.get(key)?;
        if identity.is_stale(Instant::now()) {
            entries.pop(key);
            return None;
        }
        Some(identity.clone())
    }

    /// The identity that is remembered, or the outcome of `check`, which is run once for all who ask meanwhile.
    pub(super) async fn or_check(&self, key: Key, check: impl FnOnce() -> Check) -> Outcome {
        if let Some(identity) = self.get(&key) {
            return Ok(identity);
        }
        let shared = self.join(key, check);
        let outcome = shared.await;
        if let Ok(identity) = &outcome {
            self.entries.lock().put(key, identity.clone());
        }
        // Whoever came later than the outcome begins anew, or finds it remembered.
        self.under_way.lock().remove(&key);
        outcome
    }

    fn join(&self, key: Key, check: impl FnOnce() -> Check) -> Shared<Check> {
        let mut under_way = self.under_way.lock();
        if let Some(shared) = under_way.get(&key).and_then(WeakShared::upgrade) {
            return shared;
        }
        if under_way.len() >= ABANDONED_CHECK {
            under_way.retain(|_, weak| weak.upgrade().is_some());
        }
        let shared = check().shared();
        if let Some(weak) = shared.downgrade() {
            under_way.insert(key, weak);
        }
        shared
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    fn until(seconds: u64) -> Identity {
        Identity::for_test("ann", &[]).fresh_for_test(Instant::now() + Duration::from_secs(seconds))
    }

    #[test]
    fn keys_keep_parts_apart() {
        let it = Remembered::new(1);
        assert_ne!(it.key(&["basic", "ab", "c"]), it.key(&["basic", "a", "bc"]));
        assert_ne!(it.key(&["basic", "ab"]), it.key(&["basic", "ab", ""]));
        assert_eq!(it.key(&["basic", "ab"]), it.key(&["basic", "ab"]));
        assert_ne!(it.key(&["basic", "ab"]), Remembered::new(1).key(&["basic", "ab"]));
    }

    #[tokio::test(start_paused = true)]
    async fn one_check_answers_all_who_ask_at_once_and_later_until_it_is_stale() {
        let it = Arc::new(Remembered::new(10));
        let key = it.key(&["x"]);
        let checks = Arc::new(AtomicUsize::new(0));
        let ask = || {
            let (it, checks) = (it.clone(), checks.clone());
            async move {
                let check = move || {
                    checks.fetch_add(1, Ordering::Relaxed);
                    async {
                        tokio::time::sleep(Duration::from_secs(1)).await;
                        Ok(until(60))
                    }
                    .boxed()
                };
                it.or_check(key, check).await.map(|identity| identity.user)
            }
        };
        let all = futures::future::join_all((0..50).map(|_| ask())).await;
        assert!(all.iter().all(|outcome| outcome.as_deref() == Ok("ann")));
        ask().await.unwrap();
        assert_eq!(checks.load(Ordering::Relaxed), 1);
        tokio::time::advance(Duration::from_secs(61)).await;
        assert!(it.get(&key).is_none());
        ask().await.unwrap();
        assert_eq!(checks.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn refusals_are_not_remembered() {
        let it = Remembered::new(10);
        let key = it.key(&["x"]);
        let refused = it.or_check(key, || async { Err(Refusal::Wrong) }.boxed()).await;
        assert_eq!(refused.unwrap_err(), Refusal::Wrong);
        it.or_check(key, || async { Ok(until(60)) }.boxed()).await.unwrap();
    }

    #[tokio::test]
    async fn a_check_that_everybody_left_does_not_stay() {
        let it = Remembered::new(10);
        let key = it.key(&["x"]);
        {
            let mut left = Box::pin(it.or_check(key, || std::future::pending().boxed()));
            assert!(futures::poll!(&mut left).is_pending());
        }
        it.or_check(key, || async { Ok(until(60)) }.boxed()).await.unwrap();
    }

    #[tokio::test]
    async fn what_was_longest_ago_goes_first() {
        let it = Remembered::new(2);
        let keys: Vec<Key> = ["a", "b", "c"].iter().map(|part| it.key(&[part])).collect();
        for key in &keys {
            it.or_check(*key, || async { Ok(until(60)) }.boxed()).await.unwrap();
        }
        assert!(it.get(&keys[0]).is_none());
        assert!(it.get(&keys[1]).is_some() && it.get(&keys[2]).is_some());
    }
}
