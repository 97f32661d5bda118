//! Origins that change under an agent: credentials, shares that come and go.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::backend::{ObjectPath, SmallRead};
use crate::config::Credentials;
use crate::package::publish::{NoProgress, PublishRequest, publish};

struct World {
    dir: tempfile::TempDir,
    origins: OriginTable,
}

impl World {
    fn new() -> Self {
        let world = Self { dir: tempfile::tempdir().unwrap(), origins: OriginTable::default() };
        let source = world.dir.path().join("source");
        std::fs::create_dir(&source).unwrap();
        std::fs::write(source.join("file"), "some words\n".repeat(10_000)).unwrap();
        world
    }

    async fn publish(&self, version: &str) {
        let request = PublishRequest {
            source: self.dir.path().join("source"),
            content_root: self.content(),
            package: "app".parse().unwrap(),
            version: version.parse().unwrap(),
            channels: vec!["stable".parse().unwrap()],
            keys_dir: self.dir.path().join("keys"),
            level: 1,
            skip_special: false,
            threads: 1,
            profiles: Vec::new(),
            inherit_profiles: true,
        };
        tokio::task::spawn_blocking(move || publish(&request, &NoProgress)).await.unwrap().unwrap();
    }

    fn content(&self) -> PathBuf {
        self.dir.path().join("content")
    }

    fn location(&self, selector: &str) -> PackageLocation {
        format!("{}/app{selector}", self.content().display()).parse().unwrap()
    }

    async fn host(&self) -> Arc<Host> {
        let settings = HostSettings {
            cache_dir: self.dir.path().join("cache"),
            cache_size_bytes: 1 << 30,
            keep_free_bytes: 0,
            memory_bytes: 1 << 20,
            poll_interval: Duration::from_secs(60),
            origins: self.origins.clone(),
        };
        Host::open(settings).await.unwrap()
    }
}

/// Serves the content root, to whoever brings `token`; gives its address.
async fn serve(content: PathBuf, token: Arc<Mutex<&'static str>>) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(socket.read_u8().await.unwrap());
            }
            let head = String::from_utf8(head).unwrap();
            let path = head.split(' ').nth(1).unwrap().trim_start_matches('/');
            let wanted = format!("authorization: bearer {}\r\n", *token.lock());
            let (status, body) = match std::fs::read(content.join(path)) {
                _ if !head.to_ascii_lowercase().contains(&wanted) => ("401 X", Vec::new()),
                Ok(body) => ("200 X", body),
                Err(_) => ("404 X", Vec::new()),
            };
            let range = head.lines().find_map(|l| l.strip_prefix("range: bytes=")?.split_once('-'));
            let (status, body, extra) = match range {
                Some((from, to)) if status == "200 X" => {
                    let (from, to): (usize, usize) = (from.parse().unwrap(), to.parse().unwrap());
                    let to = to.min(body.len() - 1);
                    let extra = format!("Content-Range: bytes {from}-{to}/{}\r\n", body.len());
                    ("206 X", body[from..=to].to_vec(), extra)
                }
                _ => (status, body, String::new()),
            };
            let length = body.len();
            let head = format!("HTTP/1.1 {status}\r\nConnection: close\r\n{extra}Content-Length: {length}\r\n\r\n");
            // A client that left is none of our business.
            let _ = socket.write_all(&[head.as_bytes(), &body].concat()).await;
        }
    });
    format!("http://{address}")
}

fn bearer(token: &str) -> OriginConfig {
    OriginConfig { credentials: Credentials::Bearer(token.to_owned()), ..OriginConfig::default() }
}

/// An agent kept the first token of a package for ever: after one mistake the right one failed until the agent ended.
#[tokio::test]
async fn changed_credentials_count_at_once_also_for_mounts_that_exist() {
    let world = World::new();
    world.publish("1").await;
    let token = Arc::new(Mutex::new("good"));
    let url = serve(world.content(), token.clone()).await;
    let location: PackageLocation = format!("{url}/app").parse().unwrap();
    let host = world.host().await;
    world.origins.set(&location.package_key(), bearer("bad")).unwrap();
    assert_eq!(host.pin(&location, None).await.unwrap_err().kind(), ErrorKind::Denied);
    world.origins.set(&location.package_key(), bearer("good")).unwrap();
    let pinned = host.pin(&location, None).await.unwrap();
    assert!(pinned.trusted_on_first_use && pinned.freshness == Freshness::Fresh && !pinned.revoked);

    *token.lock() = "newer";
    world.origins.set(&location.package_key(), bearer("newer")).unwrap();
    let again = host.pin(&location, None).await.unwrap();
    assert!(Arc::ptr_eq(&again.mount, &pinned.mount), "a version is shared");
    assert!(!again.trusted_on_first_use);
    let head = ObjectPath::new("head").unwrap();
    let read = pinned.mount.fetcher.backend().read_small(&head, 1 << 20, None).await;
    assert!(matches!(read, Ok(SmallRead::Object { .. })), "{read:?}");
}

