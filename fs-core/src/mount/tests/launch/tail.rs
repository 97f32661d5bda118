//! The beginning of a launch object behind `head`: what it spares, and how little depends on it.

use super::*;
use crate::backend::faults::{Fault, Faults};
use crate::package::Hash;
use crate::stage::assert_same;
use crate::trust::head::{Head, TailOf};
use crate::trust::keys::KeyStore;
use crate::trust::publisher::{PublishOptions, Publisher};

/// Launches the published version over a line that does to `head` what `fault` says, counted from its tail's beginning.
async fn launched_through(
    stage: &Stage,
    cache: &str,
    fault: impl Fn(u64) -> Fault + Send + Sync + 'static,
) -> (Arc<Log>, Arc<Mount>) {
    let front = bytes_before_tail(&fs::read(stage.package_dir().join("head")).unwrap()).unwrap() as u64;
    let fault =
        move |request: &crate::backend::faults::Request<'_>| (request.object.as_str() == "head").then(|| fault(front));
    let recording = Recording::new(Arc::new(Faults::new(stage.backend(), fault)));
    let log = recording.log();
    let host = stage.host_through(cache, Arc::new(recording)).await;
    let pinned = host.pin_to_launch(&stage.location("1"), None, &LaunchChoice::First).await;
    (log, pinned.unwrap().mount)
}

/// First bytes and ends of what was asked for of launch objects.
fn launch_ranges(log: &Log) -> Vec<(u64, u64)> {
    let all = log.requests();
    all.iter()
        .filter(|r| is_launch(r.object.as_str()))
        .filter_map(|r| r.range.as_ref().map(|r| (r.start, r.end)))
        .collect()
}

fn other_ranges(log: &Log) -> usize {
    log.requests().iter().filter(|r| r.range.is_some() && !is_launch(r.object.as_str())).count()
}

/// Ends with the launch set whole and every byte right.
async fn assert_complete(mount: &Arc<Mount>, source: &std::path::Path) {
    assert_eq!(brought(mount).await, LaunchPhase::Complete);
    let statistics = mount.launch_statistics();
    assert_eq!(statistics.entries_here, statistics.entries, "{statistics:?}");
    assert_same(mount, source).await;
}

