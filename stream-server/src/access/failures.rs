//! Failed logins slow the next ones down, by user and by address.
//!
//! Each failure fills a bucket that empties steadily; where one is full, the next login waits. An attempt counts as
//! failed from its beginning until it has succeeded, so that many at once get no further than one after the other.
//!
//! Somebody who only knows a user's name could lock that user out so. Therefore addresses from which the user did log
//! in are not held against failures elsewhere (as OWASP's device cookies do, by address): what fails there counts for
//! the address alone.

use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use lru::LruCache;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::Refusal;
use super::settings::FailedLogins;
use crate::limits::network;

/// Most users, addresses and pairs of both that are remembered; who comes longest ago is forgotten first. About 2 MiB.
const REMEMBERED_MAX: NonZeroUsize = NonZeroUsize::new(10_000).expect("not zero");

/// The failed logins of late.
pub(super) struct Failures {
    settings: FailedLogins,
    inner: Mutex<Inner>,
}

struct Inner {
    users: LruCache<String, Bucket>,
    addresses: LruCache<IpAddr, Bucket>,
    /// Where users logged in from.
    familiar: LruCache<(String, IpAddr), ()>,
}

/// A login that is being checked. It counts as failed unless it is said to have succeeded, or to have told nothing.
pub(super) struct Attempt {
    failures: Arc<Failures>,
    user: Option<String>,
    address: IpAddr,
}

impl Failures {
    pub(super) fn new(settings: FailedLogins) -> Self {
        let inner = Inner {
            users: LruCache::new(REMEMBERED_MAX),
            addresses: LruCache::new(REMEMBERED_MAX),
            familiar: LruCache::new(REMEMBERED_MAX),
        };
        Self { settings, inner: Mutex::new(inner) }
    }

    /// Begins an attempt, by a name if one was given.
    ///
    /// # Errors
    /// [`Refusal::TooMany`], with the time to wait.
    pub(super) fn attempt(self: &Arc<Self>, user: Option<&str>, peer: IpAddr) -> Result<Attempt, Refusal> {
        let now = Instant::now();
        let address = network(peer);
        let user = user.map(str::to_lowercase);
        let FailedLogins { per_user, per_address, window } = self.settings;
        let mut inner = self.inner.lock();
        let familiar = user.as_ref().is_some_and(|user| inner.familiar.get(&(user.clone(), address)).is_some());
        let user = user.filter(|_| !familiar);
        let of_address = inner.addresses.get_or_insert_mut(address, || Bucket::empty(now));
        let mut wait = of_address.wait(now, per_address, window);
        if let Some(user) = &user {
            let of_user = inner.users.get_or_insert_mut(user.clone(), || Bucket::empty(now));
            wait = wait.max(of_user.wait(now, per_user, window));
        }
        if !wait.is_zero() {
            return Err(Refusal::TooMany { retry_after: wait });
        }
        if let Some(bucket) = inner.addresses.get_mut(&address) {
            bucket.level += 1.0;
        }
        if let Some(bucket) = user.as_ref().and_then(|user| inner.users.get_mut(user)) {
            bucket.level += 1.0;
        }
        Ok(Attempt { failures: self.clone(), user, address })
    }

    /// The user logged in from there.
    pub(super) fn succeeded(&self, user: &str, peer: IpAddr) {
        self.inner.lock().familiar.put((user.to_lowercase(), network(peer)), ());
    }
}

impl Attempt {
    /// It did not fail: the credentials were right, or could not be checked.
    pub(super) fn forgive(self) {
        let mut inner = self.failures.inner.lock();
        if let Some(bucket) = inner.addresses.get_mut(&self.address) {
            bucket.level = (bucket.level - 1.0).max(0.0);
        }
        if let Some(bucket) = self.user.as_ref().and_then(|user| inner.users.get_mut(user)) {
            bucket.level = (bucket.level - 1.0).max(0.0);
        }
    }
}

/// Failures that are not forgotten yet.
struct Bucket {
    level: f64,
    at: Instant,
}

impl Bucket {
    fn empty(now: Instant) -> Self {
        Self { level: 0.0, at: now }
    }

    /// How long until one more fits.
    fn wait(&mut self, now: Instant, capacity: u32, window: Duration) -> Duration {
        let per_second = f64::from(capacity) / window.as_secs_f64();
        self.level = (self.level - now.duration_since(self.at).as_secs_f64() * per_second).max(0.0);
        self.at = now;
        let over = self.level + 1.0 - f64::from(capacity);
        // What rounding leaves behind shall not make anybody wait.
        // Whole seconds, because that is how clients are told.
        if over <= 1e-6 { Duration::ZERO } else { Duration::from_secs_f64((over / per_second - 1e-6).ceil()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failures() -> Arc<Failures> {
        Arc::new(Failures::new(FailedLogins { per_user: 3, per_address: 5, window: Duration::from_secs(60) }))
    }

    fn from(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    fn is_refused(attempt: Result<Attempt, Refusal>) -> bool {
        match attempt {
            Ok(_) => false,
            Err(Refusal::TooMany { retry_after }) => {
                assert!(!retry_after.is_zero());
                true
            }
            Err(other) => panic!("{other:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_user_that_fails_too_often_must_wait_whatever_the_address() {
        let failures = failures();
        for last in 1..=3 {
            assert!(!is_refused(failures.attempt(Some("ann"), from(last))));
        }
        assert!(is_refused(failures.attempt(Some("ann"), from(4))));
        assert!(is_refused(failures.attempt(Some("ANN"), from(5))), "names of directories have no case");
        assert!(!is_refused(failures.attempt(Some("bob"), from(4))));
        // A third of the window brings one attempt back.
        tokio::time::advance(Duration::from_secs(20)).await;
        assert!(!is_refused(failures.attempt(Some("ann"), from(4))));
        assert!(is_refused(failures.attempt(Some("ann"), from(4))));
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_fails_too_often_must_wait_whoever_it_is() {
        let failures = failures();
        for user in ["a", "b", "c", "d", "e"] {
            assert!(!is_refused(failures.attempt(Some(user), from(1))));
        }
        assert!(is_refused(failures.attempt(Some("f"), from(1))));
        assert!(is_refused(failures.attempt(None, from(1))));
        assert!(!is_refused(failures.attempt(Some("f"), from(2))));
        match failures.attempt(None, from(1)) {
            Err(Refusal::TooMany { retry_after }) => assert_eq!(retry_after, Duration::from_secs(12)),
            _ => panic!("it was let in"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn success_and_outages_are_not_counted() {
        let failures = failures();
        for _ in 0..20 {
            failures.attempt(Some("ann"), from(1)).unwrap_or_else(|e| panic!("{e:?}")).forgive();
        }
        assert!(!is_refused(failures.attempt(Some("ann"), from(1))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stranger_cannot_lock_a_user_out() {
        let failures = failures();
        failures.succeeded("Ann", from(9));
        for last in 1..=3 {
            assert!(!is_refused(failures.attempt(Some("ann"), from(last))));
        }
        assert!(is_refused(failures.attempt(Some("ann"), from(4))));
        assert!(!is_refused(failures.attempt(Some("ann"), from(9))), "known there");
    }
}
