//! How much is fetched for what is read.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;

use async_trait::async_trait;

use crate::backend::recording::Request;
use crate::backend::{Backend, Beginning, ByteStream, Enough, ObjectPath, ObjectState, ReadOptions, Validator};
use crate::error::{Error, Result};
use crate::mount::host::LoadWish;
use crate::mount::read_ahead::{WINDOW_FIRST_BYTES, WINDOW_MAX_BYTES};
use crate::package::block::BLOCK_MAX_BYTES;
use crate::stage::{Stage, assert_same, at, content, noise, walk};

/// Panics if any stored byte was asked for twice.
#[track_caller]
fn assert_no_overlap(requests: &[Request]) {
    let mut by_object: BTreeMap<&str, Vec<_>> = BTreeMap::new();
    for request in requests {
        if let Some(range) = &request.range {
            by_object.entry(request.object.as_str()).or_default().push(range.clone());
        }
    }
    for (object, mut ranges) in by_object {
        ranges.sort_by_key(|r| r.start);
        for pair in ranges.windows(2) {
            assert!(pair[0].end <= pair[1].start, "{object}: {:?} and {:?} overlap", pair[0], pair[1]);
        }
    }
}

/// Large and small files, equal ones, and one of many equal blocks.
fn tree(stage: &Stage) -> std::path::PathBuf {
    let source = stage.folder("source");
    for i in 0..40 {
        fs::create_dir_all(source.join(format!("dir-{}", i % 4))).unwrap();
        fs::write(source.join(format!("dir-{}/small-{i}", i % 4)), noise(i, 300 * i as usize)).unwrap();
    }
    fs::write(source.join("large"), noise(100, 6 << 20)).unwrap();
    fs::write(source.join("dir-0/equal"), noise(100, 6 << 20)).unwrap();
    fs::write(source.join("zeros"), vec![0; 3 << 20]).unwrap();
    source
}

