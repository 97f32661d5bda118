//! Counters of one mount: what was read, what waited for what and how long, where it came from.
//!
//! They are always on. What is answered at once adds to a few atomics; only what waits, and what is asked
//! during a launch, takes a look at the clock.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::Serialize;

use super::Mount;
use super::launch::LaunchStatistics;
use super::observe::Waits;
use crate::error::Result;
use crate::fetch::{FetchStatistics, Source};

/// Upper bounds of the histograms' buckets, in microseconds: from a block read from disk to a read's deadline.
pub const WAIT_BOUNDS_MICROS: [u64; 15] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 10_000_000,
    60_000_000,
];

const CAUSES: [Cause; 2] = [Cause::Pages, Cause::Blocks];
const SOURCES: [Source; 5] = [Source::Memory, Source::Disk, Source::LaunchStream, Source::UnderWay, Source::Origin];

/// What a question waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// Pages of the tree: names, attributes, places of blocks.
    Pages,
    /// Blocks of content.
    Blocks,
}

/// Counters of a mount. The fetches are the package's, which versions mounted side by side share.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct MountStatistics {
    /// Reads of file content.
    pub reads: u64,
    /// Of these, answered without waiting.
    pub reads_local: u64,
    /// Bytes read.
    pub bytes_read: u64,
    /// What was fetched.
    #[serde(flatten)]
    pub fetches: FetchStatistics,
}

/// All that is counted of a mount.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MountMetrics {
    /// The plain counters.
    #[serde(flatten)]
    pub statistics: MountStatistics,
    /// Questions of any kind that could not be answered.
    pub questions_failed: u64,
    /// How long was waited, by what for and by the farthest that anything came from. Only what occurred.
    pub waits: Vec<WaitHistogram>,
    /// Where bytes came from. Only what occurred.
    pub bytes_by_source: Vec<SourceBytes>,
    /// The launch set.
    pub launch: LaunchStatistics,
}

/// How often and how long was waited for one thing from one place.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WaitHistogram {
    /// What for.
    pub cause: Cause,
    /// The farthest that anything came from.
    pub source: Source,
    /// Questions that waited.
    pub count: u64,
    /// How long together, in microseconds.
    pub sum_micros: u64,
    /// Of the questions, those that waited no longer than each bound of [`WAIT_BOUNDS_MICROS`].
    pub buckets: Vec<Bucket>,
}

/// One bucket of a histogram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Bucket {
    /// Its upper bound, inclusive.
    pub le_micros: u64,
    /// All that were no longer.
    pub count: u64,
}

/// Bytes from one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct SourceBytes {
    /// Where from; `None`: they were at hand when they were asked for, in memory or verified on disk.
    pub source: Option<Source>,
    /// Bytes read for those at hand; for the others, bytes of the blocks and pages that were waited for.
    pub bytes: u64,
}

#[derive(Debug, Default)]
struct Histogram {
    buckets: [AtomicU64; WAIT_BOUNDS_MICROS.len()],
    /// All, those beyond the last bound included.
    count: AtomicU64,
    sum_micros: AtomicU64,
}

/// The counters themselves.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    /// When the first read came, and when, in microseconds after that, the last question was answered.
    first_read: OnceLock<Instant>,
    last_answer_micros: AtomicU64,
    launch_is_over: AtomicBool,
    reads: AtomicU64,
    reads_local: AtomicU64,
    bytes_read: AtomicU64,
    bytes_local: AtomicU64,
    questions_failed: AtomicU64,
    brought: [AtomicU64; SOURCES.len()],
    waits: [[Histogram; SOURCES.len()]; CAUSES.len()],
}

fn add(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}

