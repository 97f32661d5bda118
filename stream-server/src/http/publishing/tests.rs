//! The server's part against the client's: fs-core publishes, over a socket, to a router with an access file.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use fs_core::Result;
use fs_core::backend::http::upload::{Transfer, Uploader};
use fs_core::backend::{HttpBackend, ObjectPath};
use fs_core::config::{Credentials, OriginConfig, RetryPolicy};
use fs_core::location::{Origin, PackageLocation};
use fs_core::package::publish::staged::{ServerPackage, Staged};
use fs_core::package::publish::{DEFAULT_LEVEL, NoProgress, PublishRequest, PublishSummary, publish_to_server};
use fs_core::trust::keys::KeyStore;
use fs_core::trust::publisher::{PublishOptions, Publisher};

use crate::stage::{Running, Stage, ask, serve};
use crate::{ContentRoot, PasswordFile, ServerSettings};

const RULES: &str = r#"
package_files = false
[passwords]
file = "users"
[default]
read = { users = ["reader"] }
publish = { users = ["build", "other"] }
[[package]]
name = "public"
read = { everyone = true }
publish = { users = ["build"] }
"#;

struct World {
    stage: Stage,
    address: SocketAddr,
    _server: Running,
}

impl World {
    async fn new() -> Self {
        let stage = Stage::new();
        let content = ContentRoot::Folder(stage.content());
        Self::serving(stage, content).await
    }

    async fn serving(stage: Stage, content: ContentRoot) -> Self {
        std::fs::write(stage.path("access.toml"), RULES).unwrap();
        let mut users = PasswordFile::open(&stage.path("users")).unwrap();
        for user in ["reader", "build", "other", "stranger"] {
            users.set(user, &"right".into(), None).unwrap();
        }
        users.save().unwrap();
        let settings = ServerSettings { content, access: Some(stage.path("access.toml")), ..stage.settings() };
        let server = serve(&settings).await;
        Self { address: server.address, stage, _server: server }
    }

    fn package(&self, package: &str, user: &str, scratch: &str) -> ServerPackage {
        let credentials = match user {
            "" => Credentials::None,
            user => Credentials::Basic { user: user.to_owned(), password: "right".to_owned() },
        };
        let retry = RetryPolicy { read_deadline: Duration::from_secs(3), ..RetryPolicy::default() };
        let config = OriginConfig { credentials, retry, ..OriginConfig::default() };
        let location = format!("http://{}/{package}", self.address).parse().unwrap();
        ServerPackage { location, config, scratch: self.stage.path(scratch) }
    }

    async fn publish(&self, package: &str, user: &str, version: &str, bytes: &[u8]) -> Result<PublishSummary> {
        let server = self.package(package, user, "scratch");
        let source = tempfile::tempdir().unwrap();
        std::fs::write(source.path().join("file"), bytes).unwrap();
        // The same content is the same version.
        for path in [source.path().join("file"), source.path().to_owned()] {
            let time = std::time::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
            std::fs::File::open(path).unwrap().set_modified(time).unwrap();
        }
        let request = PublishRequest {
            source: source.path().to_owned(),
            content_root: Default::default(),
            package: server.location.package.clone(),
            version: version.parse().unwrap(),
            channels: vec!["stable".parse().unwrap()],
            keys_dir: self.stage.path("keys"),
            level: DEFAULT_LEVEL,
            skip_special: false,
            threads: 2,
            profiles: Vec::new(),
            inherit_profiles: true,
        };
        let work = move || {
            let _source = source;
            publish_to_server(&request, &server, &NoProgress)
        };
        tokio::task::spawn_blocking(work).await.unwrap()
    }

    fn uploader(&self, user: &str) -> Uploader {
        let ServerPackage { location: PackageLocation { origin, package, .. }, config, .. } =
            self.package("app", user, "scratch");
        let Origin::Http(root) = origin else { unreachable!("it was made from http://") };
        Uploader::new(HttpBackend::new(&root, &package, &config).unwrap()).unwrap()
    }

