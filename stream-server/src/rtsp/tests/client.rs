//! fs-core's client against this server.

use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt;

use fs_core::backend::retry::Retry;
use fs_core::backend::{Backend, Beginning, Enough, ObjectPath, ReadOptions, RtspBackend, SmallRead, collect, open};
use fs_core::config::{OriginConfig, RetryPolicy};
use fs_core::{Error, ErrorKind};

use super::{PACK, numbers, stage};
use crate::stage::{Running, Stage, serve};
use crate::{CertificateSource, ServerSettings, TlsSettings};

fn object(path: &str) -> ObjectPath {
    ObjectPath::new(path).unwrap()
}

fn config() -> OriginConfig {
    let retry = RetryPolicy { read_deadline: Duration::from_secs(20), ..RetryPolicy::default() };
    OriginConfig { retry, ..OriginConfig::default() }
}

fn backend(url: &str, config: &OriginConfig) -> Arc<dyn Backend> {
    open(&url.parse().unwrap(), config).unwrap()
}

async fn read(backend: &dyn Backend, path: &str, range: std::ops::Range<u64>) -> Result<Vec<u8>, Error> {
    let length = (range.end - range.start) as usize;
    Ok(collect(backend.read_range(&object(path), range, ReadOptions::default()).await?, length).await?.to_vec())
}

async fn conforms(backend: &dyn Backend, all: &[u8], stage: &Stage) {
    let end = all.len() as u64;
    for range in [0..1, 0..end, end - 1..end, 65_502..65_504, 100_000..1_300_001] {
        let expected = &all[range.start as usize..range.end as usize];
        assert!(read(backend, PACK, range.clone()).await.unwrap() == expected, "{range:?}");
    }
    let beyond = read(backend, PACK, end - 1..end + 1).await.unwrap_err();
    assert!(beyond.kind() == ErrorKind::BadAnswer && beyond.to_string().contains("shorter than published"), "{beyond}");
    assert_eq!(read(backend, "packs/nothing", 0..1).await.unwrap_err().kind(), ErrorKind::NotFound);
    let SmallRead::Object { bytes, validator } = backend.read_small(&object("head"), 1 << 20, None).await.unwrap()
    else {
        panic!("it is there")
    };
    assert!(bytes == std::fs::read(stage.content().join("team/app/head")).unwrap());
    let state = backend.stat(&object("head")).await.unwrap();
    assert_eq!((state.length, &state.validator), (bytes.len() as u64, &validator));
    assert!(state.modified.is_some());
    let known = backend.read_small(&object("head"), 1 << 20, validator.as_ref()).await.unwrap();
    assert!(matches!(known, SmallRead::NotModified));
    let first = Enough::when(&|_| false).of_first(100);
    let Beginning::Object { front, .. } = backend.read_beginning(&object("head"), 1 << 20, None, first).await.unwrap()
    else {
        panic!("it is there")
    };
    assert_eq!(front, bytes[..100]);
}

#[tokio::test]
async fn both_sides_understand_each_other_in_clear_and_by_tls() {
    let all = numbers(2_000_000);
    let stage = stage(all.len());
    let trial = CertificateSource::Trial { dir: stage.path("tls"), names: Vec::new() };
    let tls = Some(TlsSettings { certificate: trial, client_ca: None, only: false });
    let server = serve(&ServerSettings { tls, ..stage.settings() }).await;
    let clear = backend(&format!("rtsp://{}/team/app", server.address), &config());
    conforms(&*clear, &all, &stage).await;
    let trusting = OriginConfig { ca_files: vec![stage.path("tls").join("ca.pem")], ..config() };
    let encrypted = backend(&format!("rtsps://{}/team/app", server.address), &trusting);
    conforms(&*encrypted, &all, &stage).await;
    // Who does not know the authority reads nothing.
    let url = url::Url::parse(&format!("rtsps://{}/team/", server.address)).unwrap();
    let strict = RtspBackend::new(&url, &"app".parse().unwrap(), &config()).unwrap();
    let refused = read(&strict, PACK, 0..1).await.unwrap_err();
    assert!(refused.to_string().contains("TLS with 127.0.0.1 failed"), "{refused}");
}

