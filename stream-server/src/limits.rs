//! How fast clients are served.
//!
//! Two token buckets bound what is sent: one for each client, one for all. What waits for the common one is served in
//! turn, a piece of each client after the other, however many requests a client makes at once: nobody gets a larger
//! share by asking more often. A client is an address (IPv6: one /64).
//!
//! ```text
//! take(bytes) ── turn within the client ── tokens of the client ── turn among the clients ── tokens of all ── go
//! ```

use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use lru::LruCache;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::metrics::Metrics;

/// Bytes that are taken at once: small enough that turns come round quickly, large enough that waiting costs little.
const PIECE_BYTES: u64 = 64 << 10;

/// What a bucket holds when it is full, in time at its rate: a small request after a pause goes out at once.
const BURST: Duration = Duration::from_millis(500);

/// Clients whose buckets are remembered; whoever has been quiet longest is forgotten first.
const CLIENTS_MAX: NonZeroUsize = NonZeroUsize::new(65_536).expect("not zero");

/// What is allowed. Without a number, as fast as it goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LimitSettings {
    /// Bytes per second to one client.
    pub client_bytes_per_second: Option<u64>,
    /// Bytes per second to all together.
    pub total_bytes_per_second: Option<u64>,
}

/// The limits of a server. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    settings: LimitSettings,
    total: Option<TokenBucket>,
    clients: Mutex<LruCache<IpAddr, Arc<Client>>>,
    metrics: Metrics,
}

#[derive(Debug)]
struct Client {
    bucket: Option<TokenBucket>,
    /// Held by the request that waits for the common bucket, so that a client waits there once.
    turn: tokio::sync::Mutex<()>,
}

impl Default for Limits {
    /// None.
    fn default() -> Self {
        Self::new(LimitSettings::default(), Metrics::default())
    }
}

impl Limits {
    pub(crate) fn new(settings: LimitSettings, metrics: Metrics) -> Self {
        let shared = Shared {
            settings,
            total: settings.total_bytes_per_second.map(TokenBucket::new),
            clients: Mutex::new(LruCache::new(CLIENTS_MAX)),
            metrics,
        };
        Self { shared: Arc::new(shared) }
    }

    /// What `peer` shares with all its connections.
    pub(crate) fn client(&self, peer: IpAddr) -> Bucket {
        Bucket { shared: self.shared.clone(), client: self.of(peer) }
    }

    fn of(&self, peer: IpAddr) -> Arc<Client> {
        let make = || {
            let bucket = self.shared.settings.client_bytes_per_second.map(TokenBucket::new);
            Arc::new(Client { bucket, turn: tokio::sync::Mutex::new(()) })
        };
        self.shared.clients.lock().get_or_insert(network(peer), make).clone()
    }
}

/// One client's share.
#[derive(Debug, Clone)]
pub(crate) struct Bucket {
    shared: Arc<Shared>,
    client: Arc<Client>,
}

impl Bucket {
    /// Waits until `bytes` may be sent. May be dropped at any time; then only pieces that were waited for are spent.
    pub(crate) async fn take(&self, bytes: u64) {
        if self.shared.total.is_none() && self.client.bucket.is_none() {
            return;
        }
        let began = Instant::now();
        let mut left = bytes;
        while left > 0 {
            let piece = left.min(PIECE_BYTES);
            let _turn = self.client.turn.lock().await;
            if let Some(bucket) = &self.client.bucket {
                bucket.take(piece).await;
            }
            if let Some(total) = &self.shared.total {
                total.take(piece).await;
            }
            left -= piece;
        }
        let waited = began.elapsed();
        if !waited.is_zero() {
            self.shared.metrics.throttled(waited);
        }
    }
}

/// Tokens come at a steady rate; those who wait are served in the order they came.
#[derive(Debug)]
struct TokenBucket {
    nanos_per_byte: f64,
    burst: Duration,
    /// When all that was taken so far is paid for. Behind now: tokens are there.
    paid: tokio::sync::Mutex<Instant>,
}

impl TokenBucket {
    fn new(bytes_per_second: u64) -> Self {
        let nanos_per_byte = 1e9 / bytes_per_second.max(1) as f64;
        // At least a piece, or slow lines would pay before every one.
        let burst = BURST.max(cost(nanos_per_byte, PIECE_BYTES));
        // Not further back than the clock reaches; then the bucket begins empty.
        let paid = Instant::now().checked_sub(burst).unwrap_or_else(Instant::now);
        Self { nanos_per_byte, burst, paid: tokio::sync::Mutex::new(paid) }
    }

    async fn take(&self, bytes: u64) {
        let mut paid = self.paid.lock().await;
        let now = Instant::now();
        // A full bucket does not become fuller.
        let start = now.checked_sub(self.burst).map_or(*paid, |full| full.max(*paid));
        let end = start + cost(self.nanos_per_byte, bytes);
        if end > now {
            tokio::time::sleep_until(end).await;
        }
        *paid = end;
    }
}

