use super::*;
use crate::stage::{Stage, noise};
use crate::trust::keys::KeyStore;
use crate::trust::publisher::{PublishOptions, Publisher};

const GRACE: Duration = Duration::from_secs(3600);
const HOUR: Duration = Duration::from_secs(3600);

/// Versions 1, 2 and 3 of a file that shares nothing with itself; `stable` points at 3.
fn three_versions() -> Stage {
    let stage = Stage::new();
    let source = stage.folder("source");
    for version in 1..=3 {
        fs::write(source.join("file"), noise(version, 100_000)).unwrap();
        stage.publish(&source, &version.to_string());
    }
    stage
}

async fn retire(stage: &Stage, version: &str) {
    let keys = KeyStore::new(stage.path("keys"));
    let mut publisher = Publisher::open(&stage.package_dir(), &keys, PublishOptions::default()).await.unwrap();
    publisher.retire(&version.parse().unwrap()).unwrap();
    publisher.commit().await.unwrap();
}

/// Collects so long from now.
async fn after(stage: &Stage, later: Duration, dry_run: bool) -> Result<Collected> {
    collect(&stage.package_dir(), &CollectRequest { grace: GRACE, dry_run, now: SystemTime::now() + later }).await
}

fn objects(stage: &Stage) -> usize {
    [DESCRIPTOR_DIR, TREE_DIR, PACK_DIR].iter().map(|dir| names(&stage.package_dir().join(dir)).len()).sum()
}

async fn is_whole(stage: &Stage, version: &str) -> bool {
    let host = stage.recorded(&format!("cache-{}", rand::random::<u64>())).await.0;
    match host.mount(&stage.location(version), None).await {
        Ok(mount) => {
            let node = crate::stage::at(&mount, "file").await;
            crate::stage::content(&mount, &node, 50_000).await.is_ok()
        }
        Err(_) => false,
    }
}

#[tokio::test]
async fn what_is_published_stays_however_old_it_is() {
    let stage = three_versions();
    let before = objects(&stage);
    let collected = after(&stage, HOUR * 24 * 365, false).await.unwrap();
    assert!(collected.removed.iter().all(|path| path.starts_with("metadata/")), "{collected:?}");
    assert_eq!(objects(&stage), before);
    for version in ["1", "2", "3"] {
        assert!(is_whole(&stage, version).await, "{version}");
    }
}

#[tokio::test]
async fn what_left_the_catalog_goes_after_the_grace_period() {
    let stage = three_versions();
    let before = objects(&stage);
    retire(&stage, "1").await;
    // Its objects are old enough by themselves, but somebody may have mounted it just before it was retired.
    for dir in [DESCRIPTOR_DIR, TREE_DIR, PACK_DIR] {
        for name in names(&stage.package_dir().join(dir)) {
            let file = fs::File::options().write(true).open(stage.package_dir().join(dir).join(name)).unwrap();
            file.set_modified(SystemTime::now() - HOUR * 100).unwrap();
        }
    }
    after(&stage, HOUR / 2, false).await.unwrap();
    assert_eq!(objects(&stage), before);
    let told = after(&stage, HOUR * 2, true).await.unwrap();
    assert_eq!(objects(&stage), before, "a dry run removes nothing");
    let collected = after(&stage, HOUR * 2, false).await.unwrap();
    assert_eq!(collected.removed, told.removed);
    assert_eq!(objects(&stage), before - 3, "a descriptor, a tree and a pack: {collected:?}");
    assert!(collected.removed_bytes > 100_000);
    assert!(is_whole(&stage, "2").await && is_whole(&stage, "3").await);
    let again = after(&stage, HOUR * 2, false).await.unwrap();
    assert!(again.removed.is_empty(), "{again:?}");
}

#[tokio::test]
async fn leftovers_go_when_they_are_old_and_strangers_never() {
    let stage = three_versions();
    let dir = stage.package_dir();
    let leftovers = [format!("packs/{}", "0a".repeat(32)), ".incoming/half".to_owned()];
    for (path, text) in
        leftovers.iter().map(|path| (path.as_str(), "x")).chain([("notes.txt", "mine"), ("access.toml", "")])
    {
        fs::create_dir_all(dir.join(path).parent().unwrap()).unwrap();
        fs::write(dir.join(path), text).unwrap();
    }
    let young = after(&stage, HOUR / 2, false).await.unwrap();
    assert_eq!((young.waiting, young.removed.len()), (2, 0), "{young:?}");
    let old = after(&stage, HOUR * 2, false).await.unwrap();
    assert!(leftovers.iter().all(|path| old.removed.contains(path)), "{old:?}");
    assert!(leftovers.iter().all(|path| !dir.join(path).exists()));
    assert!(dir.join("notes.txt").exists() && dir.join("access.toml").exists());
}