#[tokio::test(start_paused = true)]
async fn the_rest_is_asked_for_before_the_beginning_has_come() {
    let stage = Stage::new();
    let (_, set) = published(&stage).await;
    let machine = Machine::new(&stage, "cache", part_of(&set, 20)).await;
    let mount = machine.launch(&stage, "1").await;
    until("the request", || machine.requests().0 == 1).await;
    assert!(mount.launch_statistics().bytes_received <= part_of(&set, 20));
    assert_eq!(launch_ranges(&machine.log), [(HEAD_TAIL_BYTES, set.bytes)]);
    machine.gate.open();
    assert_eq!(brought(&mount).await, LaunchPhase::Complete);
    assert_eq!(machine.requests(), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_short_launch_object_comes_with_head_alone() {
    let stage = Stage::new();
    let source = application(&stage);
    publish_with(&stage, &source, "1", vec![profile("app", &launch_files()[1..3])]);
    let machine = Machine::new(&stage, "cache", u64::MAX).await;
    let mount = machine.launch(&stage, "1").await;
    assert_eq!(brought(&mount).await, LaunchPhase::Complete);
    read_all(&mount, &source, &launch_files()[1..3]).await;
    let set = set_of(&mount);
    assert!(set.bytes < HEAD_TAIL_BYTES);
    assert_eq!(machine.log.count(), 1, "{:?}", machine.log.requests());
    assert_eq!(machine.bytes_of_tail(), set.bytes);
    let fetches = mount.statistics().fetches;
    assert_eq!((fetches.requests, fetches.bytes_fetched), (0, set.bytes));
    assert_eq!(mount.launch_statistics().bytes_received, set.bytes);
}

#[tokio::test(start_paused = true)]
async fn who_wants_no_launch_or_another_one_drops_it_at_once() {
    let stage = Stage::new();
    let source = application(&stage);
    publish_with(&stage, &source, "1", vec![profile("app", &launch_files()), profile("other", &launch_files()[..2])]);
    let first = Machine::new(&stage, "none", u64::MAX).await;
    let mount = stage.mount(&first.host, "1").await;
    first.host.newest(&stage.location("1")).await.unwrap();
    first.host.catalog(&stage.location("1"), None).await.unwrap();
    assert_eq!((first.bytes_of_tail(), first.gate.streams_alive()), (0, 0));
    assert_eq!(brought(&mount).await, LaunchPhase::None);

    let other = Machine::new(&stage, "other", u64::MAX).await;
    let named = LaunchChoice::Named("other".into());
    let mount = other.host.pin_to_launch(&stage.location("1"), None, &named).await.unwrap().mount;
    assert_eq!(brought(&mount).await, LaunchPhase::Complete);
    assert_eq!((other.bytes_of_tail(), other.gate.streams_alive()), (0, 0));
    assert_eq!(launch_ranges(&other.log), [(0, mount.descriptor().launch[1].bytes)]);

    // A second start of the same, of which all is here.
    other.log.clear();
    let again = other.host.pin_to_launch(&stage.location("1"), None, &named).await.unwrap().mount;
    assert_eq!(brought(&again).await, LaunchPhase::Complete);
    assert_eq!((other.bytes_of_tail(), other.gate.streams_alive(), other.requests()), (0, 0, (0, 0)));
}

#[tokio::test(start_paused = true)]
async fn the_beginning_of_another_versions_launch_object_is_left() {
    let stage = Stage::new();
    let (source, one) = published(&stage).await;
    fs::write(source.join("bin/app"), noise(7, 300 << 10)).unwrap();
    publish_with(&stage, &source, "2", Vec::new());
    let machine = Machine::new(&stage, "cache", u64::MAX).await;
    let mount = machine.launch(&stage, "1").await;
    assert_eq!(brought(&mount).await, LaunchPhase::Complete);
    assert_eq!((machine.bytes_of_tail(), machine.gate.streams_alive()), (0, 0));
    assert_eq!(launch_ranges(&machine.log), [(0, one.bytes)]);
}

#[tokio::test(start_paused = true)]
async fn a_beginning_that_breaks_off_is_completed_from_where_it_broke() {
    let stage = Stage::new();
    let (source, set) = published(&stage).await;
    for (i, after) in [0, 1, u64::from(set.index.stored) / 2, 300 << 10, HEAD_TAIL_BYTES - 1].into_iter().enumerate() {
        let truncate = move |front| Fault::Truncate { after_bytes: front + after };
        let (log, mount) = launched_through(&stage, &format!("cut-{i}"), truncate).await;
        assert_eq!(brought(&mount).await, LaunchPhase::Complete);
        assert_eq!(launch_ranges(&log), [(HEAD_TAIL_BYTES, set.bytes), (after, HEAD_TAIL_BYTES)], "{after}");
        assert_eq!(other_ranges(&log), 0);
        // Files that no launch reads are compared, too.
        assert_complete(&mount, &source).await;
        assert_eq!(mount.launch_statistics().bytes_received, set.bytes);
    }
}

#[tokio::test(start_paused = true)]
async fn a_beginning_that_stops_for_good_is_asked_for_after_the_deadline() {
    let stage = Stage::new();
    let (source, set) = published(&stage).await;
    let after = 300 << 10;
    let stall = move |front| Fault::Stall { after_bytes: front + after };
    let (log, mount) = launched_through(&stage, "cache", stall).await;
    // Nothing waits for it: neither mounting nor reads.
    let reading = tokio::spawn({
        let (mount, source) = (mount.clone(), source.clone());
        async move { read_all(&mount, &source, &launch_files()).await }
    });
    let ((), took) = let_time_pass(Duration::MAX, reading).await;
    assert!(took < DEADLINE, "all reads together took {took:?}");
    assert_complete(&mount, &source).await;
    assert_eq!(launch_ranges(&log), [(HEAD_TAIL_BYTES, set.bytes), (after, HEAD_TAIL_BYTES)]);
}

#[tokio::test(start_paused = true)]
async fn damage_behind_head_spoils_nothing() {
    let stage = Stage::new();
    let (source, set) = published(&stage).await;
    let index = u64::from(set.index.stored);
    for (i, at) in [0, index / 2, index - 1, index, index + 40, 300 << 10, HEAD_TAIL_BYTES - 1].into_iter().enumerate()
    {
        let corrupt = move |front| Fault::Corrupt { at_byte: front + at };
        let (log, mount) = launched_through(&stage, &format!("bad-{i}"), corrupt).await;
        assert_complete(&mount, &source).await;
        if at < index {
            assert_eq!(launch_ranges(&log)[1..], [(0, set.bytes)], "the object itself has a good index");
        } else {
            assert_eq!(launch_ranges(&log), [(HEAD_TAIL_BYTES, set.bytes)]);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_head_that_was_cut_or_made_longer_behind_its_entries_launches_all_the_same() {
    let stage = Stage::new();
    let (source, set) = published(&stage).await;
    let head = stage.package_dir().join("head");
    let good = fs::read(&head).unwrap();
    let front = bytes_before_tail(&good).unwrap();
    assert_eq!(good.len() as u64, front as u64 + HEAD_TAIL_BYTES);
    let lengths = [front, front + 10, good.len() - 1];
    let cut = lengths.iter().map(|length| good[..*length].to_vec());
    for (i, bytes) in cut.chain([[&good[..], b"more"].concat()]).enumerate() {
        fs::write(&head, &bytes).unwrap();
        let machine = Machine::new(&stage, &format!("cache-{i}"), u64::MAX).await;
        let mount = machine.launch(&stage, "1").await;
        assert_eq!(brought(&mount).await, LaunchPhase::Complete);
        assert_eq!(mount.launch_statistics().bytes_received, set.bytes);
        assert_eq!(machine.requests(), (if i < 3 { 2 } else { 1 }, 0), "{:?}", machine.log.requests());
        read_all(&mount, &source, &launch_files()).await;
    }
}

/// The launch object that the stored `head` says its tail is of, after comparing the tail with it.
fn stored_tail(stage: &Stage) -> Option<Hash> {
    let bytes = Bytes::from(fs::read(stage.package_dir().join("head")).unwrap());
    let front = bytes_before_tail(&bytes).unwrap();
    let of = Head::parse(&bytes.slice(..front)).unwrap().tail();
    let Some(TailOf { object, object_bytes, bytes: length }) = of else {
        assert_eq!(bytes.len(), front);
        return None;
    };
    let whole = fs::read(stage.package_dir().join(format!("launch/{object}"))).unwrap();
    assert_eq!((whole.len() as u64, u64::from(length)), (object_bytes, object_bytes.min(HEAD_TAIL_BYTES)));
    assert!(bytes[front..] == whole[..length as usize]);
    Some(object)
}

#[tokio::test]
async fn all_who_write_head_write_the_beginning_of_the_default_channels_launch() {
    let stage = Stage::new();
    let (source, one) = published(&stage).await;
    assert_eq!(stored_tail(&stage), Some(one.object));
    fs::write(source.join("bin/app"), noise(7, 300 << 10)).unwrap();
    publish_with(&stage, &source, "2", Vec::new());
    let two = stored_tail(&stage).unwrap();
    assert_ne!(two, one.object);

    let open = || async {
        let keys = KeyStore::new(stage.path("keys"));
        Publisher::open(&stage.package_dir(), &keys, PublishOptions::default()).await.unwrap()
    };
    let mut publisher = open().await;
    publisher.renew().await.unwrap();
    assert_eq!(stored_tail(&stage), Some(two));
    publisher.revoke(&"1".parse().unwrap()).unwrap();
    publisher.commit().await.unwrap();
    assert_eq!(stored_tail(&stage), Some(two));
    // Another channel goes elsewhere; which one comes first by name does not matter.
    let record = publisher.catalog().versions[1].clone();
    let descriptor = publisher.descriptor(&record).await.unwrap();
    publisher.add_version(&record.version, descriptor, &["alpha".parse().unwrap()], 1).unwrap();
    publisher.commit().await.unwrap();
    assert_eq!(stored_tail(&stage), Some(two));
    fs::write(source.join("bin/app"), noise(8, 300 << 10)).unwrap();
    drop(publisher);
    publish_with(&stage, &source, "3", Vec::new());
    let three = stored_tail(&stage).unwrap();
    let mut publisher = open().await;
    let descriptor = publisher.descriptor(&record).await.unwrap();
    publisher.add_version(&record.version, descriptor, &["stable".parse().unwrap()], 1).unwrap();
    publisher.commit().await.unwrap();
    assert_eq!(stored_tail(&stage), Some(two), "the channel was set back from {three}");

    // Without the object there is no tail; when it is back, the next publisher mends head.
    let (object, aside) = (stage.package_dir().join(format!("launch/{two}")), stage.path("aside"));
    fs::rename(&object, &aside).unwrap();
    publisher.renew().await.unwrap();
    assert_eq!(stored_tail(&stage), None);
    drop(publisher);
    fs::rename(&aside, &object).unwrap();
    drop(open().await);
    assert_eq!(stored_tail(&stage), Some(two));
}

#[tokio::test]
async fn a_version_without_a_launch_set_has_nothing_behind_head() {
    let stage = Stage::new();
    let source = application(&stage);
    stage.publish(&source, "1");
    assert_eq!(stored_tail(&stage), None);
}

#[tokio::test]
async fn a_poll_reads_nothing_behind_head() {
    let stage = Stage::new();
    let (source, _) = published(&stage).await;
    let machine = Machine::new(&stage, "cache", u64::MAX).await;
    let location = stage.location("stable");
    assert_eq!(machine.host.newest(&location).await.unwrap().record.version.as_str(), "1");
    machine.log.clear();
    machine.host.newest(&location).await.unwrap();
    let all = machine.log.requests();
    assert_eq!((all.len(), all[0].delivered_bytes), (1, 0), "{all:?}");
    // The launch object of another version stands behind it, which nobody asked for.
    fs::write(source.join("bin/app"), noise(7, 300 << 10)).unwrap();
    publish_with(&stage, &source, "2", Vec::new());
    machine.log.clear();
    assert_eq!(machine.host.newest(&location).await.unwrap().record.version.as_str(), "2");
    let all = machine.log.requests();
    assert!(all.iter().all(|request| request.object.as_str() == "head"), "{all:?}");
    assert_eq!((machine.bytes_of_tail(), machine.gate.streams_alive()), (0, 0));
}
