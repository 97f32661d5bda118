//! Publisher and client against each other, with somebody in between.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::client::{Freshness, LoadOptions, Loaded, Polled, load, load_offline, poll};
use super::keys::KeyStore;
use super::publisher::{Added, KeyRole, PublishOptions, Publisher};
use super::store::TrustStore;
use super::*;
use crate::backend::faults::{Fault, Faults};
use crate::backend::recording::Recording;
use crate::backend::{Backend, LocalBackend};
use crate::error::{Error, ErrorKind};

const KEY: &str = "https://apps.example/content/p";

/// A content root with a package, keys, and a client's store.
struct World {
    dir: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn package(&self) -> PathBuf {
        self.dir.path().join("content/p")
    }

    fn keys(&self) -> KeyStore {
        KeyStore::new(self.dir.path().join("keys"))
    }

    fn store(&self) -> TrustStore {
        TrustStore::new(self.dir.path().join("trust"))
    }

    fn backend(&self) -> Arc<dyn Backend> {
        Arc::new(LocalBackend::new(self.package()))
    }

    async fn publisher(&self) -> Publisher {
        Publisher::open(&self.package(), &self.keys(), PublishOptions::default()).await.unwrap()
    }

    async fn publish(&self, v: &str) {
        let mut publisher = self.publisher().await;
        publisher.add_version(&version(v), descriptor(v), &[channel("stable")], 1000).unwrap();
        publisher.commit().await.unwrap();
    }

    async fn load(&self) -> Result<Loaded> {
        load(&self.backend(), KEY, &self.store(), &LoadOptions::default()).await
    }

    /// A store that knows nothing yet.
    async fn load_first(&self) -> Result<Loaded> {
        let dir = tempfile::tempdir().unwrap();
        load(&self.backend(), KEY, &TrustStore::new(dir.path()), &LoadOptions::default()).await
    }

    fn copy(&self, name: &str) -> PathBuf {
        let to = self.dir.path().join(name);
        copy_dir(&self.package(), &to);
        to
    }

    fn restore(&self, from: &Path) {
        std::fs::remove_dir_all(self.package()).unwrap();
        copy_dir(from, &self.package());
    }