#[tokio::test(flavor = "multi_thread")]
async fn the_whole_tree_read_once_fetches_each_byte_at_most_once() {
    let stage = Stage::new();
    let source = tree(&stage);
    stage.publish(&source, "1");
    let (host, log) = stage.recorded("cache").await;
    let mount = stage.mount(&host, "1").await;
    assert_same(&mount, &source).await;
    assert_no_overlap(&log.requests());
    assert_eq!(
        mount.statistics().fetches.bytes_fetched,
        log.requests().iter().filter(|r| r.range.is_some()).map(|r| r.delivered_bytes).sum::<u64>()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn many_readers_of_the_same_data_fetch_it_once() {
    let stage = Stage::new();
    let source = tree(&stage);
    stage.publish(&source, "1");
    let (host, log) = stage.recorded("cache").await;
    let mount = stage.mount(&host, "1").await;
    let readers: Vec<_> = (0..16usize)
        .map(|reader| {
            let (mount, source) = (mount.clone(), source.clone());
            tokio::spawn(async move {
                match reader % 2 {
                    0 => assert_same(&mount, &source).await,
                    _ => {
                        let node = at(&mount, "large").await;
                        let piece = 10_000 + reader * 7777;
                        assert!(content(&mount, &node, piece).await.unwrap() == noise(100, 6 << 20));
                    }
                }
            })
        })
        .collect();
    for reader in readers {
        reader.await.unwrap();
    }
    assert_no_overlap(&log.requests());
}

#[tokio::test]
async fn a_random_read_fetches_only_the_blocks_that_cover_it() {
    let stage = Stage::new();
    let source = stage.folder("source");
    fs::write(source.join("f"), noise(1, 8 << 20)).unwrap();
    stage.publish(&source, "1");
    let (host, log) = stage.recorded("cache").await;
    let mount = stage.mount(&host, "1").await;
    let node = at(&mount, "f").await;
    // The pages that tell where the file's blocks are.
    mount.read(node.id, 0, 1).wait().await.unwrap();
    for offset in [5 << 20, 1_500_000, (8 << 20) - 4096] {
        log.clear();
        let bytes = mount.read(node.id, offset, 4096).wait().await.unwrap();
        assert_eq!(bytes, noise(1, 8 << 20)[offset as usize..offset as usize + 4096]);
        let packs: Vec<_> = log.requests().into_iter().filter(|r| r.object.as_str().starts_with("packs/")).collect();
        assert_eq!(packs.len(), 1, "{packs:?}");
        assert!(packs[0].delivered_bytes <= 2 * BLOCK_MAX_BYTES as u64, "{packs:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sequential_reader_is_fetched_for_ahead_within_the_window() {
    let stage = Stage::new();
    let source = stage.folder("source");
    let bytes = noise(1, 24 << 20);
    fs::write(source.join("f"), &bytes).unwrap();
    stage.publish(&source, "1");
    let (host, log) = stage.recorded("cache").await;
    let mount = stage.mount(&host, "1").await;
    let node = at(&mount, "f").await;
    let step = 128 << 10;
    let (mut at, mut window) = (0u64, 0);
    while at < 12 << 20 {
        let got = mount.read(node.id, at, step).wait().await.unwrap();
        assert!(got == bytes[at as usize..at as usize + step]);
        at += step as u64;
        window = if at == step as u64 { 0 } else { (window * 2).clamp(WINDOW_FIRST_BYTES, WINDOW_MAX_BYTES) };
        let asked: u64 = log
            .requests()
            .iter()
            .filter(|r| r.object.as_str().starts_with("packs/"))
            .map(|r| r.range.as_ref().map_or(0, |r| r.end - r.start))
            .sum();
        // Incompressible, so stored bytes are file bytes; blocks at the window's ends are whole.
        let allowed = at + window + BLOCK_MAX_BYTES as u64;
        assert!(asked <= allowed, "at {at}: {asked} bytes asked for, {allowed} allowed");
    }
    assert!(mount.statistics().reads_local > 0, "the reader found something there");
    assert_no_overlap(&log.requests());
}

/// An origin that cannot be reached.
#[derive(Debug)]
struct Away;

#[async_trait]
impl Backend for Away {
    fn origin(&self) -> &str {
        "nowhere"
    }
    async fn stat(&self, object: &ObjectPath) -> Result<ObjectState> {
        panic!("{object} was asked for");
    }
    async fn read_range(&self, object: &ObjectPath, _: std::ops::Range<u64>, _: ReadOptions) -> Result<ByteStream> {
        panic!("{object} was asked for");
    }
    async fn read_beginning(
        &self,
        object: &ObjectPath,
        _: u64,
        _: Option<&Validator>,
        _: Enough<'_>,
    ) -> Result<Beginning> {
        Err(Error::Unreachable { object: object.to_string(), origin: "nowhere".into(), reason: "away".into() })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_loaded_version_needs_no_origin_after_a_restart() {
    let stage = Stage::new();
    let source = tree(&stage);
    stage.publish(&source, "1");
    {
        let (host, log) = stage.recorded("cache").await;
        let mount = stage.mount(&host, "1").await;
        let summary = host.begin_load(&mount, &LoadWish::default()).unwrap().finished().await.unwrap();
        assert_eq!(summary.files, 43);
        assert_no_overlap(&log.requests());
        assert!(host.status().pinned_bytes > 0);
        log.clear();
        host.begin_load(&mount, &LoadWish::default()).unwrap().finished().await.unwrap();
        assert_eq!(log.count(), 0, "loading again fetches nothing");
        host.close().await;
    }
    let host = loop {
        // The first host ends with its last task.
        match crate::mount::host::Host::open(stage.settings("cache")).await {
            Ok(host) => break host,
            Err(e) => assert_eq!(e.kind(), crate::ErrorKind::Busy),
        }
        tokio::task::yield_now().await;
    };
    host.set_backend(&stage.location("1"), Arc::new(Away), crate::stage::DEADLINE);
    let mount = stage.mount(&host, "1").await;
    assert_same(&mount, &source).await;
    assert_eq!(mount.statistics().fetches.requests, 0);
    assert!(host.unload(&stage.location("1")).await.unwrap() > 0);
    assert_eq!(host.status().pinned_bytes, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_without_room_streams_and_keeps_its_limits() {
    let stage = Stage::new();
    let source = tree(&stage);
    stage.publish(&source, "1");
    let mut settings = stage.settings("cache");
    settings.cache_size_bytes = 0;
    settings.memory_bytes = 1 << 20;
    let host = crate::mount::host::Host::open(settings).await.unwrap();
    let mount = stage.mount(&host, "1").await;
    assert_same(&mount, &source).await;
    let status = host.status();
    assert_eq!(status.used_bytes, 0);
    assert!(status.memory_bytes <= 1 << 20);
    let e = host.begin_load(&mount, &LoadWish::default()).unwrap().finished().await.unwrap_err();
    assert!(e.to_string().contains("cannot keep version 1 on this machine: the cache"), "{e}");
}

#[tokio::test]
async fn two_mounts_of_one_version_at_once_are_one() {
    let stage = Stage::new();
    let source = tree(&stage);
    stage.publish(&source, "1");
    let (host, _) = stage.recorded("cache").await;
    let (one, other) = tokio::join!(stage.mount(&host, "1"), stage.mount(&host, "1"));
    assert!(Arc::ptr_eq(&one, &other));
    assert!(Arc::ptr_eq(&one, &stage.mount(&host, "stable").await));
    assert_eq!(walk(&one).await.unwrap().len(), 47);
}