#[tokio::test]
async fn versions_in_use_stay() {
    let stage = three_versions();
    let lease = Lease::new("server");
    lease.write(&stage.package_dir(), vec!["1".parse().unwrap()]).unwrap();
    retire(&stage, "1").await;
    let before = objects(&stage);
    let path = stage.package_dir().join(USES_DIR).join("server.json");
    let renewed =
        |ahead: Duration| fs::File::options().write(true).open(&path).unwrap().set_modified(SystemTime::now() + ahead);
    renewed(HOUR * 2).unwrap();
    let collected = after(&stage, HOUR * 2 + LEASE_VALID / 2, false).await.unwrap();
    assert_eq!((objects(&stage), collected.in_use.len()), (before, 1));
    // A server that died is believed for a while only.
    let collected = after(&stage, HOUR * 2 + LEASE_VALID * 2, false).await.unwrap();
    assert!(collected.in_use.is_empty() && objects(&stage) == before - 3, "{collected:?}");
    assert!(!path.exists());
}

#[tokio::test]
async fn what_cannot_be_understood_is_left_alone() {
    let stage = three_versions();
    retire(&stage, "1").await;
    let dir = stage.package_dir();
    let before = objects(&stage);
    let timestamp = fs::read(dir.join("metadata/timestamp.json")).unwrap();
    fs::remove_file(dir.join("metadata/timestamp.json")).unwrap();
    assert!(after(&stage, HOUR * 2, false).await.unwrap_err().to_string().contains("timestamp.json"));
    fs::write(dir.join("metadata/timestamp.json"), b"{}").unwrap();
    assert!(after(&stage, HOUR * 2, false).await.is_err());
    fs::write(dir.join("metadata/timestamp.json"), timestamp).unwrap();
    fs::create_dir_all(dir.join(USES_DIR)).unwrap();
    fs::write(dir.join(USES_DIR).join("x.json"), b"nonsense").unwrap();
    assert!(after(&stage, Duration::ZERO, false).await.unwrap_err().to_string().contains("in use"));
    assert_eq!(objects(&stage), before);
}

#[tokio::test]
async fn what_to_retire_spares_the_newest_the_pointed_at_and_the_used() {
    let stage = three_versions();
    let catalog = catalog(&stage.package_dir()).await.unwrap().unwrap();
    let now = SystemTime::now();
    let retired = |in_use: &[&str], keep, older_than, now| {
        let in_use: Vec<PackageVersion> = in_use.iter().map(|version| version.parse().unwrap()).collect();
        let mut all = to_retire(&catalog, &in_use, keep, older_than, now);
        all.reverse();
        all.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(retired(&[], None, None, now), "");
    assert_eq!(retired(&[], Some(1), None, now), "1 2");
    assert_eq!(retired(&[], Some(2), None, now), "1");
    assert_eq!(retired(&["1"], Some(1), None, now), "2");
    assert_eq!(retired(&[], None, Some(HOUR), now), "");
    assert_eq!(retired(&[], None, Some(HOUR), now + HOUR * 2), "1 2");
    assert_eq!(retired(&[], Some(2), Some(HOUR), now + HOUR * 2), "1");
    // Whatever is asked for.
    let keys = KeyStore::new(stage.path("keys"));
    let mut publisher = Publisher::open(&stage.package_dir(), &keys, PublishOptions::default()).await.unwrap();
    let error = publisher.retire(&"3".parse().unwrap()).unwrap_err().to_string();
    assert!(error.contains("stable"), "{error}");
}

#[tokio::test]
async fn packages_are_found_wherever_they_are() {
    let stage = three_versions();
    let found = packages_below(&stage.path("content")).unwrap();
    assert_eq!(found, [stage.package_dir()]);
    assert_eq!(packages_below(&stage.package_dir()).unwrap(), [stage.package_dir()]);
    fs::create_dir_all(stage.path("content/team/new/.incoming")).unwrap();
    fs::create_dir_all(stage.path("content/.hidden/metadata")).unwrap();
    assert_eq!(packages_below(&stage.path("content")).unwrap().len(), 2);
    assert!(packages_below(&stage.path("nothing")).is_err());
}
