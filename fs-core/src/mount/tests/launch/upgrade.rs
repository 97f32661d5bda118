//! Launch sets of machines that have something already: all of it, or most of it from an earlier version.

use super::*;
use crate::stage::assert_same;

/// A file of which most blocks stay the same, as large as several looks at what is here.
const LARGE_BYTES: usize = 10 << 20;

async fn reopened(stage: &Stage) -> Arc<Host> {
    let begun = std::time::Instant::now();
    loop {
        // The host before ends with its last task.
        match Host::open(stage.settings("cache")).await {
            Ok(host) => return host,
            Err(e) => assert_eq!(e.kind(), crate::ErrorKind::Busy),
        }
        assert!(begun.elapsed() < DEADLINE);
        tokio::time::advance(Duration::from_millis(10)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_second_start_fetches_nothing_of_what_is_here() {
    let stage = Stage::new();
    let (source, _) = published(&stage).await;
    let machine = Machine::new(&stage, "cache", u64::MAX).await;
    let mount = machine.launch(&stage, "1").await;
    brought(&mount).await;
    // Again while it is mounted.
    machine.log.clear();
    mount.start_launch(&LaunchChoice::First).unwrap();
    assert_eq!(brought(&mount).await, LaunchPhase::Complete);
    assert_eq!(machine.requests(), (0, 0));
    let statistics = mount.launch_statistics();
    assert_eq!(statistics.entries_here, statistics.entries);
    drop(mount);
    machine.host.close().await;
    drop(machine);
    // Again after a restart.
    let machine = Machine::of(&stage, reopened(&stage).await, u64::MAX);
    let mount = machine.launch(&stage, "1").await;
    assert_eq!(brought(&mount).await, LaunchPhase::Complete);
    read_all(&mount, &source, &launch_files()).await;
    assert_eq!(machine.requests(), (0, 0), "{:?}", machine.log.requests());
    assert_eq!(mount.launch_statistics().bytes_received, 0);
}

#[tokio::test(start_paused = true)]
async fn a_second_start_after_a_stream_that_broke_off_brings_the_rest_only() {
    let stage = Stage::new();
    let (source, set) = published(&stage).await;
    let machine = Machine::new(&stage, "cache", part_of(&set, 90)).await;
    let mount = machine.launch(&stage, "1").await;
    assert_eq!(brought(&mount).await, LaunchPhase::Failed);
    drop(mount);
    machine.log.clear();
    let mount = machine.launch(&stage, "1").await;
    assert_eq!(brought(&mount).await, LaunchPhase::Complete);
    let (launch, other) = machine.bytes();
    assert_eq!(launch, 0, "most of it is here");
    assert!(other < set.bytes / 4, "{other} bytes for the rest of {}", set.bytes);
    machine.log.clear();
    read_all(&mount, &source, &launch_files()).await;
    assert_eq!(machine.requests(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn an_upgrade_brings_what_changed() {
    let stage = Stage::new();
    let source = application(&stage);
    let mut large = noise(500, LARGE_BYTES);
    fs::write(source.join("lib/large"), &large).unwrap();
    let files = [launch_files(), vec!["lib/large".into()]].concat();
    publish_with(&stage, &source, "1", vec![profile("app", &files)]);
    let machine = Machine::new(&stage, "cache", u64::MAX).await;
    let mount = machine.launch(&stage, "1").await;
    assert_eq!(brought(&mount).await, LaunchPhase::Complete);
    drop(mount);
    // Copies are found by the index, which is written every two seconds.
    machine.host.cache().flush();

    // One file is another, and the large one has other bytes near its end.
    fs::write(source.join("lib/3.so"), noise(501, LIBRARY_BYTES)).unwrap();
    let changed = LARGE_BYTES - (600 << 10);
    large[changed..changed + 1000].copy_from_slice(&noise(502, 1000));
    fs::write(source.join("lib/large"), &large).unwrap();
    let summary = publish_with(&stage, &source, "2", Vec::new());
    assert!(summary.launch.len() == 1 && summary.launch[0].inherited && summary.launch[0].name == "app");
    assert_eq!(summary.launch[0].not_applicable, 0);

    machine.log.clear();
    let mount = machine.launch(&stage, "2").await;
    let set = set_of(&mount);
    assert!(set.bytes > LARGE_BYTES as u64);
    assert_eq!(brought(&mount).await, LaunchPhase::Complete);
    let (launch, other) = machine.bytes();
    assert!(launch < set.bytes * 3 / 4, "{launch} of {} bytes came before it was seen that most is here", set.bytes);
    // Whole blocks around what changed, and pages that tell of them.
    assert!(other < LIBRARY_BYTES as u64 + (700 << 10), "{other} bytes besides");
    let statistics = mount.launch_statistics();
    assert!(statistics.bytes_repeated > 0);
    assert_eq!(statistics.entries_here, statistics.entries, "{statistics:?}");
    machine.log.clear();
    read_all(&mount, &source, &files[..files.len() - 1]).await;
    let node = at(&mount, "lib/large").await;
    assert!(content(&mount, &node, 16 << 20).await.unwrap() == large);
    assert_eq!(machine.requests(), (0, 0), "{:?}", machine.log.requests());
    assert_same(&mount, &source).await;
}