    fn folder(&self, package: &str) -> std::path::PathBuf {
        self.stage.content().join(package)
    }
}

fn noise(seed: u8, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut bytes);
    bytes
}

fn count(folder: &Path) -> usize {
    std::fs::read_dir(folder).map_or(0, |entries| entries.count())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_published_to_a_server_is_as_if_published_to_its_folder() {
    let world = World::new().await;
    let first = world.publish("team/app", "build", "1", &noise(1, 300_000)).await.unwrap();
    assert!(first.root_key_created && first.sent_bytes.unwrap() > 300_000, "{first:?}");
    let folder = world.folder("team/app");
    assert_eq!(count(&folder.join(".incoming")), 0);
    assert!(!world.stage.content().join("team/app/.publish").exists());
    // What is there is not sent again; neither are blocks that only an earlier pack has.
    let mut longer = noise(1, 300_000);
    longer.extend(noise(2, 100_000));
    let second = world.publish("team/app", "build", "2", &longer).await.unwrap();
    assert!(!second.root_key_created);
    assert!((100_000..300_000).contains(&second.sent_bytes.unwrap()), "{second:?}");
    // The same once more: nothing to do.
    let again = world.publish("team/app", "build", "2", &longer).await.unwrap();
    assert_eq!(again.sent_bytes, Some(0));
    // A publisher at the folder itself accepts all of it, and finds head as it would have written it.
    let before = std::fs::read(folder.join("head")).unwrap();
    let keys = KeyStore::new(world.stage.path("keys"));
    let publisher = Publisher::open(&folder, &keys, PublishOptions::default()).await.unwrap();
    assert_eq!(publisher.catalog().versions.len(), 2);
    assert_eq!(std::fs::read(folder.join("head")).unwrap(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_publish_is_told_as_much_as_they_may_know() {
    let world = World::new().await;
    world.publish("app", "build", "1", b"content").await.unwrap();
    world.publish("public", "build", "1", b"content").await.unwrap();
    let before = std::fs::read(world.folder("app").join("head")).unwrap();
    for (package, user, words) in [
        ("app", "reader", "403"),
        ("app", "stranger", "404"),
        ("app", "", "401"),
        ("public", "", "401"),
        ("public", "other", "403"),
        ("new", "stranger", "404"),
        ("new", "reader", "403"),
    ] {
        let error = world.publish(package, user, "2", b"other").await.unwrap_err().to_string();
        assert!(error.contains(words), "{package} by {user:?}: {error}");
    }
    assert_eq!(std::fs::read(world.folder("app").join("head")).unwrap(), before);
    assert!(!world.folder("new").exists(), "a refused publication makes nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_publishers_one_is_told_to_begin_anew() {
    let world = World::new().await;
    world.publish("app", "build", "1", b"content").await.unwrap();
    let keys = KeyStore::new(world.stage.path("keys"));
    let staged = PublishOptions { staged: true, ..PublishOptions::default() };
    let slow = Staged::open(&world.package("app", "other", "other-scratch")).await.unwrap();
    let mut publisher = Publisher::open(slow.package_dir(), &keys, staged.clone()).await.unwrap();
    publisher.revoke(&"1".parse().unwrap()).unwrap();
    publisher.commit().await.unwrap();
    world.publish("app", "build", "2", b"newer").await.unwrap();
    let error = slow.send(&publisher, 0, &NoProgress).await.unwrap_err().to_string();
    assert!(error.contains("another publisher") && error.contains("publish again"), "{error}");
    drop((publisher, slow));
    // Begun anew, it goes on from there; the keys remember nothing of what was refused.
    let anew = Staged::open(&world.package("app", "other", "other-scratch")).await.unwrap();
    let mut publisher = Publisher::open(anew.package_dir(), &keys, staged).await.unwrap();
    publisher.revoke(&"1".parse().unwrap()).unwrap();
    publisher.commit().await.unwrap();
    anew.send(&publisher, 0, &NoProgress).await.unwrap();
    // The answer to the last request got lost: it may be repeated.
    anew.send(&publisher, 0, &NoProgress).await.unwrap();
    let folder = Publisher::open(&world.folder("app"), &keys, PublishOptions::default()).await.unwrap();
    assert_eq!(folder.catalog().versions.len(), 2);
    assert!(folder.catalog().versions[0].revoked);
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_objects_are_not_kept() {
    let world = World::new().await;
    let file = world.stage.path("damaged");
    std::fs::write(&file, "not what the name says").unwrap();
    let object = ObjectPath::new(format!("packs/{}", blake3::hash(b"something else").to_hex())).unwrap();
    let error = world.uploader("build").put_file(&object, &file, &Arc::new(Transfer::default())).await.unwrap_err();
    assert!(error.to_string().contains("422"), "{error}");
    assert_eq!((count(&world.folder("app/packs")), count(&world.folder("app/.incoming"))), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_not_be_put_is_refused_with_a_status_that_says_why() {
    let world = World::new().await;
    world.publish("app", "build", "1", b"content").await.unwrap();
    // build:right
    let login = "Authorization: Basic YnVpbGQ6cmlnaHQ=\r\n";
    let pack = format!("packs/{}", "0a".repeat(32));
    for (path, headers, status) in [
        (format!("/app/{pack}"), "", 411),
        (format!("/app/{pack}"), "Content-Length: 99999999999999\r\n", 413),
        ("/app/metadata/timestamp.json".to_owned(), "Content-Length: 0\r\n", 405),
        ("/app/packs/other".to_owned(), "Content-Length: 0\r\n", 405),
        ("/app/events".to_owned(), "Content-Length: 0\r\n", 405),
        ("/app/head".to_owned(), "Content-Length: 0\r\n", 428),
        ("/app/head".to_owned(), "If-None-Match: *\r\nContent-Length: 0\r\n", 400),
        (format!("/app/packs/inner/{pack}"), "Content-Length: 0\r\n", 409),
        ("/healthz".to_owned(), "Content-Length: 0\r\n", 405),
        ("/app".to_owned(), "Content-Length: 0\r\n", 405),
    ] {
        let (head, _) = ask(world.address, "PUT", &path, &format!("{login}{headers}")).await;
        assert!(head.starts_with(&format!("http/1.1 {status}")), "{path} {headers}: {head}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_behind_the_server_cannot_be_published_to() {
    let stage = Stage::new();
    let origin = ContentRoot::Origin { url: "http://127.0.0.1:9/content".to_owned(), config: Box::default() };
    let world = World::serving(stage, origin).await;
    let file = world.stage.path("file");
    std::fs::write(&file, "x").unwrap();
    let object = ObjectPath::new(format!("packs/{}", blake3::hash(b"x").to_hex())).unwrap();
    let error = world.uploader("build").put_file(&object, &file, &Arc::new(Transfer::default())).await.unwrap_err();
    assert!(error.to_string().contains("501") && error.to_string().contains("reads from"), "{error}");
}

/// Root may write anywhere, so the disk's words are made up.
#[test]
fn what_the_disk_says_becomes_a_status() {
    use std::io::ErrorKind;
    let object = ObjectPath::new("packs/x").unwrap();
    for (kind, status) in [
        (ErrorKind::PermissionDenied, 501),
        (ErrorKind::ReadOnlyFilesystem, 501),
        (ErrorKind::StorageFull, 507),
        (ErrorKind::QuotaExceeded, 507),
        (ErrorKind::NotADirectory, 500),
    ] {
        let answer = super::not_kept(&object, &super::NotKept::from_io(&kind.into()));
        assert_eq!(answer.status().as_u16(), status, "{kind:?}");
        let error = fs_core::Error::local("write", "/srv", kind.into());
        assert_eq!(super::cannot_write(&"app".parse().unwrap(), &error).status().as_u16(), status, "{kind:?}");
    }
}