fn get(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

fn place(source: Source) -> usize {
    match source {
        Source::Memory => 0,
        Source::Disk => 1,
        Source::LaunchStream => 2,
        Source::UnderWay => 3,
        Source::Origin => 4,
    }
}

impl Histogram {
    fn add(&self, waited: Duration) {
        let micros = u64::try_from(waited.as_micros()).unwrap_or(u64::MAX);
        let bucket = WAIT_BOUNDS_MICROS.partition_point(|bound| *bound < micros);
        if let Some(bucket) = self.buckets.get(bucket) {
            add(bucket, 1);
        }
        add(&self.sum_micros, micros);
        add(&self.count, 1);
    }

    fn read(&self, cause: Cause, source: Source) -> Option<WaitHistogram> {
        let mut below = 0;
        let buckets = WAIT_BOUNDS_MICROS.iter().zip(&self.buckets).map(|(bound, bucket)| {
            below += get(bucket);
            Bucket { le_micros: *bound, count: below }
        });
        let buckets: Vec<Bucket> = buckets.collect();
        // Counted while we read: the whole is never less than its parts.
        let count = get(&self.count).max(below);
        (count > 0).then(|| WaitHistogram { cause, source, count, sum_micros: get(&self.sum_micros), buckets })
    }
}

impl Metrics {
    fn note_time(&self) {
        if let Some(first) = self.first_read.get()
            && !self.launch_is_over.load(Ordering::Relaxed)
        {
            let micros = u64::try_from(first.elapsed().as_micros()).unwrap_or(u64::MAX);
            self.last_answer_micros.fetch_max(micros, Ordering::Relaxed);
        }
    }

    /// A read was asked for.
    pub(super) fn read_asked(&self) {
        if self.first_read.get().is_none() && !self.launch_is_over.load(Ordering::Relaxed) {
            // Another thread's may have been the first.
            let _ = self.first_read.set(Instant::now());
        }
    }

    /// Nothing that comes from now on belongs to the launch. Tells how long it took, from its first read on; `None` if
    /// nothing was read.
    pub(super) fn launch_is_over(&self) -> Option<Duration> {
        self.launch_is_over.store(true, Ordering::Relaxed);
        self.first_read.get().map(|_| Duration::from_micros(get(&self.last_answer_micros)))
    }

    /// A read was answered, at once or not.
    pub(super) fn read(&self, result: &Result<Bytes>, at_once: bool) {
        self.note_time();
        let bytes = result.as_ref().map_or(0, |bytes| bytes.len() as u64);
        add(&self.reads, 1);
        add(&self.bytes_read, bytes);
        if at_once {
            add(&self.reads_local, 1);
            add(&self.bytes_local, bytes);
        }
    }

    /// A question was answered.
    pub(super) fn answered<T>(&self, result: &Result<T>) {
        self.note_time();
        if result.is_err() {
            add(&self.questions_failed, 1);
        }
    }

    /// A block or page that a question waited for is here.
    pub(super) fn brought(&self, source: Source, bytes: usize) {
        add(&self.brought[place(source)], bytes as u64);
    }

    /// A question waited.
    pub(super) fn waited(&self, waits: &Waits) {
        // Without a source nothing came, and failing is counted elsewhere.
        let Some(source) = waits.farthest else { return };
        for (cause, waited) in [waits.pages, waits.blocks].into_iter().enumerate() {
            if !waited.is_zero() {
                self.waits[cause][place(source)].add(waited);
            }
        }
    }
}

impl Mount {
    /// The plain counters since it was opened.
    pub fn statistics(&self) -> MountStatistics {
        MountStatistics {
            reads: get(&self.metrics.reads),
            reads_local: get(&self.metrics.reads_local),
            bytes_read: get(&self.metrics.bytes_read),
            fetches: self.fetcher.statistics(),
        }
    }

    /// All counters since it was opened.
    pub fn metrics(&self) -> MountMetrics {
        let metrics = &self.metrics;
        let waits = CAUSES.iter().zip(&metrics.waits).flat_map(|(cause, by_source)| {
            let sources = SOURCES.iter().zip(by_source);
            sources.filter_map(|(source, histogram)| histogram.read(*cause, *source))
        });
        let local = SourceBytes { source: None, bytes: get(&metrics.bytes_local) };
        let brought = SOURCES.iter().zip(&metrics.brought);
        let brought = brought.map(|(source, bytes)| SourceBytes { source: Some(*source), bytes: get(bytes) });
        MountMetrics {
            statistics: self.statistics(),
            questions_failed: get(&metrics.questions_failed),
            waits: waits.collect(),
            bytes_by_source: std::iter::once(local).chain(brought).filter(|from| from.bytes > 0).collect(),
            launch: self.launch_statistics(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_fall_into_the_bucket_that_bounds_them() {
        let histogram = Histogram::default();
        for micros in [0, 100, 101, 60_000_000, 60_000_001] {
            histogram.add(Duration::from_micros(micros));
        }
        let read = histogram.read(Cause::Pages, Source::Disk).unwrap();
        assert_eq!((read.count, read.sum_micros), (5, 120_000_202));
        let counts: Vec<u64> = read.buckets.iter().map(|b| b.count).collect();
        assert_eq!((counts[0], counts[1], counts[13], counts[14]), (2, 3, 3, 4));
    }

    #[test]
    fn a_wait_is_counted_for_each_cause_under_its_farthest_source() {
        let metrics = Metrics::default();
        let ms = Duration::from_millis;
        metrics.waited(&Waits { pages: ms(1), blocks: ms(2), farthest: Some(Source::Origin) });
        metrics.waited(&Waits { pages: ms(0), blocks: ms(4), farthest: Some(Source::Disk) });
        metrics.waited(&Waits { pages: ms(9), blocks: ms(9), farthest: None });
        let count = |cause: usize, source| get(&metrics.waits[cause][place(source)].count);
        assert_eq!((count(0, Source::Origin), count(1, Source::Origin)), (1, 1));
        assert_eq!((count(0, Source::Disk), count(1, Source::Disk)), (0, 1));
        assert!(SOURCES.iter().enumerate().all(|(at, source)| place(*source) == at));
    }
}
