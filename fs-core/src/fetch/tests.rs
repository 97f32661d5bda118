//! One fetch per block under every order of events.

mod streams;

use std::ops::Range;
use std::sync::atomic::AtomicBool;

use async_trait::async_trait;

use super::*;
use crate::backend::recording::{Log, Recording};
use crate::backend::{Beginning, ByteStream, Enough, ObjectState, Validator};
use crate::cache::CacheLimits;
use crate::error::ErrorKind;
use crate::stage::noise;

const BLOCK: u64 = 10_000;

/// An object in memory; reads wait at a gate that the test opens, and fail where the test says.
#[derive(Debug)]
struct Gated {
    bytes: Mutex<Vec<u8>>,
    open: watch::Sender<bool>,
    /// Ranges that touch this byte are refused.
    bad: Mutex<Option<u64>>,
    /// Damage what is not asked for past caches.
    stale_cache: AtomicBool,
}

#[async_trait]
impl Backend for Gated {
    fn origin(&self) -> &str {
        "memory"
    }
    async fn stat(&self, _: &ObjectPath) -> Result<ObjectState> {
        Ok(ObjectState { length: self.bytes.lock().len() as u64, validator: None, modified: None })
    }
    async fn read_range(&self, object: &ObjectPath, range: Range<u64>, options: ReadOptions) -> Result<ByteStream> {
        let mut open = self.open.subscribe();
        let _ = open.wait_for(|open| *open).await;
        if self.bad.lock().is_some_and(|bad| range.contains(&bad)) {
            return Err(Error::NotFound { what: object.to_string(), origin: "memory".into() });
        }
        let mut bytes = self.bytes.lock()[range.start as usize..range.end as usize].to_vec();
        if self.stale_cache.load(Ordering::SeqCst) && !options.bypass_caches {
            bytes[0] ^= 1;
        }
        // In odd pieces.
        let pieces: Vec<Result<Bytes>> = bytes.chunks(7777).map(|c| Ok(Bytes::copy_from_slice(c))).collect();
        Ok(Box::pin(futures::stream::iter(pieces)))
    }
    async fn read_beginning(&self, _: &ObjectPath, _: u64, _: Option<&Validator>, _: Enough<'_>) -> Result<Beginning> {
        Ok(Beginning::NotModified)
    }
}

struct Bench {
    _dir: tempfile::TempDir,
    gated: Arc<Gated>,
    fetcher: Arc<Fetcher>,
    log: Arc<Log>,
    content: Vec<u8>,
}

impl Bench {
    fn new(blocks: u64, deadline: Duration) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let limits = CacheLimits { disk_bytes: 1 << 30, keep_free_bytes: 0, memory_bytes: 64 << 20 };
        let cache = Cache::open(dir.path(), limits).unwrap();
        let content = noise(1, (blocks * BLOCK) as usize);
        let gated = Arc::new(Gated {
            bytes: Mutex::new(content.clone()),
            open: watch::Sender::new(false),
            bad: Mutex::default(),
            stale_cache: AtomicBool::new(false),
        });
        let recording = Recording::new(gated.clone());
        let log = recording.log();
        let fetcher = Fetcher::new(Arc::new(recording), cache, deadline);
        Self { _dir: dir, gated, fetcher, log, content }
    }

    fn block(&self, i: u64) -> &[u8] {
        &self.content[(i * BLOCK) as usize..((i + 1) * BLOCK) as usize]
    }

    fn wanted(&self, blocks: Range<u64>) -> Vec<Wanted> {
        let object = Arc::new(ObjectPath::new("packs/p").unwrap());
        let one = |i| Wanted {
            object: object.clone(),
            offset: i * BLOCK,
            stored: BLOCK as u32,
            length: BLOCK as u32,
            hash: Hash::of(self.block(i)),
            home: None,
            remember: true,
        };
        blocks.map(one).collect()
    }

    fn get(&self, blocks: Range<u64>, urgency: Urgency) -> tokio::task::JoinHandle<Result<Vec<Bytes>>> {
        let (fetcher, wanted) = (self.fetcher.clone(), self.wanted(blocks));
        tokio::spawn(async move { fetcher.get(wanted, urgency).await })
    }

    async fn requests(&self, count: usize) {
        let begun = std::time::Instant::now();
        while self.log.count() < count {
            assert!(begun.elapsed() < Duration::from_secs(10), "{} of {count} requests came", self.log.count());
            tokio::task::yield_now().await;
        }
    }

    fn open(&self) {
        self.gated.open.send_replace(true);
    }
}

