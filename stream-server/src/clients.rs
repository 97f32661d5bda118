//! Who is connected now, with what they read and how fast, and the launches that were told last: for the status page.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::time::Instant;

use fs_core::backend::LaunchReport;
use fs_core::location::PackageVersion;

use crate::content::PackagePath;
use crate::metrics::Protocol;

/// A rate falls to a third within so many seconds of silence: short enough to follow, long enough to be read.
const RATE_SECONDS: f64 = 5.0;
/// Launches that are remembered.
const LAUNCHES_MAX: usize = 50;
/// Packages that are remembered of one connection.
const PACKAGES_MAX: usize = 16;

/// All connections that are served. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Clients(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    next: AtomicU64,
    all: Mutex<BTreeMap<u64, Arc<Client>>>,
    launches: Mutex<VecDeque<Launch>>,
}

/// A launch, as a client told it.
#[derive(Debug, Clone)]
pub(crate) struct Launch {
    pub(crate) package: PackagePath,
    pub(crate) report: LaunchReport,
    pub(crate) user: Option<String>,
    pub(crate) peer: IpAddr,
    pub(crate) when: Instant,
}

/// A connection that is served.
#[derive(Debug)]
pub(crate) struct Client {
    peer: IpAddr,
    protocol: Protocol,
    since: Instant,
    sent_bytes: AtomicU64,
    seen: Mutex<Seen>,
}

#[derive(Debug)]
struct Seen {
    user: Option<String>,
    reads: BTreeMap<PackagePath, Option<PackageVersion>>,
    rate: Rate,
}

/// Bytes per second, by an exponential average.
#[derive(Debug)]
struct Rate {
    per_second: f64,
    at: Instant,
}

/// Keeps a connection among those that are there, until it is dropped.
#[derive(Debug)]
pub(crate) struct Presence {
    clients: Clients,
    number: u64,
    client: Arc<Client>,
}

/// What is known of a connection.
#[derive(Debug, Clone)]
pub(crate) struct Shown {
    pub(crate) peer: IpAddr,
    pub(crate) protocol: Protocol,
    pub(crate) user: Option<String>,
    /// What it reads; the version where it is known.
    pub(crate) reads: BTreeMap<PackagePath, Option<PackageVersion>>,
    /// Seconds that it has been there.
    pub(crate) seconds: u64,
    pub(crate) sent_bytes: u64,
    pub(crate) bytes_per_second: u64,
}

impl Clients {
    /// Somebody is connected.
    pub(crate) fn enter(&self, peer: IpAddr, protocol: Protocol) -> Presence {
        let now = Instant::now();
        let seen = Seen { user: None, reads: BTreeMap::new(), rate: Rate { per_second: 0.0, at: now } };
        let client = Client {
            peer: peer.to_canonical(),
            protocol,
            since: now,
            sent_bytes: AtomicU64::new(0),
            seen: Mutex::new(seen),
        };
        let (client, number) = (Arc::new(client), self.0.next.fetch_add(1, Ordering::Relaxed));
        self.0.all.lock().insert(number, client.clone());
        Presence { clients: self.clone(), number, client }
    }

    /// How many there are, and the first `most` of them, the longest connected first.
    pub(crate) fn list(&self, most: usize) -> (usize, Vec<Shown>) {
        let all = self.0.all.lock();
        let clients: Vec<Arc<Client>> = all.values().take(most).cloned().collect();
        let count = all.len();
        drop(all);
        (count, clients.iter().map(|client| client.shown()).collect())
    }
}

impl Clients {
    /// A client told of a launch.
    pub(crate) fn launched(&self, launch: Launch) {
        let mut launches = self.0.launches.lock();
        if launches.len() == LAUNCHES_MAX {
            launches.pop_back();
        }
        launches.push_front(launch);
    }

    /// The launches that were told last, the newest first.
    pub(crate) fn launches(&self) -> Vec<Launch> {
        self.0.launches.lock().iter().cloned().collect()
    }
}

impl Presence {
    /// The connection.
    pub(crate) fn client(&self) -> &Arc<Client> {
        &self.client
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.clients.0.all.lock().remove(&self.number);
    }
}

impl Client {
    /// It was sent so many bytes of objects.
    pub(crate) fn sent(&self, bytes: u64) {
        self.sent_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.seen.lock().rate.add(bytes, Instant::now());
    }

    /// `user` reads `package`.
    pub(crate) fn reads(&self, user: Option<&str>, package: &PackagePath, version: Option<&PackageVersion>) {
        let mut seen = self.seen.lock();
        if seen.user.as_deref() != user {
            seen.user = user.map(str::to_owned);
        }
        if seen.reads.contains_key(package) && version.is_none() || seen.reads.len() >= PACKAGES_MAX {
            return;
        }
        seen.reads.insert(package.clone(), version.cloned());
    }

    fn shown(&self) -> Shown {
        let mut seen = self.seen.lock();
        seen.rate.add(0, Instant::now());
        Shown {
            peer: self.peer,
            protocol: self.protocol,
            user: seen.user.clone(),
            reads: seen.reads.clone(),
            seconds: self.since.elapsed().as_secs(),
            sent_bytes: self.sent_bytes.load(Ordering::Relaxed),
            bytes_per_second: seen.rate.per_second as u64,
        }
    }
}

impl Rate {
    fn add(&mut self, bytes: u64, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.per_second = self.per_second * (-passed / RATE_SECONDS).exp() + bytes as f64 / RATE_SECONDS;
        self.at = now;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_rate_follows_what_is_sent() {
        let clients = Clients::default();
        let present = clients.enter([192, 0, 2, 1].into(), Protocol::Http);
        for _ in 0..300 {
            tokio::time::advance(Duration::from_millis(100)).await;
            present.client().sent(100_000);
        }
        let rate = clients.list(9).1[0].bytes_per_second;
        assert!((900_000..1_100_000).contains(&rate), "{rate}");
        tokio::time::advance(Duration::from_secs(60)).await;
        let (_, shown) = clients.list(9);
        assert!(shown[0].bytes_per_second < 10 && shown[0].sent_bytes == 30_000_000 && shown[0].seconds == 90);
    }

    #[test]
    fn who_left_is_not_listed() {
        let clients = Clients::default();
        let (one, two) = (
            clients.enter([192, 0, 2, 1].into(), Protocol::Http),
            clients.enter([192, 0, 2, 2].into(), Protocol::Rtsp),
        );
        one.client().reads(Some("ann"), &"app".parse().unwrap(), None);
        one.client().reads(Some("ann"), &"app".parse().unwrap(), Some(&"1".parse().unwrap()));
        one.client().reads(Some("ann"), &"app".parse().unwrap(), None);
        let (count, shown) = clients.list(1);
        assert_eq!((count, shown.len(), shown[0].user.as_deref()), (2, 1, Some("ann")));
        let version = shown[0].reads.values().next().unwrap().as_ref().map(ToString::to_string);
        assert_eq!(version.as_deref(), Some("1"));
        drop(one);
        drop(two);
        assert_eq!(clients.list(9).0, 0);
    }
}
