//! Blocks that a stream brings: who waits for it, who does not.

use super::super::arriving::Arriving;
use super::*;
use crate::package::NodeId;
use crate::package::launch::{LaunchEntry, hash_prefix};

impl Bench {
    fn entries(&self, blocks: impl Iterator<Item = u64>) -> Vec<LaunchEntry> {
        let entry = |i: u64| LaunchEntry::Block {
            node: NodeId(1),
            offset: i * BLOCK,
            length: BLOCK as u32,
            prefix: hash_prefix(&Hash::of(self.block(i))),
        };
        blocks.map(entry).collect()
    }

    fn stream(&self) -> Arc<Arriving> {
        let stream = Arriving::new();
        self.fetcher.expect(&stream);
        stream
    }

    fn bring(&self, stream: &Arriving, index: usize, block: u64) -> bool {
        let bytes = Bytes::copy_from_slice(self.block(block));
        self.fetcher.stream_brought(stream, index, Some((Hash::of(&bytes), &bytes)), true)
    }

    fn ask(&self, blocks: Range<u64>) -> tokio::task::JoinHandle<Result<Vec<(Bytes, Source)>>> {
        let (fetcher, wanted) = (self.fetcher.clone(), self.wanted(blocks));
        tokio::spawn(async move { fetcher.get_with_source(wanted, Urgency::Demand).await })
    }

    async fn waiting(&self, stream: &Arriving, count: usize) {
        while stream.waiting() < count {
            tokio::task::yield_now().await;
        }
    }
}

async fn came(task: tokio::task::JoinHandle<Result<Vec<(Bytes, Source)>>>) -> (Vec<u8>, Source) {
    let blocks = tokio::time::timeout(LONG, task).await.unwrap().unwrap().unwrap();
    (blocks.iter().flat_map(|(b, _)| b.to_vec()).collect(), blocks[0].1)
}

#[tokio::test]
async fn what_a_stream_is_about_to_bring_is_waited_for_without_a_request() {
    let bench = Bench::new(8, LONG);
    let stream = bench.stream();
    let early = bench.ask(0..2);
    bench.waiting(&stream, 2).await;
    bench.fetcher.stream_ordered(&stream, &bench.entries(0..8));
    assert!(bench.bring(&stream, 0, 0) && bench.bring(&stream, 1, 1));
    assert_eq!(came(early).await, (bench.content[..2 * BLOCK as usize].to_vec(), Source::LaunchStream));
    assert!(!bench.bring(&stream, 2, 2), "nobody waited for it");
    assert_eq!(came(bench.ask(2..3)).await.1, Source::Memory);
    assert_eq!(bench.log.count(), 0);
    assert!(bench.fetcher.in_flight.lock().is_empty());
}

#[tokio::test]
async fn what_does_not_come_or_comes_late_is_fetched() {
    let bench = Bench::new(3000, LONG);
    bench.open();
    let stream = bench.stream();
    let absent = bench.ask(2999..3000);
    bench.waiting(&stream, 1).await;
    bench.fetcher.stream_ordered(&stream, &bench.entries(0..2999));
    assert_eq!(came(absent).await.1, Source::Origin, "it is not in the order");
    // Nothing has come yet, so 29 MB are far.
    assert_eq!(came(bench.ask(2998..2999)).await.1, Source::Origin);
    assert_eq!(bench.log.count(), 2);
}

#[tokio::test]
async fn a_stream_that_ends_breaks_or_stalls_leaves_nobody_waiting() {
    let bench = Bench::new(4, LONG);
    bench.open();
    let stream = bench.stream();
    bench.fetcher.stream_ordered(&stream, &bench.entries(0..3));
    let (damaged, stalled) = (bench.ask(0..1), bench.ask(1..2));
    bench.waiting(&stream, 2).await;
    assert!(bench.fetcher.stream_brought(&stream, 0, None, true), "somebody waited for what came damaged");
    assert_eq!(came(damaged).await.1, Source::Origin);
    assert_eq!(came(stalled).await.1, Source::Origin, "it was looked after");
    assert!(!bench.bring(&stream, 1, 1), "it goes on, too late");
    let ended = bench.ask(2..3);
    bench.waiting(&stream, 1).await;
    bench.fetcher.stream_over(&stream);
    assert_eq!(came(ended).await.1, Source::Origin);
    assert_eq!(came(bench.ask(3..4)).await.1, Source::Origin);
    assert!(bench.fetcher.streams.lock().is_empty());
}

#[tokio::test]
async fn a_block_of_another_hash_than_the_waiting_one_s_is_not_handed_out() {
    let bench = Bench::new(2, LONG);
    bench.open();
    let stream = bench.stream();
    bench.fetcher.stream_ordered(&stream, &bench.entries(0..1));
    let asked = bench.ask(0..1);
    bench.waiting(&stream, 1).await;
    assert!(bench.bring(&stream, 0, 1));
    assert_eq!(came(asked).await, (bench.block(0).to_vec(), Source::Origin));
}

