use super::super::keys::KeyStore;
use super::super::publisher::{KeyRole, PublishOptions, Publisher};
use super::*;
use crate::stage::Stage;

const PATIENCE: Duration = Duration::from_secs(5);

/// A package with one version, and a copy of its signed state.
fn copied() -> Stage {
    let stage = Stage::new();
    let source = stage.folder("source");
    std::fs::write(source.join("file"), "content").unwrap();
    stage.publish(&source, "1");
    recopy(&stage);
    stage
}

fn recopy(stage: &Stage) {
    let _ = std::fs::remove_dir_all(stage.path("copy"));
    for dir in ["metadata", "descriptors"] {
        let to = stage.folder(&format!("copy/app/{dir}"));
        for entry in std::fs::read_dir(stage.package_dir().join(dir)).unwrap().flatten() {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

/// A publisher of the copy.
async fn staged(stage: &Stage) -> Publisher {
    let options = PublishOptions { staged: true, ..PublishOptions::default() };
    Publisher::open(&stage.path("copy/app"), &KeyStore::new(stage.path("keys")), options).await.unwrap()
}

fn bundle(stage: &Stage) -> Bytes {
    std::fs::read(stage.path("copy/app/head")).unwrap().into()
}

async fn take(stage: &Stage, bundle: Bytes) -> Result<Received, NotReceived> {
    receive(&stage.package_dir(), &"app".parse().unwrap(), bundle, PATIENCE, || true).await
}

async fn revoked(stage: &Stage) -> Bytes {
    let mut publisher = staged(stage).await;
    publisher.revoke(&"1".parse().unwrap()).unwrap();
    publisher.commit().await.unwrap();
    bundle(stage)
}

async fn is_revoked(stage: &Stage) -> bool {
    let keys = KeyStore::new(stage.path("keys"));
    let publisher = Publisher::open(&stage.package_dir(), &keys, PublishOptions::default()).await.unwrap();
    publisher.catalog().versions[0].revoked
}

#[tokio::test]
async fn new_metadata_becomes_the_state_once() {
    let stage = copied();
    let bundle = revoked(&stage).await;
    let refused = receive(&stage.package_dir(), &"app".parse().unwrap(), bundle.clone(), PATIENCE, || false).await;
    assert!(matches!(refused, Err(NotReceived::Changed)), "{refused:?}");
    assert!(!is_revoked(&stage).await);
    assert_eq!(take(&stage, bundle.clone()).await.unwrap(), Received::Changed);
    assert!(is_revoked(&stage).await);
    // Repeated, whatever is expected meanwhile; and a `head` that was not written yet is.
    let head = std::fs::read(stage.package_dir().join("head")).unwrap();
    std::fs::remove_file(stage.package_dir().join("head")).unwrap();
    let again = receive(&stage.package_dir(), &"app".parse().unwrap(), bundle, PATIENCE, || false).await;
    assert_eq!(again.unwrap(), Received::Unchanged);
    assert_eq!(std::fs::read(stage.package_dir().join("head")).unwrap(), head);
}

#[tokio::test]
async fn the_state_never_goes_back() {
    let stage = copied();
    let first = revoked(&stage).await;
    recopy(&stage);
    let mut publisher = staged(&stage).await;
    publisher.renew().await.unwrap();
    drop(publisher);
    let renewed = bundle(&stage);
    take(&stage, first.clone()).await.unwrap();
    // Of the same number, and made from what was there before.
    let refused = take(&stage, renewed).await;
    assert!(refused.is_err(), "{refused:?}");
    recopy(&stage);
    let mut publisher = staged(&stage).await;
    publisher.renew().await.unwrap();
    drop(publisher);
    take(&stage, bundle(&stage)).await.unwrap();
    let refused = take(&stage, first).await;
    assert!(matches!(refused, Err(NotReceived::Unusable(Error::Untrusted { .. }))), "{refused:?}");
    assert!(is_revoked(&stage).await);
}

#[tokio::test]
async fn other_keys_and_damage_are_refused() {
    let stage = copied();
    let before = stage.stored();
    let other = copied();
    let foreign = revoked(&other).await;
    let refused = take(&stage, foreign).await;
    assert!(matches!(refused, Err(NotReceived::Unusable(Error::Untrusted { .. }))), "{refused:?}");
    let good = revoked(&stage).await;
    for at in (0..good.len()).step_by(97) {
        let mut changed = good.to_vec();
        changed[at] ^= 1;
        // With the hash made right, so that it is not found by accident alone.
        let body = changed.len() - 32;
        let hash = *blake3::hash(&changed[..body]).as_bytes();
        changed[body..].copy_from_slice(&hash);
        // White space and descriptors of the bundle may change without harm; nothing else may.
        let _ = take(&stage, changed.into()).await;
        assert!(is_revoked(&stage).await || stage.stored().keys().eq(before.keys()), "changed at {at}");
        if is_revoked(&stage).await {
            return;
        }
    }
}

#[tokio::test]
async fn what_refers_to_missing_objects_is_refused_and_they_are_named() {
    let stage = copied();
    let source = stage.folder("source");
    std::fs::write(source.join("file"), "other content").unwrap();
    // A second version, published to a folder of its own that goes on from the same state.
    let request =
        crate::package::publish::PublishRequest { content_root: stage.path("copy"), ..stage.request(&source, "2") };
    let published = std::thread::scope(|scope| {
        scope.spawn(|| crate::package::publish::publish(&request, &crate::package::publish::NoProgress)).join().unwrap()
    });
    published.unwrap();
    let bytes = bundle(&stage);
    let front = super::super::head::bytes_before_tail(&bytes).unwrap();
    let bytes = bytes.slice(..front);
    let missing = take(&stage, bytes.clone()).await;
    assert!(matches!(&missing, Err(NotReceived::Missing(objects)) if objects[0].as_str().starts_with("descriptors/")));
    for dir in ["descriptors", "trees", "packs"] {
        let missing = take(&stage, bytes.clone()).await;
        assert!(matches!(&missing, Err(NotReceived::Missing(_))), "before {dir}: {missing:?}");
        for entry in std::fs::read_dir(stage.path("copy/app").join(dir)).unwrap().flatten() {
            std::fs::copy(entry.path(), stage.package_dir().join(dir).join(entry.file_name())).unwrap();
        }
    }
    assert_eq!(take(&stage, bytes.clone()).await.unwrap(), Received::Changed);
    // Under another name it is another package's.
    let elsewhere = stage.path("content/other");
    std::fs::create_dir_all(&elsewhere).unwrap();
    for dir in ["descriptors", "trees", "packs"] {
        std::fs::create_dir_all(elsewhere.join(dir)).unwrap();
        for entry in std::fs::read_dir(stage.package_dir().join(dir)).unwrap().flatten() {
            std::fs::copy(entry.path(), elsewhere.join(dir).join(entry.file_name())).unwrap();
        }
    }
    let refused = receive(&elsewhere, &"other".parse().unwrap(), bytes, PATIENCE, || true).await;
    assert!(matches!(&refused, Err(NotReceived::Conflict(why)) if why.contains("descriptor of app")), "{refused:?}");
}

#[tokio::test]
async fn the_first_publication_and_changed_keys_are_taken() {
    let stage = copied();
    // A server that has the objects, and nothing signed.
    for file in ["metadata", "head"] {
        let path = stage.package_dir().join(file);
        if path.is_dir() { std::fs::remove_dir_all(path).unwrap() } else { std::fs::remove_file(path).unwrap() }
    }
    let bundle_of_copy = revoked(&stage).await;
    assert_eq!(take(&stage, bundle_of_copy).await.unwrap(), Received::First);
    recopy(&stage);
    let mut publisher = staged(&stage).await;
    publisher.rotate(&[KeyRole::Root, KeyRole::Targets, KeyRole::Timestamp]).await.unwrap();
    publisher.commit().await.unwrap();
    drop(publisher);
    assert_eq!(take(&stage, bundle(&stage)).await.unwrap(), Received::Changed);
    assert!(stage.package_dir().join("metadata/2.root.json").exists());
    assert!(is_revoked(&stage).await);
}
