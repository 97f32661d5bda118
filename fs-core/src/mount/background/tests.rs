//! Loads: their bandwidth, their ends, and the next agent.

use std::fs;
use std::path::PathBuf;

use async_trait::async_trait;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::*;
use crate::backend::recording::{Log, Recording};
use crate::backend::{Backend, Beginning, ByteStream, Enough, ObjectPath, ObjectState, ReadOptions, Validator};
use crate::stage::{DEADLINE, Stage, noise};

/// Lets so many ranges through as there are permits, and notes when.
#[derive(Debug)]
struct Gate {
    inner: Arc<dyn Backend>,
    permits: Arc<Semaphore>,
    asked: Mutex<Vec<(Instant, u64)>>,
}

#[async_trait]
impl Backend for Gate {
    fn origin(&self) -> &str {
        self.inner.origin()
    }
    async fn stat(&self, object: &ObjectPath) -> Result<ObjectState> {
        self.inner.stat(object).await
    }
    async fn read_range(&self, object: &ObjectPath, range: Range<u64>, options: ReadOptions) -> Result<ByteStream> {
        self.permits.acquire().await.unwrap().forget();
        self.asked.lock().push((Instant::now(), range.end - range.start));
        self.inner.read_range(object, range, options).await
    }
    async fn read_beginning(
        &self,
        object: &ObjectPath,
        limit: u64,
        known: Option<&Validator>,
        enough: Enough<'_>,
    ) -> Result<Beginning> {
        self.inner.read_beginning(object, limit, known, enough).await
    }
}

fn tree(stage: &Stage) -> PathBuf {
    let source = stage.folder("source");
    for i in 0..60u64 {
        fs::create_dir_all(source.join(format!("dir-{}", i % 5))).unwrap();
        fs::write(source.join(format!("dir-{}/file-{i}", i % 5)), noise(i, 3000 * i as usize)).unwrap();
    }
    fs::write(source.join("large"), noise(100, 4 << 20)).unwrap();
    fs::write(source.join("equal"), noise(100, 4 << 20)).unwrap();
    source
}

async fn gated(stage: &Stage, permits: usize) -> (Arc<Host>, Arc<Gate>, Arc<Log>) {
    let recording = Recording::new(stage.backend());
    let log = recording.log();
    let gate = Gate { inner: Arc::new(recording), permits: Arc::new(Semaphore::new(permits)), asked: Mutex::default() };
    let gate = Arc::new(gate);
    let host = loop {
        // An earlier host ends with its last task.
        match Host::open(stage.settings("cache")).await {
            Ok(host) => break host,
            Err(e) => assert_eq!(e.kind(), ErrorKind::Busy),
        }
        tokio::task::yield_now().await;
    };
    host.set_backend(&stage.location("1"), gate.clone(), DEADLINE);
    (host, gate, log)
}

const OPEN: usize = Semaphore::MAX_PERMITS;