const LONG: Duration = Duration::from_secs(20);

#[tokio::test]
async fn neighbours_are_one_request_and_many_readers_one_fetch() {
    let bench = Bench::new(8, LONG);
    let readers: Vec<_> = (0..50).map(|_| bench.get(0..8, Urgency::Demand)).collect();
    bench.requests(1).await;
    bench.open();
    for reader in readers {
        let blocks = reader.await.unwrap().unwrap();
        assert!(blocks.concat() == bench.content);
    }
    assert_eq!(bench.log.count(), 1);
    assert_eq!(bench.fetcher.statistics().blocks_fetched, 8);
    assert!(bench.fetcher.in_flight.lock().is_empty());
}

#[tokio::test]
async fn a_block_that_is_wanted_twice_at_once_comes_once() {
    let bench = Bench::new(2, LONG);
    bench.open();
    let mut wanted = bench.wanted(0..2);
    wanted.extend(bench.wanted(0..1));
    let blocks = bench.fetcher.get(wanted, Urgency::Demand).await.unwrap();
    assert_eq!(blocks.len(), 3);
    assert_eq!(blocks[0], blocks[2]);
    assert_eq!(bench.log.count(), 1);
}

#[tokio::test]
async fn a_reader_that_goes_away_takes_nothing_from_the_others() {
    let bench = Bench::new(4, LONG);
    let first = bench.get(0..4, Urgency::Demand);
    bench.requests(1).await;
    let second = bench.get(2..4, Urgency::Demand);
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    bench.open();
    assert!(second.await.unwrap().unwrap().concat() == bench.content[2 * BLOCK as usize..]);
    assert_eq!(bench.log.count(), 1);
    assert_eq!(bench.fetcher.demand_outstanding.load(Ordering::SeqCst), 0);
    // What the first had asked for is there.
    let again = bench.get(0..2, Urgency::Demand).await.unwrap().unwrap();
    assert_eq!((again.len(), bench.log.count()), (2, 1));
}

#[tokio::test]
async fn background_work_waits_for_demand_and_is_hurried_by_it() {
    let bench = Bench::new(6, LONG);
    let demand = bench.get(0..1, Urgency::Demand);
    bench.requests(1).await;
    let waits = bench.get(2..3, Urgency::Background);
    let hurried = bench.get(4..5, Urgency::Background);
    // A demand read of what is wanted in the background already takes it over.
    let joins = bench.get(4..5, Urgency::Demand);
    bench.requests(2).await;
    let asked: Vec<_> = bench.log.requests().into_iter().map(|r| r.range.unwrap().start / BLOCK).collect();
    assert_eq!(asked, [0, 4], "the other still waits");
    bench.open();
    for done in [demand, waits, hurried, joins] {
        done.await.unwrap().unwrap();
    }
    assert_eq!(bench.log.count(), 3);
}

#[tokio::test]
async fn a_stalled_fetch_ends_by_the_deadline_and_the_next_read_is_fresh() {
    // A transfer that stalled stayed registered, and every later read of its blocks joined it and timed out, too.
    let bench = Bench::new(2, Duration::from_millis(200));
    let begun = std::time::Instant::now();
    let e = bench.get(0..2, Urgency::Demand).await.unwrap().unwrap_err();
    assert_eq!(e.kind(), ErrorKind::TimedOut);
    assert!(e.to_string().contains("packs/p"), "{e}");
    assert!(begun.elapsed() < Duration::from_secs(5));
    while !bench.fetcher.in_flight.lock().is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(10), "the stalled fetch is still joined");
        tokio::task::yield_now().await;
    }
    bench.open();
    assert_eq!(bench.get(0..2, Urgency::Demand).await.unwrap().unwrap().len(), 2);
}