    fn forget_head(&self) {
        std::fs::remove_file(self.package().join("head")).unwrap();
    }
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

fn version(v: &str) -> PackageVersion {
    v.parse().unwrap()
}

fn channel(c: &str) -> Channel {
    c.parse().unwrap()
}

fn descriptor(v: &str) -> Bytes {
    format!("{{\"version\":\"{v}\"}}").into()
}

fn names(catalog: &Catalog) -> Vec<&str> {
    catalog.versions.iter().map(|v| v.version.as_str()).collect()
}

#[track_caller]
fn assert_untrusted(result: Result<Loaded>, words: &str) {
    let e = result.expect_err("it must be refused");
    assert_eq!(e.kind(), ErrorKind::Untrusted, "{e}");
    assert!(e.to_string().contains(words), "{words:?} is not in: {e}");
}

#[tokio::test]
async fn what_is_published_is_loaded() {
    let world = World::new();
    let mut publisher = world.publisher().await;
    assert_eq!(
        publisher.add_version(&version("1.0"), descriptor("1.0"), &[channel("stable")], 11).unwrap(),
        Added::New
    );
    publisher.add_version(&version("2.0"), descriptor("2.0"), &[channel("beta"), channel("next")], 22).unwrap();
    publisher.commit().await.unwrap();
    let loaded = world.load().await.unwrap();
    assert!(loaded.trusted_on_first_use && loaded.freshness == Freshness::Fresh);
    assert_eq!(names(&loaded.catalog), ["1.0", "2.0"]);
    assert_eq!(loaded.catalog, *publisher.catalog());
    assert_eq!(loaded.catalog.resolve(None, KEY).unwrap().published, 11);
    assert_eq!(loaded.catalog.resolve(Some(&"next".parse().unwrap()), KEY).unwrap().sequence, 2);
    for record in &loaded.catalog.versions {
        assert_eq!(loaded.descriptor(record).await.unwrap(), descriptor(record.version.as_str()));
    }
    publisher.revoke(&version("1.0")).unwrap();
    publisher.commit().await.unwrap();
    let loaded = world.load().await.unwrap();
    assert!(loaded.catalog.versions[0].revoked && !loaded.catalog.versions[1].revoked && !loaded.trusted_on_first_use);
}

#[tokio::test]
async fn a_cold_load_is_one_request_and_a_channels_descriptor_none() {
    let world = World::new();
    world.publish("1").await;
    world.publish("2").await;
    let recording = Recording::new(world.backend());
    let log = recording.log();
    let backend: Arc<dyn Backend> = Arc::new(recording);
    let loaded = load(&backend, KEY, &world.store(), &LoadOptions::default()).await.unwrap();
    loaded.descriptor(loaded.catalog.resolve(None, KEY).unwrap()).await.unwrap();
    assert_eq!(log.count(), 1, "{:?}", log.requests());
    loaded.descriptor(&loaded.catalog.versions[0]).await.unwrap();
    assert_eq!(log.count(), 2, "no channel points at version 1, so it is fetched");
    loaded.descriptor(&loaded.catalog.versions[0]).await.unwrap();
    assert_eq!(log.count(), 2, "and kept");
    assert_eq!(poll(&backend, KEY, loaded.validator.clone()).await.unwrap(), Polled::NotModified);
    world.publish("3").await;
    let Polled::Changed { validator } = poll(&backend, KEY, loaded.validator).await.unwrap() else { panic!("changed") };
    assert_eq!(poll(&backend, KEY, Some(validator)).await.unwrap(), Polled::NotModified);
    world.forget_head();
    let Polled::Changed { validator } = poll(&backend, KEY, None).await.unwrap() else { panic!("first") };
    assert_eq!(poll(&backend, KEY, Some(validator)).await.unwrap(), Polled::NotModified);
}

#[tokio::test]
async fn versions_are_immutable_and_channels_move() {
    let world = World::new();
    world.publish("1").await;
    world.publish("2").await;
    let mut publisher = world.publisher().await;
    let e = publisher.add_version(&version("1"), "other".into(), &[], 5).unwrap_err();
    assert!(e.kind() == ErrorKind::InvalidInput && e.to_string().contains("never change"), "{e}");
    let same = |p: &mut Publisher, c: &str| p.add_version(&version("1"), descriptor("1"), &[channel(c)], 5).unwrap();
    assert_eq!(same(&mut publisher, "stable"), Added::ChannelsMoved);
    assert_eq!(same(&mut publisher, "stable"), Added::Unchanged);
    let first = publisher.commit().await.unwrap();
    assert_eq!(publisher.commit().await.unwrap().timestamp, first.timestamp, "nothing to do");
    let loaded = world.load().await.unwrap();
    assert_eq!(loaded.catalog.resolve(None, KEY).unwrap().version.as_str(), "1");
    assert_eq!(names(&loaded.catalog), ["1", "2"]);
    assert_eq!(loaded.catalog.versions[0].published, 1000, "the first publication counts");
}

#[tokio::test]
async fn keys_stay_private_and_outside_the_content_root() {
    let world = World::new();
    world.publish("1").await;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = |p: &Path| std::fs::metadata(p).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(world.keys().dir()), 0o700);
        let mut seen = 0;
        for entry in std::fs::read_dir(world.keys().dir()).unwrap().flatten() {
            if entry.path().extension().is_some_and(|e| e == "pem") {
                assert_eq!(mode(&entry.path()), 0o600);
                std::fs::set_permissions(entry.path(), PermissionsExt::from_mode(0o644)).unwrap();
                seen += 1;
            }
        }
        assert_eq!(seen, 3);
        let mut publisher = world.publisher().await;
        let e = publisher.renew().await.unwrap_err().to_string();
        assert!(e.contains("chmod 600"), "{e}");
    }
    #[cfg(unix)]
    std::os::unix::fs::symlink(world.dir.path().join("content"), world.dir.path().join("link")).unwrap();
    for inside in ["content/keys", "content/p/keys", "content/p/../keys", "link/keys"] {
        if cfg!(not(unix)) && inside.starts_with("link") {
            continue;
        }
        let keys = KeyStore::new(world.dir.path().join(inside));
        let e = Publisher::open(&world.package(), &keys, PublishOptions::default()).await.unwrap_err();
        assert!(e.to_string().contains("do not belong into the content root"), "{inside}: {e}");
    }
    let other = KeyStore::new(world.dir.path().join("other-keys"));
    let mut publisher = Publisher::open(&world.package(), &other, PublishOptions::default()).await.unwrap();
    let e = publisher.renew().await.unwrap_err().to_string();
    assert!(e.contains("timestamp") && e.contains("copy it from where"), "{e}");
}