fn cost(nanos_per_byte: f64, bytes: u64) -> Duration {
    Duration::from_nanos((nanos_per_byte * bytes as f64) as u64)
}

/// What counts as one client: providers hand whole /64 networks of IPv6 to one customer.
pub(crate) fn network(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX))),
        ip => ip,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    const KIB: u64 = 1024;

    fn peer(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    fn limits(client: Option<u64>, total: Option<u64>) -> Limits {
        let settings = LimitSettings { client_bytes_per_second: client, total_bytes_per_second: total };
        Limits::new(settings, Metrics::default())
    }

    /// How long `take` waits.
    async fn waits(bucket: &Bucket, bytes: u64) -> Duration {
        let began = Instant::now();
        bucket.take(bytes).await;
        began.elapsed()
    }

    fn about(waited: Duration, seconds: f64) {
        assert!((waited.as_secs_f64() - seconds).abs() < 0.01 + seconds * 0.01, "{waited:?} is not about {seconds} s");
    }

    #[tokio::test(start_paused = true)]
    async fn without_limits_nothing_waits() {
        about(waits(&Limits::default().client(peer(1)), u64::MAX).await, 0.0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_gets_its_rate_after_a_burst() {
        let limits = limits(Some(1024 * KIB), None);
        let bucket = limits.client(peer(1));
        // The clock of a test may not reach back far enough for a full bucket.
        tokio::time::advance(BURST).await;
        about(waits(&bucket, 512 * KIB).await, 0.0);
        about(waits(&bucket, 2048 * KIB).await, 2.0);
        // All its connections share it; other clients do not.
        about(waits(&limits.client(peer(1)), 1024 * KIB).await, 1.0);
        tokio::time::advance(BURST).await;
        about(waits(&limits.client(peer(2)), 256 * KIB).await, 0.0);
        // A long pause does not add up.
        tokio::time::advance(Duration::from_secs(3600)).await;
        about(waits(&bucket, 1024 * KIB).await, 0.5);
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_more_often_gets_no_larger_share() {
        let limits = limits(None, Some(1024 * KIB));
        let took = [AtomicU64::new(0), AtomicU64::new(0)];
        let ask = |client: usize| {
            let bucket = limits.client(peer(u8::try_from(client).unwrap()));
            let took = &took[client];
            async move {
                while took.load(Ordering::Relaxed) < u64::MAX {
                    bucket.take(PIECE_BYTES).await;
                    took.fetch_add(PIECE_BYTES, Ordering::Relaxed);
                }
            }
        };
        let modest = ask(0);
        let greedy = futures::future::join_all((0..50).map(|_| ask(1)));
        let both = futures::future::join(modest, greedy);
        tokio::time::timeout(Duration::from_secs(20), both).await.unwrap_err();
        let [modest, greedy] = took.map(|bytes| bytes.into_inner() / KIB);
        let all = modest + greedy;
        assert!((19 * 1024..=22 * 1024).contains(&all), "{all} KiB in 20 s at 1024 KiB/s");
        assert!(modest * 5 > greedy * 4, "{modest} KiB against {greedy} KiB");
    }

    #[tokio::test(start_paused = true)]
    async fn what_one_client_does_not_use_others_get() {
        let limits = limits(Some(256 * KIB), Some(1024 * KIB));
        tokio::time::advance(Duration::from_secs(1)).await;
        let slow = limits.client(peer(1));
        let others: Vec<_> = (2..6).map(|last| limits.client(peer(last))).collect();
        let began = Instant::now();
        let all = others.iter().map(|bucket| bucket.take(1024 * KIB));
        let (_, _) = tokio::join!(slow.take(KIB), futures::future::join_all(all));
        // Four clients at 256 KiB/s each fill the common rate.
        let took = began.elapsed().as_secs_f64();
        assert!((3.0..5.0).contains(&took), "{took}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_leaves_while_it_waits_blocks_nobody() {
        let limits = limits(None, Some(64 * KIB));
        let (one, two) = (limits.client(peer(1)), limits.client(peer(2)));
        let left = tokio::time::timeout(Duration::from_millis(100), one.take(1 << 40)).await;
        left.unwrap_err();
        assert!(waits(&two, KIB).await < Duration::from_secs(3));
    }

    #[test]
    fn networks_of_one_customer_are_one() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(network(ip("2001:db8:1:2:3:4:5:6")), network(ip("2001:db8:1:2::9")));
        assert_ne!(network(ip("2001:db8:1:2::1")), network(ip("2001:db8:1:3::1")));
        assert_eq!(network(ip("::ffff:192.0.2.1")), ip("192.0.2.1"));
        assert_ne!(network(ip("192.0.2.1")), network(ip("192.0.2.2")));
    }
}