#[tokio::test]
async fn deadlines_belong_to_whoever_asked() {
    let world = World::new();
    world.publish("1").await;
    let (host, location) = (world.host().await, world.location(""));
    let first = host.mount(&location, None).await.unwrap();
    let retry = RetryPolicy { read_deadline: Duration::from_secs(7), ..RetryPolicy::default() };
    world.origins.set(&location.package_key(), OriginConfig { retry, ..OriginConfig::default() }).unwrap();
    let second = host.mount(&location, None).await.unwrap();
    assert!(!Arc::ptr_eq(&first, &second));
    world.origins.set(&location.package_key(), OriginConfig::default()).unwrap();
    assert!(Arc::ptr_eq(&first, &host.mount(&location, None).await.unwrap()));
}

/// A share that is not mounted shows an empty folder: what was loaded from it must start all the same.
#[tokio::test]
async fn a_loaded_version_mounts_while_its_folder_is_gone() {
    let world = World::new();
    world.publish("1").await;
    let location = world.location("");
    {
        let host = world.host().await;
        let mount = host.mount(&location, None).await.unwrap();
        host.begin_load(&mount, &LoadWish::default()).unwrap().finished().await.unwrap();
        host.close().await;
    }
    std::fs::remove_dir_all(world.content()).unwrap();
    let host = world.host().await;
    let pinned = host.pin(&location, None).await.unwrap();
    assert!(matches!(&pinned.freshness, Freshness::Offline { reason } if reason.contains("share mounted")));
    assert_eq!(pinned.mount.identity().version, "1");
    let never_seen = format!("{}/other", world.content().display()).parse().unwrap();
    assert_eq!(host.pin(&never_seen, None).await.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn what_was_loaded_through_a_channel_is_unloaded_through_it() {
    let world = World::new();
    world.publish("1").await;
    let host = world.host().await;
    let mount = host.mount(&world.location("@stable"), None).await.unwrap();
    host.begin_load(&mount, &LoadWish::default()).unwrap().finished().await.unwrap();
    std::fs::remove_dir_all(world.content()).unwrap();
    let e = host.unload(&world.location("@beta")).await.unwrap_err();
    assert!(e.kind() == ErrorKind::InvalidInput && e.to_string().contains("of the package: 1"), "{e}");
    assert!(host.unload(&world.location("@stable")).await.unwrap() > 0);
    for selector in ["", "@stable", "@1"] {
        assert_eq!(host.unload(&world.location(selector)).await.unwrap_err().kind(), ErrorKind::InvalidInput);
    }
}

/// Whoever waits for a program to start does not wait for a server that hangs.
#[tokio::test]
async fn a_trusted_version_mounts_though_the_server_hangs() {
    let world = World::new();
    world.publish("1").await;
    let (host, location) = (world.host().await, world.location(""));
    let mount = host.mount(&location, None).await.unwrap();
    let hangs = Arc::new(AtomicBool::new(false));
    let seen = hangs.clone();
    let inner = backend::open(&location, &OriginConfig::default()).unwrap();
    let faults = backend::faults::Faults::new(inner, move |_| {
        seen.store(true, Ordering::Relaxed);
        Some(backend::faults::Fault::Stall { after_bytes: 0 })
    });
    host.set_backend(&location, Arc::new(faults), Duration::from_secs(60));
    let started = std::time::Instant::now();
    let pinned = host.pin(&location, None).await.unwrap();
    assert!(hangs.load(Ordering::Relaxed) && matches!(pinned.freshness, Freshness::Offline { .. }));
    assert!(started.elapsed() < FALL_BACK_AFTER * 3, "took {:?}", started.elapsed());
    assert_eq!(pinned.mount.identity(), mount.identity());
}

/// A poll that hung held the package, so that whoever mounted meanwhile waited for it, too.
#[tokio::test]
async fn a_poll_that_hangs_holds_nobody_up() {
    let world = World::new();
    world.publish("1").await;
    let (host, location) = (world.host().await, world.location(""));
    let (hangs, seen) = (AtomicBool::new(true), Arc::new(tokio::sync::Notify::new()));
    let told = seen.clone();
    let inner = backend::open(&location, &OriginConfig::default()).unwrap();
    let faults = backend::faults::Faults::new(inner, move |_| {
        told.notify_one();
        hangs.swap(false, Ordering::Relaxed).then_some(backend::faults::Fault::Stall { after_bytes: 0 })
    });
    host.set_backend(&location, Arc::new(faults), Duration::from_secs(60));
    let poll = tokio::spawn({
        let (host, location) = (host.clone(), location.clone());
        async move { host.newest(&location).await.map(drop) }
    });
    seen.notified().await;
    host.mount(&location, None).await.unwrap();
    assert!(!poll.is_finished());
    poll.abort();
    assert_eq!(host.newest(&location).await.unwrap().record.version.as_str(), "1");
}
