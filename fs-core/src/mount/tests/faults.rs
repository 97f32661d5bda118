//! Origins that fail now and then, and others that say what is not theirs to say.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::backend::faults::{Fault, Faults};
use crate::backend::retry::Retry;
use crate::config::RetryPolicy;
use crate::package::NodeKind;
use crate::stage::{Stage, at, content, noise, walk};

fn policy() -> RetryPolicy {
    RetryPolicy {
        read_deadline: Duration::from_secs(4),
        metadata_deadline: Duration::from_secs(4),
        stall_timeout: Duration::from_millis(100),
        connect_timeout: Duration::from_millis(100),
        first_backoff: Duration::from_millis(1),
        max_backoff: Duration::from_millis(20),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_fails_now_and_then_gives_right_bytes_or_an_error_in_time() {
    let stage = Stage::new();
    let source = stage.folder("source");
    for i in 0..30 {
        fs::write(source.join(format!("f{i}")), noise(i, 100_000)).unwrap();
    }
    stage.publish(&source, "1");
    let (mut read, mut failed) = (0, 0);
    for seed in 0..6 {
        let faults = Arc::new(Faults::seeded(stage.backend(), seed, 0.2, true));
        let backend = Arc::new(Retry::new(faults.clone(), policy()));
        let host = stage.host_through(&format!("cache-{seed}"), backend).await;
        let Ok(mount) = host.mount(&stage.location("1"), None).await else {
            failed += 1;
            continue;
        };
        let Ok(nodes) = walk(&mount).await else {
            failed += 1;
            continue;
        };
        for (path, node) in nodes.into_iter().filter(|(_, n)| n.kind == NodeKind::File) {
            let begun = Instant::now();
            match content(&mount, &node, 1 << 20).await {
                Ok(bytes) => {
                    assert!(bytes == fs::read(source.join(&path)).unwrap(), "seed {seed}, {}", path.display());
                    read += 1;
                }
                Err(_) => failed += 1,
            }
            assert!(begun.elapsed() < Duration::from_secs(15), "seed {seed}: {:?}", begun.elapsed());
        }
        assert!(faults.injected() > 0);
    }
    assert!(read > 100, "{read} files were read, {failed} failed");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_stalls_for_ever_fails_reads_by_the_deadline() {
    let stage = Stage::new();
    let source = stage.folder("source");
    fs::write(source.join("f"), noise(1, 100_000)).unwrap();
    stage.publish(&source, "1");
    let packs = |request: &crate::backend::faults::Request<'_>| {
        let is_pack = request.object.as_str().starts_with("packs/");
        is_pack.then_some(Fault::Stall { after_bytes: 10 })
    };
    let host = stage.host_through("cache", stage.backend()).await;
    let location = stage.location("1");
    host.set_backend(&location, Arc::new(Faults::new(stage.backend(), packs)), Duration::from_millis(300));
    let mount = stage.mount(&host, "1").await;
    let node = at(&mount, "f").await;
    let begun = Instant::now();
    let e = content(&mount, &node, 1 << 20).await.unwrap_err();
    assert_eq!(e.kind(), crate::ErrorKind::TimedOut);
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn another_package_cannot_put_its_bytes_into_our_files() {
    // Cached files were named by what a tree says of its files' contents: a package could claim the name of another's
    // file, and what was verified against its own hashes was then read as that other file.
    let stage = Stage::new();
    let source = stage.folder("source");
    fs::write(source.join("f"), noise(1, 1 << 20)).unwrap();
    stage.publish(&source, "1");
    let (host, _) = stage.recorded("cache").await;
    let ours = stage.mount(&host, "1").await;
    let mut request = stage.request(&source, "1");
    request.package = "other".parse().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| crate::package::publish::publish(&request, &crate::package::publish::NoProgress).unwrap());
    });
    let mut location = stage.location("1");
    location.package = request.package.clone();
    let theirs = host.mount(&location, None).await.unwrap();
    let mut names = Vec::new();
    for mount in [&ours, &theirs] {
        let node = at(mount, "f").await;
        content(mount, &node, 1 << 20).await.unwrap();
        let mut held = crate::mount::pages::Held::default();
        let Ok(file) = mount.file(&mut held, node.id) else { panic!("its page is here") };
        names.push(file.blob.content());
        assert_ne!(file.blob.content(), mount.descriptor().tree.object);
    }
    assert_ne!(names[0], names[1], "equal contents of two packages are two files");
}
