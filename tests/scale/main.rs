//! A version of a million files: what mounting and looking into it fetches, and what memory walking it takes; and two
//! thousand clients at one server.

mod crowd;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use fs_core::backend::LocalBackend;
use fs_core::backend::recording::Recording;
use fs_core::config::OriginTable;
use fs_core::location::PackageLocation;
use fs_core::mount::host::{Host, HostSettings};
use fs_core::package::NodeId;
use rand::{Rng, SeedableRng};
use tests::{GENERATED_CONTENT, Streamfs, generated_version};

const FILES: u64 = 1_000_000;
/// Bytes that may be fetched before the root of a mount can be listed, however many files there are.
const FIRST_MOUNT_MAX_BYTES: u64 = 256 << 10;
/// Bytes that one look-up of a path may fetch: a page of the directory's node, one or two of the name, and the index
/// pages above them, each about 5 KiB.
const LOOKUP_MAX_BYTES: u64 = 32 << 10;
/// Memory of the agent's processes while a whole tree is walked.
const AGENT_MEMORY_MAX_BYTES: u64 = 100 << 20;
const DEADLINE: Duration = Duration::from_secs(60);

#[test]
fn mounting_and_looking_into_a_million_files_fetches_little() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let content = dir.path().join("content");
    generated_version(&content, "app", &dir.path().join("keys"), FILES);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let settings = HostSettings {
            cache_dir: dir.path().join("cache"),
            cache_size_bytes: 1 << 30,
            keep_free_bytes: 0,
            memory_bytes: 64 << 20,
            poll_interval: DEADLINE,
            origins: OriginTable::default(),
        };
        let host = Host::open(settings).await.expect("a fresh cache");
        let location: PackageLocation = format!("{}/app", content.display()).parse().expect("a location");
        let recording = Recording::new(Arc::new(LocalBackend::new(content.join("app"))));
        let log = recording.log();
        host.set_backend(&location, Arc::new(recording), DEADLINE);
        let mount = host.mount(&location, None).await.expect("mounts");
        assert_eq!(mount.read_dir(NodeId::ROOT, 0, 50).wait().await.expect("lists").len(), 50);
        let fetched = log.delivered_bytes();
        println!("usable after {} requests and {fetched} bytes", log.count());
        assert!(fetched < FIRST_MOUNT_MAX_BYTES, "{fetched} bytes: {:?}", log.requests());

        let mut random = rand::rngs::StdRng::seed_from_u64(1);
        log.clear();
        for _ in 0..100 {
            let name = format!("dir-{:05}", random.random_range(0..FILES / 1_000));
            let folder = mount.lookup(NodeId::ROOT, name.as_bytes()).wait().await.expect("looks up").expect(&name);
            let name = format!("file-{:03}.txt", random.random_range(0..1_000));
            let file = mount.lookup(folder.id, name.as_bytes()).wait().await.expect("looks up").expect(&name);
            assert_eq!(mount.read(file.id, 0, 100).wait().await.expect("reads"), GENERATED_CONTENT);
        }
        let fetched = log.delivered_bytes();
        println!("100 paths: {} requests and {fetched} bytes", log.count());
        assert!(fetched < 100 * LOOKUP_MAX_BYTES, "{fetched} bytes for 100 look-ups");
    });
}

fn walk(folder: &Path) -> u64 {
    let mut count = 0;
    for entry in fs::read_dir(folder).expect("lists") {
        let entry = entry.expect("lists");
        let meta = entry.metadata().expect("attributes");
        count += 1 + if meta.is_dir() { walk(&entry.path()) } else { 0 };
    }
    count
}

#[test]
fn walking_a_million_files_keeps_the_agent_small() {
    let user = Streamfs::new();
    let content = user.folder("content");
    generated_version(&content, "app", &user.home().join("generated-keys"), FILES);
    let mount = user.mount(&format!("{}/app", content.display()), "mnt");
    assert_eq!(walk(mount.path()), FILES + FILES / 1_000);
    let (now, most) = user.agent_memory();
    println!("agent: {now} bytes now, {most} at most");
    assert!(most > 0 && most < AGENT_MEMORY_MAX_BYTES, "the agent used {most} bytes");
}