#[tokio::test]
async fn reads_at_once_do_not_mix() {
    let all = numbers(4_000_000);
    let stage = stage(all.len());
    let server = serve(&stage.settings()).await;
    let backend = backend(&format!("rtsp://{}/team/app", server.address), &config());
    let reads = (0..200u64).map(|n| {
        let (backend, start) = (&backend, n * 19_000);
        async move { (start, read(&**backend, PACK, start..start + 1 + n * 997).await.unwrap()) }
    });
    for (start, bytes) in futures::future::join_all(reads).await {
        assert!(bytes == all[start as usize..start as usize + bytes.len()], "{start}");
    }
}

async fn again_at(running: Running, stage: &Stage) -> Running {
    let address = running.address.to_string();
    running.task.abort();
    let _ = running.task.await;
    let settings = ServerSettings { listen: vec![address], ..stage.settings() };
    serve(&settings).await
}

/// The server is killed in the middle of a long read and of many short ones, and comes back.
#[tokio::test]
async fn a_server_that_comes_back_is_not_missed() {
    let all = numbers(64 << 20);
    let stage = stage(all.len());
    let server = serve(&stage.settings()).await;
    let url = format!("rtsp://{}/team/app", server.address);
    let backend = backend(&url, &config());
    let hold = backend.hold(&"1".parse().unwrap());
    let mut stream = backend.read_range(&object(PACK), 0..all.len() as u64, ReadOptions::default()).await.unwrap();
    let mut came = stream.try_next().await.unwrap().unwrap().to_vec();
    let server = again_at(server, &stage).await;
    while let Some(piece) = stream.try_next().await.unwrap() {
        came.extend_from_slice(&piece);
    }
    assert!(came == all);
    drop((hold, server));
}

#[tokio::test]
async fn the_server_knows_what_is_in_use_and_tells_what_is_new() {
    let stage = stage(10);
    let server = serve(&stage.settings()).await;
    let url = url::Url::parse(&format!("rtsp://{}/team/", server.address)).unwrap();
    let backend = RtspBackend::new(&url, &"app".parse().unwrap(), &config()).unwrap();
    let mut changes = backend.changes().unwrap();
    let hold = backend.hold(&"1".parse().unwrap());
    read(&backend, PACK, 0..4).await.unwrap();
    in_use(&server, true).await;
    stage.publish("team/app", "3", b"three");
    tokio::time::timeout(Duration::from_secs(5), changes.changed()).await.expect("it is told").unwrap();
    drop(hold);
    in_use(&server, false).await;
}

/// Waits until the status page says whether anything is in use.
async fn in_use(server: &Running, expected: bool) {
    let until = tokio::time::Instant::now() + Duration::from_secs(10);
    loop {
        let (_, page) = crate::stage::ask(server.address, "GET", "/status", "").await;
        let page = String::from_utf8(page).unwrap();
        if page.contains("<td>team/app</td><td>1</td><td class=\"number\">1</td>") == expected {
            return;
        }
        assert!(tokio::time::Instant::now() < until, "{page}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Clients that go away in the middle leave nothing behind that another one could feel.
#[tokio::test]
async fn lost_interest_costs_nothing() {
    let all = numbers(32 << 20);
    let stage = stage(all.len());
    let server = serve(&stage.settings()).await;
    let url = url::Url::parse(&format!("rtsp://{}/team/", server.address)).unwrap();
    let backend = Arc::new(RtspBackend::new(&url, &"app".parse().unwrap(), &config()).unwrap());
    for _ in 0..100 {
        drop(backend.read_range(&object(PACK), 0..all.len() as u64, ReadOptions::default()).await.unwrap());
    }
    let retry = Retry::new(backend, config().retry);
    assert!(read(&retry, PACK, 5..1_000_005).await.unwrap() == all[5..1_000_005]);
}