#[tokio::test(start_paused = true)]
async fn only_the_first_waits_for_a_stream_that_stalls() {
    // Every read of a launch waited anew for a stream that had long stopped.
    let bench = Bench::new(8, LONG);
    bench.open();
    let stream = bench.stream();
    bench.fetcher.stream_ordered(&stream, &bench.entries(0..6));
    assert_eq!(came(bench.ask(0..1)).await.1, Source::Origin, "it waited in vain");
    let begun = tokio::time::Instant::now();
    assert_eq!(came(bench.ask(1..2)).await.1, Source::Origin);
    assert_eq!(begun.elapsed(), Duration::ZERO, "nobody waits any more");
    // Once it goes on, it is waited for again.
    assert!(!bench.bring(&stream, 0, 0));
    let waits = bench.ask(2..3);
    bench.waiting(&stream, 1).await;
    assert!(!bench.bring(&stream, 1, 1) && bench.bring(&stream, 2, 2));
    assert_eq!(came(waits).await.1, Source::LaunchStream);
    assert_eq!(bench.log.count(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_came_ahead_says_nothing_of_the_rest() {
    let bench = Bench::new(100, LONG);
    bench.open();
    let stream = bench.stream();
    stream.begins_ahead();
    bench.fetcher.stream_ordered(&stream, &bench.entries(0..100));
    // At once, as what stood behind `head` does; then the rest's round trip passes.
    for i in 0..20 {
        bench.bring(&stream, i, i as u64);
    }
    let waits = bench.ask(20..21);
    bench.waiting(&stream, 1).await;
    tokio::time::advance(Duration::from_secs(1)).await;
    tokio::task::yield_now().await;
    assert_eq!(stream.waiting(), 1, "a second is no stall yet");
    stream.rest_comes();
    assert!(bench.bring(&stream, 20, 20));
    assert_eq!(came(waits).await.1, Source::LaunchStream);
    // Ten entries in a second from now on: what came before has no part in that.
    tokio::time::advance(Duration::from_secs(1)).await;
    for i in 21..30 {
        bench.bring(&stream, i, i as u64);
    }
    let expected = stream.expected(49).unwrap();
    assert!(expected > Duration::from_millis(1900) && expected < Duration::from_millis(2100), "{expected:?}");
    assert_eq!(bench.log.count(), 0);
    // Only what stood behind `head` is given that time.
    let late = bench.ask(30..31);
    assert_eq!(came(late).await.1, Source::Origin);
    assert!(stream.expected(49).is_none(), "it stalled");
}

#[tokio::test(start_paused = true)]
async fn when_an_entry_comes_follows_from_what_came() {
    let bench = Bench::new(100, LONG);
    let stream = bench.stream();
    assert_eq!(stream.expected(9), None, "nobody knows the order");
    bench.fetcher.stream_ordered(&stream, &bench.entries(0..100));
    // Ten entries in a second, so the next twenty take two.
    tokio::time::advance(Duration::from_secs(1)).await;
    for i in 0..10 {
        bench.bring(&stream, i, i as u64);
    }
    let expected = stream.expected(29).unwrap();
    assert!(expected.abs_diff(Duration::from_secs(2)) < Duration::from_millis(100), "{expected:?}");
    assert_eq!(stream.expected(9), None, "it came");

    let begun = tokio::time::Instant::now();
    stream.came(9, LONG).await;
    assert_eq!(begun.elapsed(), Duration::ZERO);
    stream.came(29, Duration::from_secs(3)).await;
    assert_eq!(begun.elapsed(), Duration::from_secs(3), "no longer than that");
    let waiting = tokio::spawn({
        let stream = stream.clone();
        async move { stream.came(29, LONG).await }
    });
    bench.bring(&stream, 29, 29);
    waiting.await.unwrap();
    let waiting = tokio::spawn({
        let stream = stream.clone();
        async move { stream.came(99, LONG).await }
    });
    bench.fetcher.stream_over(&stream);
    waiting.await.unwrap();
    assert_eq!((stream.expected(99), begun.elapsed()), (None, Duration::from_secs(3)));
}

/// Both were given back together, became one range that waited until nobody waits, and so for itself.
#[tokio::test]
async fn who_waits_is_not_tied_to_background_work_when_a_stream_ends() {
    let bench = Bench::new(8, LONG);
    bench.open();
    let stream = bench.stream();
    let (fetcher, wanted) = (bench.fetcher.clone(), bench.wanted(0..2));
    let background = tokio::spawn(async move { fetcher.get_with_source(wanted, Urgency::Background).await });
    bench.waiting(&stream, 2).await;
    let demand = bench.ask(2..4);
    bench.waiting(&stream, 4).await;
    bench.fetcher.stream_over(&stream);
    assert_eq!(came(demand).await, (bench.content[2 * BLOCK as usize..4 * BLOCK as usize].to_vec(), Source::Origin));
    assert_eq!(came(background).await.1, Source::Origin);
}