#[tokio::test(start_paused = true)]
async fn a_load_keeps_below_its_rate_in_every_window() {
    const RATE: u64 = 1 << 20;
    let stage = Stage::new();
    stage.publish(&tree(&stage), "1");
    let (host, gate, _) = gated(&stage, OPEN).await;
    let mount = stage.mount(&host, "1").await;
    gate.asked.lock().clear();
    let began = Instant::now();
    let wish = LoadWish { bytes_per_second: Some(RATE), ..LoadWish::default() };
    let load = host.begin_load(&mount, &wish).unwrap();
    assert!(!load.status().offline_ready);
    let summary = load.finished().await.unwrap();
    assert!(load.status().offline_ready);
    let asked = gate.asked.lock().clone();
    // Two pieces of a quarter of a second: one that is let through, one that was before.
    let slack = RATE / 2 + (256 << 10);
    for (i, (first, _)) in asked.iter().enumerate() {
        let mut bytes = 0;
        for (at, piece) in &asked[i..] {
            bytes += piece;
            let allowed = (*at - *first).as_secs_f64() * RATE as f64 + slack as f64;
            assert!(bytes as f64 <= allowed, "{bytes} bytes within {:?}", *at - *first);
        }
    }
    assert!(summary.fetched_bytes > 8 << 20);
    let took = began.elapsed().as_secs_f64();
    let ideal = summary.fetched_bytes as f64 / RATE as f64;
    assert!((ideal - 1.0..ideal * 1.2 + 1.0).contains(&took), "{took} s, ideally {ideal} s");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_agent_goes_on_and_fetches_nothing_twice() {
    let stage = Stage::new();
    let source = tree(&stage);
    stage.publish(&source, "1");
    let first = {
        let (host, gate, log) = gated(&stage, 12).await;
        let mount = stage.mount(&host, "1").await;
        let load = host.begin_load(&mount, &LoadWish::default()).unwrap();
        while gate.permits.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(load.status().state, LoadState::Loading);
        // What is on its way is stored; no more comes through the gate.
        let under_way =
            || log.requests().iter().any(|r| r.range.as_ref().is_some_and(|w| r.delivered_bytes < w.end - w.start));
        while under_way() {
            tokio::task::yield_now().await;
        }
        host.close().await;
        gate.permits.close();
        log.requests()
    };
    let (host, _, log) = gated(&stage, OPEN).await;
    host.resume_loads();
    assert!(host.is_loading());
    let load = host.loads.all.lock().values().next().unwrap().0.clone();
    load.finished().await.unwrap();
    assert!(host.loads()[0].offline_ready && !host.is_loading());
    let mut ranges: Vec<_> =
        first.into_iter().chain(log.requests()).filter_map(|r| Some((r.object, r.range?))).collect();
    ranges.sort_by_key(|(object, range)| (object.to_string(), range.start));
    let twice: u64 = ranges
        .windows(2)
        .filter(|pair| pair[0].0 == pair[1].0)
        .map(|pair| pair[0].1.end.saturating_sub(pair[1].1.start))
        .sum();
    // A block that had come but was not yet stored when the first agent ended.
    assert!(twice <= 256 << 10, "{twice} bytes were fetched twice");
    let mount = stage.mount(&host, "1").await;
    crate::stage::assert_same(&mount, &source).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ready_for_offline_use_is_looked_after_by_the_next_agent() {
    let stage = Stage::new();
    stage.publish(&tree(&stage), "1");
    {
        let (host, _, _) = gated(&stage, OPEN).await;
        let mount = stage.mount(&host, "1").await;
        host.begin_load(&mount, &LoadWish::default()).unwrap().finished().await.unwrap();
        host.close().await;
    }
    {
        let (host, _, log) = gated(&stage, OPEN).await;
        host.resume_loads();
        assert!(!host.loads()[0].offline_ready, "it was not looked at yet");
        let load = host.loads.all.lock().values().next().unwrap().0.clone();
        load.finished().await.unwrap();
        assert!(host.loads()[0].offline_ready);
        assert_eq!(log.count(), 0, "nothing was asked of the origin");
        host.close().await;
    }
    // Somebody clears a file away.
    let mut blobs: Vec<PathBuf> = fs::read_dir(stage.path("cache/blobs"))
        .unwrap()
        .flatten()
        .flat_map(|shard| fs::read_dir(shard.path()).unwrap().flatten().map(|file| file.path()))
        .collect();
    blobs.sort_by_key(|path| fs::metadata(path).unwrap().len());
    let (host, gate, _) = {
        let largest_but_pages = blobs.iter().rev().find(|p| fs::metadata(p).unwrap().len() == 4 << 20).unwrap();
        fs::remove_file(largest_but_pages).unwrap();
        gated(&stage, 0).await
    };
    host.resume_loads();
    let load = host.loads.all.lock().values().next().unwrap().0.clone();
    while load.status().state != LoadState::Loading {
        tokio::task::yield_now().await;
    }
    assert!(!load.status().offline_ready, "a file is missing");
    gate.permits.add_permits(1000);
    assert!(load.finished().await.unwrap().fetched_bytes >= 4 << 20);
    assert!(load.status().offline_ready);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_ends_with_who_waits_for_it_unless_it_is_in_the_background() {
    let stage = Stage::new();
    stage.publish(&tree(&stage), "1");
    let (host, gate, _) = gated(&stage, OPEN).await;
    let mount = stage.mount(&host, "1").await;
    gate.permits.forget_permits(OPEN);
    let load = host.begin_load(&mount, &LoadWish::default()).unwrap();
    drop(load.hold());
    assert_eq!(load.finished().await.unwrap_err().kind(), ErrorKind::Cancelled);
    assert_eq!(load.status().state, LoadState::Stopped);

    let again = host.begin_load(&mount, &LoadWish { in_background: true, ..LoadWish::default() }).unwrap();
    assert!(!Arc::ptr_eq(&load, &again));
    let waiting = host.begin_load(&mount, &LoadWish::default()).unwrap();
    assert!(Arc::ptr_eq(&again, &waiting), "it is joined");
    drop(waiting.hold());
    gate.permits.add_permits(1000);
    again.finished().await.unwrap();
    assert!(host.unload(&stage.location("1")).await.unwrap() > 0);
    assert!(host.loads().is_empty());
    assert_eq!(fs::read_dir(stage.path("cache/loads")).unwrap().count(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_load_waits_for_its_random_delay() {
    let stage = Stage::new();
    stage.publish(&tree(&stage), "1");
    let (host, gate, _) = gated(&stage, OPEN).await;
    let mount = stage.mount(&host, "1").await;
    gate.asked.lock().clear();
    // Up to a thousand days: the chance that it is none is one in eighty million.
    let jitter = Duration::from_secs(86_400_000);
    let load = host.begin_load(&mount, &LoadWish { jitter, in_background: true, ..LoadWish::default() }).unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    let status = load.status();
    assert!(status.state == LoadState::Waiting && status.starts_in_seconds.is_some_and(|s| s > 0), "{status:?}");
    assert!(gate.asked.lock().is_empty());
    // Not loaded yet, it can be unloaded all the same.
    assert_eq!(host.unload(&stage.location("1")).await.unwrap(), 0);
}

#[tokio::test]
async fn records_that_cannot_be_used_are_put_away() {
    let stage = Stage::new();
    stage.publish(&tree(&stage), "1");
    let dir = stage.folder("cache/loads");
    for (i, junk) in ["", "junk", r#"{"streamfs_load":1}"#].iter().enumerate() {
        fs::write(dir.join(format!("{i}.json")), junk).unwrap();
    }
    let (host, _, _) = gated(&stage, OPEN).await;
    host.resume_loads();
    assert!(host.loads().is_empty());
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
}