#[tokio::test]
async fn damage_to_each_metadata_file_is_named_and_head_alone_is_forgiven() {
    type Change = (&'static str, fn(&Path));
    let changes: [Change; 3] = [
        ("flip", |p| {
            let mut bytes = std::fs::read(p).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            std::fs::write(p, bytes).unwrap();
        }),
        ("truncate", |p| {
            let bytes = std::fs::read(p).unwrap();
            std::fs::write(p, &bytes[..bytes.len() / 2]).unwrap();
        }),
        ("delete", |p| std::fs::remove_file(p).unwrap()),
    ];
    let world = World::new();
    world.publish("1").await;
    let good = world.copy("good");
    for (how, change) in changes {
        world.restore(&good);
        change(&world.package().join("head"));
        assert_eq!(names(&world.load_first().await.unwrap().catalog), ["1"], "{how}: the separate files do");
        for file in ["1.root.json", "timestamp.json", "1.snapshot.json", "1.targets.json"] {
            world.restore(&good);
            world.forget_head();
            change(&world.package().join("metadata").join(file));
            let e = world.load_first().await.expect_err(how);
            let expected = if how == "delete" { ErrorKind::NotFound } else { ErrorKind::Untrusted };
            assert_eq!(e.kind(), expected, "{how} {file}: {e}");
            let role = file.split('.').rev().nth(1).unwrap();
            assert!(e.to_string().contains(role), "{how} {file}: {e}");
        }
        // With a good head, nobody misses them.
        world.restore(&good);
        for file in ["1.root.json", "timestamp.json", "1.snapshot.json", "1.targets.json"] {
            change(&world.package().join("metadata").join(file));
        }
        world.load_first().await.unwrap();
    }
}

#[tokio::test]
async fn swapped_and_damaged_descriptors_are_named() {
    let world = World::new();
    world.publish("1").await;
    world.publish("2").await;
    let loaded = world.load_first().await.unwrap();
    let [one, two] = &loaded.catalog.versions[..] else { panic!("two versions") };
    let path = |r: &VersionRecord| world.package().join(r.descriptor_object().as_str());
    std::fs::copy(path(two), path(one)).unwrap();
    world.forget_head();
    let loaded = world.load_first().await.unwrap();
    let e = loaded.descriptor(one).await.unwrap_err();
    assert!(e.kind() == ErrorKind::Damaged && e.to_string().contains(one.descriptor_object().as_str()), "{e}");
    assert_eq!(loaded.descriptor(two).await.unwrap(), descriptor("2"));
    std::fs::write(path(one), "").unwrap();
    assert!(loaded.descriptor(one).await.is_err());
    std::fs::remove_file(path(one)).unwrap();
    assert_eq!(loaded.descriptor(one).await.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn rollback_is_refused_by_clients_and_publishers() {
    let world = World::new();
    world.publish("1").await;
    let old = world.copy("old");
    world.publish("2").await;
    world.load().await.unwrap();
    world.restore(&old);
    assert_untrusted(world.load().await, "old copy");
    assert_eq!(names(&world.load_first().await.unwrap().catalog), ["1"], "a new client cannot know");
    world.forget_head();
    assert_untrusted(world.load().await, "metadata/timestamp.json (timestamp) is number 1");
    let e = Publisher::open(&world.package(), &world.keys(), PublishOptions::default()).await.unwrap_err();
    assert!(e.kind() == ErrorKind::Untrusted && e.to_string().contains("restored on purpose"), "{e}");
}

#[tokio::test]
async fn files_of_another_package_or_state_are_refused() {
    let (world, other) = (World::new(), World::new());
    world.publish("1").await;
    other.publish("1").await;
    for file in ["timestamp.json", "1.snapshot.json", "1.targets.json"] {
        let good = world.copy(&format!("before-{file}"));
        world.forget_head();
        std::fs::copy(other.package().join("metadata").join(file), world.package().join("metadata").join(file))
            .unwrap();
        assert_untrusted(world.load_first().await, "another package's");
        world.restore(&good);
    }
    world.publish("2").await;
    world.forget_head();
    let metadata = world.package().join("metadata");
    std::fs::copy(metadata.join("1.targets.json"), metadata.join("2.targets.json")).unwrap();
    assert_untrusted(world.load_first().await, "metadata/2.targets.json");
}

#[tokio::test]
async fn another_root_than_the_first_is_refused_and_explained() {
    let world = World::new();
    world.publish("1").await;
    world.load().await.unwrap();
    let first_root = Bytes::from(std::fs::read(world.package().join("metadata/1.root.json")).unwrap());
    std::fs::remove_dir_all(world.package()).unwrap();
    world.publish("1").await;
    assert_untrusted(world.load().await, "not the one this machine trusted first");
    world.forget_head();
    assert_untrusted(world.load().await, "remove ");
    let given = LoadOptions { trust_root: Some(first_root), ..LoadOptions::default() };
    let fresh = TrustStore::new(world.dir.path().join("fresh"));
    assert_untrusted(load(&world.backend(), KEY, &fresh, &given).await, "given with --trust-root");
    let right = std::fs::read(world.package().join("metadata/1.root.json")).unwrap();
    let given = LoadOptions { trust_root: Some(right.into()), ..LoadOptions::default() };
    let loaded = load(&world.backend(), KEY, &fresh, &given).await.unwrap();
    assert!(!loaded.trusted_on_first_use);
    let garbage = LoadOptions { trust_root: Some("{}".into()), ..LoadOptions::default() };
    assert_untrusted(load(&world.backend(), KEY, &fresh, &garbage).await, "--trust-root");
}

#[tokio::test]
async fn rotated_keys_are_followed_by_old_and_new_clients() {
    let world = World::new();
    world.publish("1").await;
    world.load().await.unwrap();
    let old = world.copy("old");
    let first_root = Bytes::from(std::fs::read(world.package().join("metadata/1.root.json")).unwrap());
    let mut publisher = world.publisher().await;
    publisher.rotate(&[KeyRole::Root, KeyRole::Targets, KeyRole::Timestamp]).await.unwrap();
    publisher.commit().await.unwrap();
    drop(publisher);
    world.load().await.unwrap();
    world.publish("2").await;
    assert_eq!(names(&world.load().await.unwrap().catalog), ["1", "2"]);
    world.forget_head();
    assert_eq!(names(&world.load().await.unwrap().catalog), ["1", "2"]);
    let given = LoadOptions { trust_root: Some(first_root), ..LoadOptions::default() };
    load(&world.backend(), KEY, &world.store(), &given).await.unwrap();
    world.load_first().await.unwrap();
    world.restore(&old);
    assert_untrusted(world.load().await, "not signed by the keys");
}

#[tokio::test]
async fn expired_metadata_teaches_nothing_new_but_stops_nothing_old() {
    let world = World::new();
    world.publish("1").await;
    world.load().await.unwrap();
    let options = PublishOptions { timestamp_valid: Duration::ZERO, ..PublishOptions::default() };
    let mut publisher = Publisher::open(&world.package(), &world.keys(), options).await.unwrap();
    publisher.add_version(&version("2"), descriptor("2"), &[channel("stable")], 5).unwrap();
    publisher.commit().await.unwrap();
    drop(publisher);
    assert_untrusted(world.load_first().await, "streamfs renew");
    assert_untrusted(world.load_first().await, "metadata/timestamp.json expired on ");
    let loaded = world.load().await.unwrap();
    assert_eq!(names(&loaded.catalog), ["1"]);
    assert!(matches!(&loaded.freshness, Freshness::Expired { what, .. } if what == "metadata/timestamp.json"));
    world.publisher().await.renew().await.unwrap();
    let loaded = world.load().await.unwrap();
    assert_eq!((loaded.freshness, names(&loaded.catalog)), (Freshness::Fresh, vec!["1", "2"]));
}

#[tokio::test]
async fn without_the_origin_what_was_trusted_remains() {
    let world = World::new();
    world.publish("1").await;
    assert_eq!(load_offline(KEY, &world.store()).await.unwrap_err().kind(), ErrorKind::NotFound);
    let away: Arc<dyn Backend> = Arc::new(Faults::new(world.backend(), |_| Some(Fault::Fail)));
    let options = LoadOptions::default();
    let e = load(&away, KEY, &world.store(), &options).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Unreachable);
    let loaded = world.load().await.unwrap();
    let record = loaded.catalog.versions[0].clone();
    loaded.descriptor(&record).await.unwrap();
    let offline = load(&away, KEY, &world.store(), &options).await.unwrap();
    assert!(matches!(&offline.freshness, Freshness::Offline { reason } if reason.contains("injected")));
    assert_eq!(offline.descriptor(&record).await.unwrap(), descriptor("1"));
    let offline = load_offline(KEY, &world.store()).await.unwrap();
    assert_eq!(offline.catalog, loaded.catalog);
    assert_eq!(offline.descriptor(&record).await.unwrap(), descriptor("1"));
    // A share that is not mounted looks like a package that is gone; the first use of one is an error, though.
    std::fs::remove_dir_all(world.package()).unwrap();
    let gone = world.load().await.unwrap();
    assert!(matches!(&gone.freshness, Freshness::Offline { reason } if reason.contains("share mounted")));
    assert_eq!(world.load_first().await.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn a_damaged_store_is_recognised_and_written_anew() {
    let world = World::new();
    world.publish("1").await;
    world.load().await.unwrap();
    let trusted = world.store().package_dir(KEY).join("trusted");
    let good = std::fs::read(&trusted).unwrap();
    for bad in [&good[..good.len() / 2], b"", &[&good[..], b"x"].concat()] {
        std::fs::write(&trusted, bad).unwrap();
        assert!(!world.load().await.unwrap().trusted_on_first_use);
        assert!(load_offline(KEY, &world.store()).await.is_ok());
    }
    let loaded = world.load().await.unwrap();
    loaded.descriptor(&loaded.catalog.versions[0]).await.unwrap();
    let kept = world.store().package_dir(KEY).join("descriptors");
    for entry in std::fs::read_dir(kept).unwrap().flatten() {
        std::fs::write(entry.path(), "torn").unwrap();
    }
    assert_eq!(loaded.descriptor(&loaded.catalog.versions[0]).await.unwrap(), descriptor("1"));
}

#[tokio::test]
async fn an_interrupted_commit_leaves_the_old_state_and_can_be_repeated() {
    for rotate in [false, true] {
        for first in [true, false] {
            if rotate && first {
                continue;
            }
            let world = World::new();
            if !first {
                world.publish("1").await;
                world.load().await.unwrap();
            }
            let before = if first { vec![] } else { vec!["1"] };
            let mut steps = 0;
            loop {
                let mut publisher = world.publisher().await;
                if rotate {
                    publisher.rotate(&[KeyRole::Root, KeyRole::Targets, KeyRole::Timestamp]).await.unwrap();
                }
                publisher.add_version(&version("2"), descriptor("2"), &[channel("stable")], 5).unwrap();
                publisher.fail_at_write = Some(steps);
                let done = publisher.commit().await;
                drop(publisher);
                for loaded in [world.load().await, world.load_first().await] {
                    match loaded {
                        Ok(loaded) => {
                            let names = names(&loaded.catalog);
                            assert!(names == before || names.last() == Some(&"2"), "step {steps}: {names:?}");
                        }
                        Err(e) => assert!(first && e.kind() == ErrorKind::NotFound, "step {steps}: {e}"),
                    }
                }
                match done {
                    Ok(_) => break,
                    Err(e) => assert!(matches!(e, Error::Cancelled), "{e}"),
                }
                steps += 1;
            }
            // A try that got past the timestamp makes the next one a mere move of nothing.
            assert!(steps >= 4, "{steps}");
            assert_eq!(names(&world.load_first().await.unwrap().catalog).last(), Some(&"2"));
        }
    }
}

#[tokio::test]
async fn two_publishers_take_turns() {
    let world = World::new();
    let first = world.publisher().await;
    let options = PublishOptions { lock_patience: Duration::from_millis(50), ..PublishOptions::default() };
    let e = Publisher::open(&world.package(), &world.keys(), options).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Busy, "{e}");
    drop(first);
    tokio::join!(world.publish("1"), world.publish("2"), world.publish("3"));
    assert_eq!(world.load().await.unwrap().catalog.versions.len(), 3);
}

#[tokio::test]
async fn an_old_head_is_mended_by_the_next_publisher() {
    let world = World::new();
    world.publish("1").await;
    let head = std::fs::read(world.package().join("head")).unwrap();
    world.publish("2").await;
    world.load().await.unwrap();
    std::fs::write(world.package().join("head"), head).unwrap();
    assert_eq!(names(&world.load().await.unwrap().catalog), ["1", "2"], "who knows better asks the separate files");
    drop(world.publisher().await);
    assert_eq!(names(&world.load_first().await.unwrap().catalog), ["1", "2"]);
}

/// A channel "2.0" beside a version 2.0 could never be mounted: the version goes first.
#[tokio::test]
async fn versions_and_channels_do_not_share_names() {
    let world = World::new();
    world.publish("1").await;
    let mut publisher = world.publisher().await;
    for (v, c) in [("stable", "beta"), ("2", "1"), ("2", "2")] {
        let e = publisher.add_version(&version(v), descriptor(v), &[channel(c)], 1).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::InvalidInput, "{v} {c}: {e}");
    }
    publisher.add_version(&version("2"), descriptor("2"), &[channel("stable")], 1).unwrap();
}