#[tokio::test]
async fn background_work_that_waits_its_turn_for_long_does_not_fail() {
    // Loading a version over a slow line failed with a deadline that ran while blocks only stood in the queue.
    let bench = Bench::new(4, Duration::from_millis(100));
    let demand = DemandGuard::new(&bench.fetcher, Urgency::Demand);
    let waits = bench.get(2..3, Urgency::Background);
    // Several times the deadline pass: that is what is tested.
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert!(!waits.is_finished());
    bench.open();
    drop(demand);
    waits.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_failing_neighbour_does_not_fail_a_read_that_does_not_need_it() {
    // A read that joined a read-ahead got its error, although only a block further on could not be had.
    let bench = Bench::new(8, LONG);
    *bench.gated.bad.lock() = Some(7 * BLOCK);
    let ahead = bench.get(0..8, Urgency::Background);
    bench.requests(1).await;
    let read = bench.get(0..1, Urgency::Demand);
    tokio::task::yield_now().await;
    bench.open();
    assert_eq!(read.await.unwrap().unwrap()[0], bench.block(0));
    let e = ahead.await.unwrap().unwrap_err();
    assert_eq!(e.kind(), ErrorKind::NotFound);
    assert!(e.to_string().contains("packs/p"));
    // The error is not remembered either.
    *bench.gated.bad.lock() = None;
    assert_eq!(bench.get(0..8, Urgency::Demand).await.unwrap().unwrap().len(), 8);
}

#[tokio::test]
async fn all_who_wait_for_one_fetch_get_its_error() {
    let bench = Bench::new(1, LONG);
    *bench.gated.bad.lock() = Some(0);
    let readers: Vec<_> = (0..10).map(|_| bench.get(0..1, Urgency::Demand)).collect();
    bench.requests(1).await;
    bench.open();
    for reader in readers {
        assert_eq!(reader.await.unwrap().unwrap_err().kind(), ErrorKind::NotFound);
    }
    assert!(bench.fetcher.in_flight.lock().is_empty());
}

#[tokio::test]
async fn damage_on_the_way_is_healed_past_caches_and_damage_at_the_origin_is_told() {
    let bench = Bench::new(3, LONG);
    bench.open();
    bench.gated.stale_cache.store(true, Ordering::SeqCst);
    let blocks = bench.get(0..3, Urgency::Demand).await.unwrap().unwrap();
    assert!(blocks.concat() == bench.content);
    assert_eq!(bench.fetcher.statistics().damaged, 1, "the answer's first byte was wrong");
    assert_eq!(bench.log.count(), 2);

    let bench = Bench::new(3, LONG);
    bench.open();
    bench.gated.bytes.lock()[BLOCK as usize + 5] ^= 1;
    let e = bench.get(0..3, Urgency::Demand).await.unwrap().unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Damaged);
    assert!(e.to_string().contains("packs/p at byte 10000"), "{e}");
    assert_eq!(bench.get(2..3, Urgency::Demand).await.unwrap().unwrap()[0], bench.block(2));
}

#[tokio::test]
async fn a_place_that_tells_another_length_than_the_block_has_is_damage() {
    // Cutting a piece out of a block that was shorter than its place said was a crash.
    let bench = Bench::new(1, LONG);
    bench.open();
    bench.get(0..1, Urgency::Demand).await.unwrap().unwrap();
    let mut wanted = bench.wanted(0..1);
    wanted[0].length += 1;
    let e = bench.fetcher.get(wanted, Urgency::Demand).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Damaged);
}

#[tokio::test]
async fn a_block_in_memory_does_not_keep_the_transfer_it_came_in() {
    // Raw blocks were slices of the whole transfer: one that stayed in memory kept up to 4 MiB.
    let bench = Bench::new(40, LONG);
    bench.open();
    let blocks = bench.get(0..40, Urgency::Demand).await.unwrap().unwrap();
    let mut starts: Vec<usize> = blocks.iter().map(|b| b.as_ptr() as usize).collect();
    starts.sort_unstable();
    assert!(starts.windows(2).all(|w| w[1] - w[0] != BLOCK as usize), "each block has its own allocation");
}
