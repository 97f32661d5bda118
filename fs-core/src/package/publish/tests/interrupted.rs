//! Publishing that is given up, and several at once.

use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::error::ErrorKind;
use crate::package::pack::PACK_TARGET_BYTES;

/// Stops after some bytes.
struct StopsAfter {
    bytes: u64,
    done: AtomicU64,
}

impl Progress for StopsAfter {
    fn total(&self, _: u64, _: u64) {}
    fn advance(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }
    fn message(&self, _: &str) {}
    fn cancelled(&self) -> bool {
        self.done.load(Ordering::Relaxed) >= self.bytes
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_publish_leaves_the_old_version_and_nothing_else() {
    // Packs used to become visible as they were filled, and stayed when the version did not come.
    let stage = Stage::new();
    let source = stage.folder("source");
    fs::write(source.join("f"), noise(1, 300_000)).unwrap();
    stage.publish(&source, "1");
    let before = stage.stored();
    let pieces = PACK_TARGET_BYTES / (8 << 20) + 2;
    (0..pieces).for_each(|i| fs::write(source.join(format!("big-{i}")), noise(100 + i, 8 << 20)).unwrap());
    for bytes in [1, PACK_TARGET_BYTES + (9 << 20)] {
        let progress = StopsAfter { bytes, done: AtomicU64::new(0) };
        let request = stage.request(&source, "2");
        let result = tokio::task::spawn_blocking(move || publish(&request, &progress)).await.unwrap();
        assert_eq!(result.unwrap_err().kind(), ErrorKind::Cancelled);
        assert!(before == stage.stored(), "rubbish after {bytes} bytes");
    }
    assert!(!stage.package_dir().join(".publish").exists(), "the scratch folder");
    let (host, _) = stage.recorded("cache").await;
    let mount = stage.mount(&host, "stable").await;
    assert_eq!(mount.identity().version, "1");
    let node = at(&mount, "f").await;
    assert!(content(&mount, &node, 1 << 20).await.unwrap() == noise(1, 300_000));
}

#[test]
fn what_a_killed_publish_left_aside_is_removed_by_the_next() {
    let stage = Stage::new();
    let source = stage.folder("source");
    fs::write(source.join("f"), b"x").unwrap();
    let scratch = stage.package_dir().join(".publish");
    fs::create_dir_all(&scratch).unwrap();
    fs::write(scratch.join("pack-0"), b"half a pack").unwrap();
    stage.publish(&source, "1");
    assert!(!scratch.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_publishers_at_once_bring_both_versions() {
    let stage = Stage::new();
    let shared = noise(5, 1 << 20);
    let sources: Vec<_> = (0..3)
        .map(|i| {
            let source = stage.folder(&format!("source-{i}"));
            fs::write(source.join("shared"), &shared).unwrap();
            fs::write(source.join("own"), noise(i, 200_000)).unwrap();
            source
        })
        .collect();
    std::thread::scope(|scope| {
        for (i, source) in sources.iter().enumerate() {
            let stage = &stage;
            scope.spawn(move || stage.publish(source, &format!("v{i}")));
        }
    });
    let (host, _) = stage.recorded("cache").await;
    for (i, source) in sources.iter().enumerate() {
        let mount = stage.mount(&host, &format!("v{i}")).await;
        assert_same(&mount, source).await;
        let summary = host.verify(&mount, Arc::new(NoProgress)).await.unwrap();
        assert!(summary.damaged.is_empty(), "{:?}", summary.damaged);
    }
}

#[tokio::test]
async fn a_damaged_earlier_pack_is_not_built_upon() {
    let stage = Stage::new();
    let source = stage.folder("source");
    fs::write(source.join("f"), noise(1, 300_000)).unwrap();
    stage.publish(&source, "1");
    let pack = fs::read_dir(stage.package_dir().join("packs")).unwrap().next().unwrap().unwrap().path();
    let bytes = fs::read(&pack).unwrap();
    fs::write(&pack, &bytes[..bytes.len() - 1]).unwrap();
    fs::write(source.join("g"), b"new").unwrap();
    let summary = stage.publish(&source, "2");
    assert_eq!(summary.new_blocks, summary.blocks, "all blocks are stored anew");
    let (host, _) = stage.recorded("cache").await;
    assert_same(&stage.mount(&host, "2").await, &source).await;
}
